"""Estimators of log p(x)."""
