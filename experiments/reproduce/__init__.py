"""Reproductions of published tables, one script per paper, such as ``python -m experiments.reproduce.iwae``."""
