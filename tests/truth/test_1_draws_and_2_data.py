"""A log-weight depends only on its datum and its draw."""

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from tests.truth.programs import Program, exact_normal, normal_guide, normal_model

FEATURES = 6
LEFT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "h / h.sum(1)": (lambda h: h / h.exp().sum(1, keepdim=True), lambda h: h / h.exp().sum(-1, keepdim=True)),
    "normalize": (nn.functional.normalize, lambda h: nn.functional.normalize(h, dim=-1)),
    "cumsum": (lambda h: h.cumsum(1), lambda h: h.cumsum(-1)),
    "flatten": (lambda h: h.unflatten(-1, (2, 3)).flatten(1), lambda h: h),
    "group norm": (
        nn.GroupNorm(2, FEATURES),
        lambda h: nn.functional.layer_norm(h.unflatten(-1, (2, 3)), (3,)).flatten(-2),
    ),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda h: h - h.mean(-2, keepdim=True),
    "sum": lambda h: h / h.exp().sum(0, keepdim=True),
    "first": lambda h: h - h[..., :1, :],
    "last": lambda h: h - h[..., -1:, :],
    "sorted": lambda h: h.sort(-2).values,
    "attention": lambda h: (h @ h.mT).softmax(-1) @ h,
    "distances": lambda h: torch.cdist(h, h)[..., :FEATURES],
    "batch norm": nn.BatchNorm1d(FEATURES, track_running_stats=False),
}


def program(function: Callable[[Tensor], Tensor]) -> tuple[Program, Program]:
    weight = torch.linspace(-1, 1, FEATURES)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(function(z * weight + 0.1), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.1).to_event(1))

    return model, guide


@pytest.fixture
def x() -> Tensor:
    return torch.randn(20, FEATURES, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", LEFT)
def test_a_program_that_counts_from_the_left_runs_once_a_draw(name: str, x: Tensor) -> None:
    wrong, right = map(program, LEFT[name])
    with pytest.warns(UserWarning, match="to the left"):
        found = pv.evaluation.evaluate(*wrong, x, 300, seed=0).log_likelihood
    expected = pv.evaluation.evaluate(*right, x, 300, seed=0, vectorize=False).log_likelihood
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for make in (pv.objectives.IWAE, pv.objectives.MIWAE, pv.objectives.Renyi):
        options = {} if make is pv.objectives.IWAE else {"num_particles": 3}
        objective = make(0.5, **options) if make is pv.objectives.Renyi else make(3)
        with pytest.raises(ValueError, match=r"to the left.*vectorize_particles=False"):
            objective.loss(*wrong, x)


@pytest.mark.parametrize("name", OTHERS)
def test_a_program_that_uses_other_data_is_refused(name: str, x: Tensor) -> None:
    programs = program(OTHERS[name])
    for tool in (pv.evaluation.evaluate, pv.evaluation.rqmc, pv.evaluation.ais, pv.evaluation.elbo_surgery):
        with pytest.raises(ValueError, match="depends on the other data"):
            tool(*programs, x, 64, seed=0)
    for options in ({}, {"vectorize_particles": False}):
        with pytest.raises(ValueError, match="depends on the other data"):
            pv.objectives.IWAE(2, **options).loss(*programs, x)


@pytest.mark.parametrize("size", [2, 3, 4, 30])
@pytest.mark.parametrize("fixed", [False, True])
def test_a_prior_that_uses_the_mean_of_the_data_is_refused(size: int, fixed: bool) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", size if fixed else len(x)):
            z = pyro.sample("z", dist.Normal(x.mean(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", size if fixed else len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    with pytest.raises(ValueError, match="depends on the other data"):
        pv.evaluation.evaluate(model, guide, x, 10, seed=0)
    with pytest.raises(ValueError, match="depends on the other data"):
        pv.objectives.IWAE(2).loss(model, guide, x)


def test_a_guide_that_uses_other_data_has_a_right_loss_and_is_not_evaluated() -> None:
    x = torch.randn(30, generator=torch.Generator().manual_seed(0))

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - x.mean()) / 2, 1.0))

    losses = [pv.objectives.IWAE(100).loss(normal_model, guide, x) for _ in range(10)]
    assert abs(np.mean(losses) + exact_normal(x).sum()) < 5 * np.std(losses) / 10**0.5 + 0.5
    with pytest.raises(ValueError, match="depends on the other data"):
        pv.evaluation.evaluate(normal_model, guide, x, 10, seed=0)


def test_parameters_of_single_data_are_no_dependence() -> None:
    x = torch.randn(9, generator=torch.Generator().manual_seed(0))
    offsets = torch.linspace(-0.5, 0.5, 9)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", 9):
            pyro.sample("z", dist.Normal(x / 2 + offsets, 1.0))

    def model(x: Tensor) -> None:
        with pyro.plate("data", 9):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = pv.evaluation.evaluate(model, guide, x, 3000, seed=0)
    assert (abs(found.log_likelihood - exact_normal(x)) < 5 * found.mcse).all()
    pv.objectives.IWAE(5).loss(model, normal_guide, x)
