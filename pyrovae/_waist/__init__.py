"""The route from a Pyro program to its log-weights: run the guide, score the model, sum per datum."""
