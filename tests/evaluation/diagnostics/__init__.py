"""Tests of ``pyrovae/evaluation/diagnostics``."""
