"""Two other training criteria for the same networks, neither of which is a bound on log p(x).

InfoVAE in its MMD form has no KL term for each datum. It pulls only the aggregate posterior towards the prior, so that
codes can carry more information about their datum. Feature consistency compares images by the features of a classifier
instead of by their pixels.

The MMD is that of :class:`pyrovae.objectives.MMD`. Pyro's ``Trace_MMD`` treats a whole batch as one draw, and compares
products.
"""

from collections.abc import Callable

import pyrovae as pv
from experiments.blurriness.features import FeatureConsistent, train_classifier
from experiments.blurriness.setting import Setting, Trained


def ways(setting: Setting) -> dict[str, Callable[[], Trained]]:
    """Return functions that train the MMD-VAE and the feature-consistent VAE, by name."""
    options = setting.options

    def mmd() -> Trained:
        vae = setting.vae()
        return Trained(vae, setting.train(vae, objective=pv.objectives.MMD(options.mmd_weight), kl_warmup=0))

    def feature_consistent() -> Trained:
        classifier, _ = train_classifier(setting.grey, options, options.classifier_epochs, seed=options.seed + 1)
        module = FeatureConsistent(setting.vae(), classifier, options.feature_scale)
        history = setting.train(module)
        return Trained(module.vae, history, density=False)

    return {"MMD-VAE": mmd, "feature consistency": feature_consistent}
