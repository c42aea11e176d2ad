"""Compilation by torch: graphs of operations, the precision of matrix products, and replacements of slow operations."""
