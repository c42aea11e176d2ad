"""Posterior draws: predictions, imputations, and the schema of ArviZ."""
