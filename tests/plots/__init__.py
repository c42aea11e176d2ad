"""Tests of ``pyrovae/plots``."""
