"""Programs, optimizers and arguments for tests of SVI, and its losses."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro.infer import Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoIAFNormal, AutoNormal
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.examples import Stored

Program = Callable[..., Any]


Pair = tuple[Program, Program]


class Encoder(nn.Module):
    """A guide that is a module and registers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 4))

    def forward(self, x: Tensor, annealing: Any = 1.0) -> None:
        pyro.module("encoder", self)
        loc, log_scale = self.network(x).chunk(2, -1)
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=annealing):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def decoder(x: Tensor, annealing: Any = 1.0) -> None:
    weight = pyro.param("weight", lambda: torch.randn(2, 6))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        with pyro.poutine.scale(scale=annealing):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ weight, scale).to_event(1), obs=x)


class Labelled:
    """A semi-supervised program. A given label leaves one network without a gradient."""

    def __init__(self) -> None:
        self.networks = nn.ModuleDict({"label": nn.Linear(6, 2), "decoder": nn.Linear(2, 6)})

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("networks", self.networks)
        with pyro.plate("data", len(x)):
            label = pyro.sample("y", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), obs=y)
            pyro.sample("x", dist.Normal(self.networks["decoder"](label), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("networks", self.networks)
        if y is None:
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Bernoulli(logits=self.networks["label"](x)).to_event(1))


def regression(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


class Twice(nn.Module):
    """A guide that registers its network under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> None:
        for name in ("first", "second"):
            pyro.module(name, self.network)
        loc, log_scale = self.network(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def stored() -> Pair:
    module = Stored()
    return module.model, module.guide


def vae() -> Pair:
    made = small_vae()
    return made.model, made.guide


def labelled() -> Pair:
    made = Labelled()
    return made.model, made.guide


ADAM = partial(pyro.optim.Adam, {"lr": 0.02})


CASES: dict[str, tuple[Callable[[], Pair], Callable[[], Any], Callable[[], Any]]] = {
    "a function and a module": (lambda: (decoder, Encoder()), ADAM, Trace_ELBO),
    "particles": (lambda: (decoder, Encoder()), ADAM, lambda: Trace_ELBO(num_particles=2, vectorize_particles=True)),
    "methods": (stored, ADAM, TraceMeanField_ELBO),
    "a VAE": (vae, ADAM, Trace_ELBO),
    "IWAE": (vae, ADAM, lambda: pv.objectives.IWAE(3)),
    "an autoguide": (lambda: (regression, AutoNormal(regression)), ADAM, Trace_ELBO),
    "a packed autoguide": (lambda: (regression, AutoDiagonalNormal(regression)), ADAM, Trace_ELBO),
    "a flow": (lambda: (regression, AutoIAFNormal(regression)), ADAM, Trace_ELBO),
    "a module of two names": (lambda: (decoder, Twice()), ADAM, Trace_ELBO),
    "a point": (lambda: (regression, AutoDelta(regression)), ADAM, Trace_ELBO),
    "scores": (labelled, ADAM, TraceGraph_ELBO),
    "a function as loss": (lambda: (decoder, Encoder()), ADAM, lambda: Trace_ELBO().differentiable_loss),
    "clipped": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 1.0}),
        Trace_ELBO,
    ),
    "clip arguments": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.Adam({"lr": 0.02}, {"clip_norm": 0.1}),
        Trace_ELBO,
    ),
    "options for each parameter": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "scale" else 0.01}),
        Trace_ELBO,
    ),
    "a schedule": (
        lambda: (decoder, Encoder()),
        lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 0.8}),
        Trace_ELBO,
    ),
}


def calls() -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return the arguments of several steps, with new data in two shapes."""
    generator = torch.Generator().manual_seed(3)
    for step in range(9):
        yield (torch.randn(7 if step % 3 == 2 else 12, 6, generator=generator).round().clamp(0, 1),), {}


def losses(svi: Any, arguments: Any = None) -> list[float]:
    values = []
    for args, kwargs in calls() if arguments is None else arguments:
        values.append(svi.step(*args, **kwargs))
        if isinstance(svi.optim, pyro.optim.lr_scheduler.PyroLRScheduler):
            svi.optim.step()
    return [*values, svi.evaluate_loss(*args, **kwargs)]


def made(make: Any, case: str, **options: Any) -> Any:
    programs, optimizer, objective = CASES[case]
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    return make(*programs(), optimizer(), objective(), **options)
