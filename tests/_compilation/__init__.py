"""Tests of ``pyrovae/_compilation``."""
