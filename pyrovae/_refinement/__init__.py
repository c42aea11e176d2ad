"""Algorithms that fit normal densities to the posterior of each datum and estimate log p(x) with draws from them."""
