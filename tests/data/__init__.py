"""Tests of ``pyrovae/data``."""
