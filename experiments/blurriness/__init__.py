"""Why are samples of a VAE blurry: maximum likelihood, the restricted family, or the lower bound?

Three explanations are commonly given, and each predicts something. If it is maximum likelihood
(:mod:`.maximum_likelihood`), the same decoder blurs under KL(data || model) however it is estimated, and is sharp under
other divergences. If it is the family (:mod:`.restricted_family`), another likelihood, prior or posterior is sharp
under the same bound. If it is the bound (:mod:`.lower_bound`), tighter ones are sharper. :mod:`.contrasts` has two
criteria that are no bound on log p(x), and :mod:`.known_densities` what the divergences do where all can be computed.

Sharpness is measured (:mod:`.measures`), of means E[x | z], which are what is shown of a VAE, and of draws of x, which
are what the model says.
"""
