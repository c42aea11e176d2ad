"""Autoencoders: plain, conditional, semi-supervised, and with a flow as the guide."""

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from tests.programs.case import DISCRETE, GUIDE_ENUMERATES, Case, noise
from tests.programs.reference import Grid, integrate, normal_grid

PIXELS, CLASSES = 4, 3


def together(*parts: Tensor) -> Tensor:
    """Concatenate along the last dimension after broadcasting the others."""
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, -1) for part in parts], -1)


class VAE(nn.Module):
    """Pyro's first VAE, with one latent dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, 5), nn.Softplus(), nn.Linear(5, 2))
        self.decoder = nn.Sequential(nn.Linear(1, 5), nn.Softplus(), nn.Linear(5, PIXELS))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            loc = x.new_zeros(x.shape[0], 1)
            z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("latent", dist.Normal(loc, (0.3 * log_scale).exp()).to_event(1))


class FlowVAE(VAE):
    """The VAE with a guide that moves normal draws through a spline."""

    def __init__(self) -> None:
        super().__init__()
        self.flow = transforms.Spline(1, count_bins=4)

    def guide(self, x: Tensor) -> None:
        pyro.module("flow", self.flow)
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            base = dist.Normal(loc, (0.3 * log_scale).exp()).to_event(1)
            pyro.sample("latent", dist.TransformedDistribution(base, [self.flow]))


class ConditionalVAE(nn.Module):
    """Pyro's conditional VAE: p(y | x, z) with a prior that reads x."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.recognition = nn.Linear(PIXELS, 2), nn.Linear(2 * PIXELS, 2)
        self.generation = nn.Sequential(nn.Linear(PIXELS + 1, 5), nn.ReLU(), nn.Linear(5, PIXELS))

    def model(self, x: Tensor, y: Tensor) -> None:
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.prior(x).chunk(2, -1)
            z = pyro.sample("z", dist.Normal(loc, (0.2 * log_scale).exp()).to_event(1))
            logits = self.generation(together(x, z))
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        pyro.module("cvae", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.recognition(together(x, y)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.2 * log_scale).exp()).to_event(1))


class SemiSupervised(nn.Module):
    """Pyro's semi-supervised VAE (M2), with its plate without a size.

    Args:
        enumerate_in: Programs that enumerate the label: ``"neither"``, ``"model"`` or ``"both"``.
    """

    def __init__(self, enumerate_in: str = "neither") -> None:
        super().__init__()
        self.in_model = {"enumerate": "parallel"} if enumerate_in != "neither" else {}
        self.in_guide = enumerate_in == "both"
        self.label, self.encoder = nn.Linear(PIXELS, CLASSES), nn.Linear(PIXELS + CLASSES, 2)
        self.decoder = nn.Sequential(nn.Linear(1 + CLASSES, 5), nn.Softplus(), nn.Linear(5, PIXELS))

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            zs = pyro.sample("z", dist.Normal(xs.new_zeros(len(xs), 1), 1.0).to_event(1))
            prior = dist.OneHotCategorical(xs.new_ones(len(xs), CLASSES) / CLASSES)
            ys = pyro.sample("y", prior, obs=ys, infer=self.in_model)
            logits = self.decoder(together(zs, ys))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=xs)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        with pyro.plate("data"):
            if ys is None and (self.in_guide or not self.in_model):
                infer = self.in_model if self.in_guide else {}
                ys = pyro.sample("y", dist.OneHotCategorical(logits=self.label(xs)), infer=infer)
            given = xs.new_zeros(CLASSES) if ys is None else ys
            loc, log_scale = self.encoder(together(xs, given)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (0.2 * log_scale).exp()).to_event(1))


def images() -> tuple[Tensor]:
    return ((noise(3, PIXELS) > 0).float(),)


def pairs() -> tuple[Tensor, Tensor]:
    return (noise(3, PIXELS), (noise(3, PIXELS, seed=1) > 0).float())


def labelled() -> tuple[Tensor, Tensor]:
    return (*images(), torch.eye(CLASSES))


def exact(build: Any, data: Any, **grids: Grid) -> Any:
    """Return the function that integrates a new module's model over grids."""

    def compute() -> Any:
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        return integrate(build().model, data(), grids)

    return compute


Z = normal_grid(dims=1)
Y = torch.eye(CLASSES), torch.zeros(CLASSES)
LABELS = partial(SemiSupervised, "both")
SUMMED = partial(SemiSupervised, "model")
ENUMERATED = partial(TraceEnum_ELBO, max_plate_nesting=1)

CASES = (
    Case("VAE", VAE, images, elbo=TraceMeanField_ELBO, exact=exact(VAE, images, latent=Z)),
    Case("VAE, flow in the guide", FlowVAE, images, exact=exact(FlowVAE, images, latent=Z)),
    Case("conditional VAE", ConditionalVAE, pairs, exact=exact(ConditionalVAE, pairs, z=Z)),
    Case("M2, labels given", SemiSupervised, labelled, exact=exact(SemiSupervised, labelled, z=Z)),
    Case("M2, labels sampled", SemiSupervised, images, exact=exact(SemiSupervised, images, z=Z, y=Y),
         refused=DISCRETE),
    Case("M2, labels enumerated in the model", SUMMED, images, elbo=ENUMERATED, enumerated=True,
         exact=exact(SUMMED, images, z=Z, y=Y)),
    Case("M2, labels enumerated in the guide", LABELS, images, elbo=ENUMERATED, guide_enumerates=True,
         exact=exact(LABELS, images, z=Z, y=Y), refused=GUIDE_ENUMERATES),
)  # fmt: skip
