"""Why are samples of a VAE blurry: maximum likelihood, the restricted family, or the lower bound?

Three explanations are commonly given, and each makes a prediction. If maximum likelihood is the cause
(:mod:`.maximum_likelihood`), the same decoder blurs under every estimate of KL(data || model), and is sharp under other
divergences. If the family is the cause (:mod:`.restricted_family`), another likelihood, prior or posterior is sharp
under the same bound. If the bound is the cause (:mod:`.lower_bound`), tighter bounds give sharper samples.
:mod:`.contrasts` adds two criteria that do not bound log p(x). :mod:`.known_densities` compares the divergences for
densities that are known exactly.

Sharpness is measured (:mod:`.measures`) for means E[x | z], which papers usually show, and for draws of x, which follow
the model.
"""
