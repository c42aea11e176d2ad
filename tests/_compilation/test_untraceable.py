"""``fit`` names the reason if a program cannot be compiled, and trains without compilation."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pyrovae as pv
from pyrovae._compilation import graphs
from tests.conftest import small_vae
from tests.examples import Discrete
from tests.training.runs import assert_same_run, fitted


class Function(nn.Module):
    """A layer that calls a function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, h: Tensor) -> Tensor:
        return self.function(h)


class Moved(nn.Module):
    """A layer that counts its calls in a buffer that it replaces."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, h: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return h


class Redrawn(nn.Module):
    """A guide with rejection sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.VonMises(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(torch.stack([z.cos()] * 6, -1), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.VonMises(self.loc.expand(len(x)), 2.0))


def vae_with(layer: nn.Module) -> pv.VAE:
    vae = small_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(nn.Sequential(nn.Linear(2, 8), layer, nn.Linear(8, 6)))
    return vae


def calling(function: Callable[[Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: vae_with(Function(function))


BY_VALUE = "a decision in Python depends on the value of a tensor"
UNTRACEABLE: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "branch": (calling(lambda h: h if h.sum() > 0 else 2 * h), None, BY_VALUE),
    "check for NaN": (calling(lambda h: h if not h.isnan().any() else 0 * h), None, BY_VALUE),
    "number": (calling(lambda h: h * float(h.detach().mean())), None, BY_VALUE),
    "batch norm without momentum": (lambda: vae_with(nn.BatchNorm1d(8, momentum=None)), None, BY_VALUE),
    "rejection sampling": (Redrawn, None, BY_VALUE),
    "list": (calling(lambda h: h * h.mean().tolist()), None, r"values of a tensor are read by tolist\(\)"),
    "NumPy": (
        calling(lambda h: h * np.asarray(h.detach()).mean()),
        None,
        r"values of a tensor are read by __array__\(\)",
    ),
    "tensor of tensors": (calling(lambda h: h * torch.tensor([h.detach().mean(), 1.0]).sum()), None, r"by tensor\(\)"),
    "mask": (calling(lambda h: h * h[h > 0].sum()), None, r"shape of the result of .*nonzero.* depends on the values"),
    "checkpoint": (
        calling(lambda h: checkpoint(lambda h: nn.functional.dropout(h, 0.5), h, use_reentrant=False)),
        None,
        "the programs set the state of a random generator",
    ),
    "buffer": (lambda: vae_with(Moved()), None, "Moved replaces its buffer 'calls' by another tensor"),
    "baseline": (
        lambda: Discrete(baseline={"use_decaying_avg_baseline": True}),
        TraceGraph_ELBO(),
        r"its own values in Pyro's parameter store \(baselines\)",
    ),
    "coupling of zuko": (
        lambda: pv.VAE(
            pv.priors.NormalizingFlow(2, zuko.flows.NICE(2, transforms=2).transform.inv),
            small_vae().likelihood,
            small_vae().posterior,
        ),
        None,
        "the shape of the result of .* depends on the values of a tensor",
    ),
}


def inverted_flow() -> pv.VAE:
    vae = small_vae()
    vae.posterior = pv.posteriors.InverseAutoregressiveFlow(pv.networks.mlp(6, 2 * 2), 2, depth=1, hidden=(4,))
    return vae


def assert_falls_back(make: Callable[[], nn.Module], objective: Any, reason: str, x: Tensor) -> None:
    options = {"objective": objective, "epochs": 2, "batch_size": 6}
    plain = fitted(make, x, **copy.deepcopy(options))
    with pytest.warns(UserWarning, match=f"^fit continues without compilation: .*{reason}") as caught:
        compiled = fitted(make, x, compile=True, **options)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert len(str(caught[0].message)) < 200
    assert_same_run(compiled, plain, tolerance=0)


@pytest.mark.parametrize(("make", "objective", "reason"), UNTRACEABLE.values(), ids=UNTRACEABLE)
def test_an_untraceable_program_names_the_reason_and_trains_uncompiled(
    make: Callable[[], nn.Module], objective: Any, reason: str, x: Tensor
) -> None:
    assert_falls_back(make, objective, reason, x)


@pytest.mark.parametrize("gradient", ["sticking_the_landing", "doubly_reparameterized"])
def test_a_loop_unrolled_is_not_compiled(gradient: Any, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_OPERATIONS", 300)
    objective = pv.objectives.IWAE(2, gradient=gradient)
    reason = r"the graph has [3-9]\d\d operations, perhaps from an unrolled loop, but the limit is 300"
    assert_falls_back(inverted_flow, objective, reason, x)


def test_without_a_compiler_training_goes_on(x: Tensor) -> None:
    from torch._inductor import config  # takes seconds to import
    from torch._inductor.utils import fresh_cache

    with fresh_cache(), config.patch({"cpp.cxx": ("nowhere",)}):
        assert_falls_back(small_vae, None, r"No working C\+\+ compiler .*\('nowhere',\)", x)


def test_a_custom_generator_is_not_compiled(x: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    make = calling(lambda h: h + torch.randn(h.shape, generator=generator))
    with pytest.warns(UserWarning, match="without compilation: the programs hold a Generator, but a graph takes"):
        fitted(make, x, compile=True, epochs=2)


def test_errors_of_a_program_are_the_same_with_compilation(x: Tensor) -> None:
    def broken(h: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise KeyError("no such layer")
        return h

    with pytest.warns(UserWarning, match="no such layer"), pytest.raises(KeyError, match="no such layer"):
        fitted(calling(broken), x, compile=True, epochs=2)
