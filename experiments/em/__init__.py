"""Maximum likelihood by turns, from the exact E step of a mixture to the amortized one of a VAE.

Three questions, a script each: how EM climbs the likelihood of a Gaussian mixture (``mixture``), what a posterior over
its parameters says beside EM's point (``bayesian``), and whether a VAE gains from turns (``alternating``).
"""
