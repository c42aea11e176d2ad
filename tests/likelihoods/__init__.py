"""Tests of ``pyrovae/likelihoods``."""
