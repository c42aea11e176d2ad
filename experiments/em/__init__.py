"""Alternating maximization of the likelihood, from the exact E step of a mixture to the amortized E step of a VAE.

Each question has a script: how EM increases the likelihood of a Gaussian mixture (``mixture``), how a posterior over
its parameters compares with the point estimate of EM (``bayesian``), and whether alternating steps help a VAE
(``alternating``).
"""
