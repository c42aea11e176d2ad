"""Posteriors of data as densities of unconstrained real vectors, for HMC and for fitted normal densities."""
