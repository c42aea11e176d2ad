"""Densities fitted to the posterior of each datum, in pure torch: regression, chains, mixtures, annealing."""
