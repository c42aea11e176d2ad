"""Tests of ``pyrovae/distributions``."""
