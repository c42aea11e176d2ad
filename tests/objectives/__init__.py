"""Tests of ``pyrovae/objectives``."""
