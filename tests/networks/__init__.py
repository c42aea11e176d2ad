"""Tests of ``pyrovae/networks``."""
