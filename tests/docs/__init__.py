"""Tests of the documentation and of its claims."""
