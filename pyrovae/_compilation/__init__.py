"""Compilation by torch: graphs, precisions, and operations that are faster than those of torch."""
