r"""First explanation: the criterion. Do samples blur because of maximum likelihood, KL(data || model)?

The decoder of the base VAE is fine-tuned by variational divergence minimization, without a change of the model. The
critic receives draws of p(x | z) p(z), which include the noise of the pixels. The data receive noise of the same scale,
because otherwise the noise alone would distinguish data and model. The KL divergence is that of maximum likelihood, but
a critic estimates it instead of a bound. If this divergence causes blur, the fine-tuned decoder blurs under KL too, and
not under the reverse KL.

For a fair comparison, the ELBO is trained for the same number of further epochs. After the epochs with a critic, an
encoder and the scale are fitted to the frozen decoder, for reconstructions and for the log p(x) of the decoder.
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
    """Return functions that fine-tune the base VAE: by the ELBO as before, and as an f-GAN under each divergence."""
    adversarial = {f"f-GAN, {d.name}": partial(_adversarial, setting, base, d) for d in DIVERGENCES}
    return {"ELBO, trained on": partial(_trained_on, setting, base), **adversarial}


def _trained_on(setting: Setting, base: Callable[[], Trained]) -> Trained:
    """Train the base VAE further by the ELBO, for as many epochs as the critics have."""
    vae = copy.deepcopy(base().vae)
    return Trained(vae, setting.train(vae, epochs=setting.options.adversarial_epochs, kl_warmup=0))


def _adversarial(setting: Setting, base: Callable[[], Trained], divergence: Divergence) -> Trained:
    """Fine-tune a copy of the base VAE's decoder as an f-GAN, then fit an encoder to it."""
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
