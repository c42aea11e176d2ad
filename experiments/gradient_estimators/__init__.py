"""Comparison of the reparameterization trick with the score-function estimator and its baselines.

Each question has a script: the bias and the variance of a gradient (``moments``), and their effect on learning
(``learning``).
"""
