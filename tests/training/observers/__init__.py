"""Tests of ``pyrovae/training/observers``."""
