"""Tests of ``pyrovae/evaluation/estimators``."""
