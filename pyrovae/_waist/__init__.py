"""Computation of a Pyro program's log-weights: run the guide, run the model at its draws, sum over sites per datum."""
