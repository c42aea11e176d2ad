"""Code shared by all training methods: options, data, networks, and the results of a trained model.

Each model is the base VAE with one component exchanged. The base VAE has normal pixels with a learned common scale, a
standard normal prior and a mean-field posterior, and is trained with the ELBO. A sigmoid maps the means of pixels to
grey values in all models. Densities score dequantized images, so that all rows can be compared in bits per dimension.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

import pyrovae as pv
from experiments import _comparison as comparison

LEVELS = 256


@dataclass
class Options(comparison.Options):
    """Options of the experiment."""

    data: Literal["mnist5k", "mnist", "fashion_mnist"] = "mnist5k"
    """Data set of grey images with labels; ``mnist5k`` needs no download."""
    latent: int = 20
    """Number of latent dimensions."""
    epochs: int = 30
    """Passes over the training data."""
    learning_rate: float = 3e-3
    """Initial learning rate of Adam. A cosine schedule lowers it to a hundredth of this value."""
    kl_warmup: int = 10
    """Epochs over which the weight of the latent sites grows to 1."""
    num_particles: int = 5
    """Draws per datum of the importance-weighted bound, and gradient steps of the semi-amortized posterior."""
    feature_scale: float = 1.0
    """Scale of the normal distributions of the features, in the feature-consistent VAE."""
    mmd_weight: float = 1000.0
    """Weight of the MMD between aggregate posterior and prior."""
    components: int = 100
    """Number of pseudo-inputs of the VampPrior."""
    context: int = 32
    """Number of features that the encoder passes to the flow."""
    adversarial_epochs: int = 20
    """Epochs of training with a critic, and of fitting an encoder to the decoder afterwards."""
    classifier_epochs: int = 8
    """Epochs of training of each classifier."""
    toy_steps: int = 1000
    """Gradient steps of each fit of a normal density to a mixture."""
    num_samples: int = 50
    """Draws per test datum in the evaluation."""
    out: Path = Path("results/blurriness")
    """Folder for tables and figures."""


@dataclass
class Trained:
    """A trained model.

    Attributes:
        vae: The model.
        history: History of its training.
        discrete: Whether the likelihood scores the grey levels themselves.
        density: Whether the model has a density of x, and draws of x.
        mean: Whether E[x | z] has a closed form.
    """

    vae: pv.VAE
    history: pv.History
    discrete: bool = False
    density: bool = True
    mean: bool = True


class Setting:
    """Data and networks.

    Args:
        options: Options of the experiment.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.grey = comparison.load(replace(options, binarization="none"))
        pyro.set_rng_seed(options.seed)
        self.noisy = replace(self.grey, valid=self.dequantize(self.grey.valid), test=self.dequantize(self.grey.test))
        self.height, self.width = self.grey.train.shape[1:]

    dequantize = staticmethod(partial(pv.data.dequantize, levels=LEVELS))

    def decoder(self, parameters: int = 1) -> nn.Module:
        """Return a network from latents to ``parameters`` parameters of each pixel, side by side."""
        widths = self.options.hidden[::-1]
        return pv.networks.mlp(self.options.latent, *widths, (self.height, parameters * self.width))

    def encoder(self, outputs: int) -> nn.Module:
        """Return a network from an image to ``outputs`` outputs."""
        return pv.networks.mlp((self.height, self.width), *self.options.hidden, outputs)

    def vae(self, **exchanged: Any) -> pv.VAE:
        """Return the base VAE, or a VAE with other components."""
        pyro.set_rng_seed(self.options.seed)
        components = {
            "prior": lambda: pv.priors.StandardNormal(self.options.latent),
            "likelihood": lambda: self.normal(0.2, learn_scale=True),
            "posterior": lambda: pv.posteriors.DiagonalNormal(self.encoder(2 * self.options.latent)),
        }
        return pv.VAE(**{role: make() for role, make in (components | exchanged).items()})

    def normal(self, scale: float, *, learn_scale: bool = False) -> nn.Module:
        """Return a likelihood of normal pixels with means in (0, 1)."""
        network = nn.Sequential(self.decoder(), nn.Sigmoid())
        return pv.likelihoods.Normal(network, scale, learn_scale=learn_scale)

    def train(
        self, module: nn.Module, *, discrete: bool = False, objective: ELBO | None = None, **changes: Any
    ) -> pv.History:
        """Train on grey levels, or on dequantized grey levels, with some options changed."""
        splits, transform = (self.grey, None) if discrete else (self.noisy, self.dequantize)
        options = replace(self.options, **changes)
        return comparison.train(module, splits, options, objective=objective, transform=transform)


def images(trained: Trained, test: Tensor, seed: int) -> dict[str, Tensor]:
    """Return images, clipped to [0, 1]: means and draws of samples, and means of reconstructions of the test data.

    The number of samples is that of the test data. Every model receives the same random numbers.
    """
    vae, device = trained.vae, next(trained.vae.parameters()).device
    makers = {}
    if trained.mean:
        makers["mean"] = lambda x: vae.generate(len(x), mean=True)
        makers["reconstruction"] = lambda x: vae.reconstruct(x, mean=True)
    if trained.density:
        makers["draw"] = lambda x: vae.generate(len(x))
    made = {}
    for kind, make in makers.items():
        torch.manual_seed(seed)  # in chunks, because the mean needs a large table of all levels of all pixels
        made[kind] = torch.cat([make(x).cpu() for x in test.to(device).split(100)]).clamp(0, 1)
    return made
