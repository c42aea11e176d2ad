"""Tests of ``pyrovae/autoencoders``."""
