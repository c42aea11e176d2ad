"""Guides that mix an amortized guide with densities fitted to the posterior of each datum."""

from pyrovae.guides.refined import Refined

__all__ = ["Refined"]
