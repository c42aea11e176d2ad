"""Tests of ``pyrovae/priors``."""
