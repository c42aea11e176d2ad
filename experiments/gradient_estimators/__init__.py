"""What the reparameterization trick buys, beside the score-function estimator and its baselines.

Two questions, a script each: the bias and the variance of a gradient (``moments``), and what they do to learning
(``learning``).
"""
