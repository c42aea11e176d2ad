"""Benchmarks of training and evaluation, compared with other tools that do the same work."""
