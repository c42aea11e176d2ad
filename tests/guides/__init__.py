"""Tests of ``pyrovae/guides``."""
