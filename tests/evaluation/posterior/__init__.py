"""Tests of ``pyrovae/evaluation/posterior``."""
