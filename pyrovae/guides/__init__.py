"""Guides that are fitted to the posterior of each datum, and mixed with an amortized guide."""

from pyrovae.guides.refined import Refined

__all__ = ["Refined"]
