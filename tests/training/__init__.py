"""Tests of ``pyrovae/training``."""
