"""The posterior of each datum as a density of unconstrained real vectors, for HMC and for fits of normal densities."""
