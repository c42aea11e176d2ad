"""Contenders of the evaluation benchmark, one per file: log p(x) as an expert of each tool would estimate it."""
