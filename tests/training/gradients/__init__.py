"""Tests of ``pyrovae/training/gradients``."""
