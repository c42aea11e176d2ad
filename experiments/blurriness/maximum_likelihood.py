r"""First explanation: the criterion. Is it maximum likelihood, KL(data || model), that blurs?

The base VAE's decoder is trained on by variational divergence minimization, with nothing of the model changed: what the
critic sees are draws of p(x | z) p(z), the noise of the pixels included, beside data with noise of the same scale,
without which noise alone would tell the two apart. KL there is the divergence of maximum likelihood, estimated by a
critic instead of a bound. Were it what blurs, this KL would blur too, and the reverse KL would not.

To be fair, the ELBO is given as many epochs more. After those of a critic an encoder and the scale are fitted to the
decoder, which stays as it is: for reconstructions, and for what log p(x) the decoder has.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import pyrovae as pv
from experiments.blurriness.divergences import DIVERGENCES, Divergence
from experiments.blurriness.setting import Setting, Trained
from experiments.blurriness.vdm import Schedule, minimize_divergence


def ways(setting: Setting, base: Callable[[], Trained]) -> dict[str, Callable[[], Trained]]:
    """The trained base VAE, trained on: by the ELBO as before, and by f-GAN under each divergence."""
    adversarial = {f"f-GAN, {d.name}": partial(_adversarial, setting, base, d) for d in DIVERGENCES}
    return {"ELBO, trained on": partial(_trained_on, setting, base), **adversarial}


def _trained_on(setting: Setting, base: Callable[[], Trained]) -> Trained:
    """Gives the ELBO as many epochs more as the critics have."""
    vae = copy.deepcopy(base().vae)
    return Trained(vae, setting.train(vae, epochs=setting.options.adversarial_epochs, kl_warmup=0))


def _adversarial(setting: Setting, base: Callable[[], Trained], divergence: Divergence) -> Trained:
    """Trains a copy of the base VAE's decoder on, then fits an encoder to it."""
    options = setting.options
    vae = copy.deepcopy(base().vae)
    device = next(vae.parameters()).device
    torch.manual_seed(options.seed)
    train_data, size = setting.grey.train.to(device), options.batch_size
    likelihood: Any = vae.likelihood
    scale = likelihood.log_scale.exp().detach()
    critic = nn.Sequential(
        pv.networks.mlp(
            (setting.height, setting.width), *options.hidden, 1, activation=partial(nn.LeakyReLU, negative_slope=0.2)
        ),
        nn.Flatten(0),
    ).to(device)

    def data() -> Tensor:
        x = train_data[torch.randint(len(train_data), (size,), device=device)]
        return x + scale * torch.randn_like(x)

    def model() -> Tensor:
        draws: Tensor = likelihood(vae.prior().sample((size,))).rsample()
        return draws

    steps = options.adversarial_epochs * -(-len(train_data) // size)
    minimize_divergence(
        divergence,
        data,
        model,
        likelihood.network.parameters(),
        critic,
        Schedule(steps, model_rate=2e-4, critic_rate=4e-4),
    )
    likelihood.network.requires_grad_(False)
    return Trained(vae, setting.train(vae, epochs=options.adversarial_epochs, kl_warmup=0))
