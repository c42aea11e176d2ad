"""Computation of a Pyro program's log-weights.

The guide runs, the model runs at the guide's draws, and the log-densities of the sites are summed for each datum.
"""
