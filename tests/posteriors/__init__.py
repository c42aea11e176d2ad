"""Tests of ``pyrovae/posteriors``."""
