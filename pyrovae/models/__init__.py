"""Variational autoencoders as Pyro programs made of components."""
