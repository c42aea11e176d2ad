"""Experiments, one script per question."""
