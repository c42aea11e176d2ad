"""Second explanation: the families. Is the likelihood, the prior or the posterior too simple?

One of the three is exchanged at a time. Three likelihoods are compared with that of the base, from the least to the
most flexible: normal pixels of scale 1, which is least squares; discretized logistics with a scale for each pixel; and
pixels that depend on preceding pixels.
"""

from collections.abc import Callable
from functools import partial

import pyrovae as pv
from experiments.blurriness.autoregressive import Autoregressive
from experiments.blurriness.setting import LEVELS, Setting, Trained


def ways(setting: Setting) -> dict[str, Callable[[], Trained]]:
    """Return functions that train the base VAE with one component exchanged, by name."""
    options = setting.options
    latent, context = options.latent, options.context

    def likelihood(make: Callable[[], object], *, discrete: bool = False, mean: bool = True) -> Trained:
        vae = setting.vae(likelihood=make)
        return Trained(vae, setting.train(vae, discrete=discrete), discrete=discrete, mean=mean)

    def least_squares() -> object:
        return setting.normal(1.0)

    def logistic() -> object:
        return pv.likelihoods.DiscretizedLogistic(setting.decoder(2), LEVELS, unit=1 / (LEVELS - 1))

    def autoregressive() -> object:
        return Autoregressive(setting.decoder(2), LEVELS)

    def prior() -> Trained:
        vae = setting.vae(prior=lambda: pv.priors.VampPrior(options.components, data=setting.noisy.train))
        return Trained(vae, setting.train(vae))

    def posterior() -> Trained:
        vae = setting.vae(
            posterior=lambda: pv.posteriors.InverseAutoregressiveFlow(
                setting.encoder(2 * latent + context), latent, context=context
            )
        )
        return Trained(vae, setting.train(vae))

    return {
        "least squares": partial(likelihood, least_squares),
        "discretized logistic": partial(likelihood, logistic, discrete=True),
        "autoregressive": partial(likelihood, autoregressive, discrete=True, mean=False),
        "VampPrior": prior,
        "inverse autoregressive flow": posterior,
    }
