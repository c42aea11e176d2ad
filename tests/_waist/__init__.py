"""Tests of ``pyrovae/_waist``."""
