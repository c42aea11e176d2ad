"""Tests of ``pyrovae/models``."""
