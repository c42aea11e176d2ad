"""Two other criteria for the same networks, neither of them a bound on log p(x).

InfoVAE in its MMD form has no KL term for each datum and holds only the aggregate posterior to the prior, so that codes
may be told apart better. Feature consistency compares images by the features of a classifier instead of their pixels.

MMD is :class:`pyrovae.objectives.MMD`; Pyro's ``Trace_MMD`` takes a whole batch for one draw and compares products.
"""

from collections.abc import Callable

import pyrovae as pv
from experiments.blurriness.features import FeatureConsistent, train_classifier
from experiments.blurriness.setting import Setting, Trained


def ways(setting: Setting) -> dict[str, Callable[[], Trained]]:
    """MMD-VAE and the feature-consistent VAE."""
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
