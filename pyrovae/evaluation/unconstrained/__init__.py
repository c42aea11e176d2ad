"""The posterior of some data as a density of real vectors, for HMC and for local approximations."""
