"""Guides made better for each datum: densities fitted to its posterior, mixed with the guide that encodes it."""

from pyrovae.guides.refined import Refined

__all__ = ["Refined"]
