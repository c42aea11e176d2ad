"""The posterior of some data as a density on real vectors, in which HMC moves and local approximations are fitted."""
