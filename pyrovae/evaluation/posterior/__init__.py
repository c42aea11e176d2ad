"""Posterior draws: predictions, imputations, and conversion to ArviZ."""
