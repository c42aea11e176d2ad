"""Guides fitted to the posterior of each datum."""
