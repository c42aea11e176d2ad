"""Tests of ``pyrovae/_refinement``."""
