"""Compilation by torch: graphs, precisions, and replacements of slow operations."""
