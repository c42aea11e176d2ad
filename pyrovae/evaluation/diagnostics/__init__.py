"""Diagnostics of estimates, posteriors and models."""
