"""Noise of a batch in slices: equal to the noise of the whole batch if possible, and otherwise independent."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pyrovae.isolation import seeded
from pyrovae.training.gradients import noise

DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: torch.normal(x, 1 + x),
    "normal_": lambda x: torch.empty_like(x).normal_(1, 2),
    "randn": lambda x: torch.randn(x.shape),
    "rand": lambda x: torch.rand(*x.shape, dtype=torch.float64),
    "randn_like": torch.randn_like,
    "uniform_": lambda x: x.new_empty(x.shape).uniform_(-1, 3),
    "exponential_": lambda x: torch.empty_like(x).exponential_(2),
    "cauchy_": lambda x: torch.empty_like(x).cauchy_(),
    "log_normal_": lambda x: torch.empty_like(x).log_normal_(),
    "bernoulli": torch.bernoulli,
    "bernoulli_ of numbers": lambda x: torch.empty_like(x).bernoulli_(x),
    "dropout": lambda x: nn.functional.dropout(x, 0.4),
    "dropout of channels": lambda x: nn.functional.dropout1d(x[..., None], 0.4) if x.ndim == 2 else x,
}


@pytest.mark.parametrize("shape", [(11, 3), (11, 20), (2, 11, 3)], ids=str)
@pytest.mark.parametrize("name", [*DRAWS])
def test_draws_of_the_slices_are_those_of_the_whole(name: str, shape: tuple[int, ...]) -> None:
    x, axis = torch.rand(shape), shape.index(11)
    with seeded(1):
        whole, state = DRAWS[name](x), torch.get_rng_state()
    parts = []
    for start, kept in ((0, 4), (4, 7)):
        with seeded(1), noise.Noise().of(noise.Slice(start, kept, 11)):
            parts.append(DRAWS[name](x.narrow(axis, start, kept)))
            assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(torch.cat(parts, axis), whole)


@pytest.mark.parametrize("draw", [torch._standard_gamma, torch.poisson, lambda x: torch.multinomial(x, 2)])
def test_other_draws_differ_in_each_process_which_then_go_on_alike(
    draw: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, then = [], []
    for rank in (0, 1):
        monkeypatch.setattr(noise, "rank", lambda rank=rank: rank)
        with seeded(1), noise.Noise().of(noise.Slice(7 * rank, 7, 14)):
            drawn.append(draw(5 + torch.arange(21.0).reshape(7, 3)))
            then.append(torch.get_rng_state())
    assert not torch.equal(*drawn)
    assert torch.equal(*then)
