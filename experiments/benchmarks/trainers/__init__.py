"""Contenders of the training benchmark, one per file: the training step that an expert of each tool would write."""
