"""Tests of ``pyrovae/evaluation``."""
