"""Fits of normal densities to the posterior of each datum, and estimates of log p(x) by draws from these densities."""
