"""A compiled evaluation compiles the shapes of whole batches alone, because subsets vary in their number of data."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.evaluation.unconstrained import target


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))


def test_gradients_of_data_left_over_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []
    used: list[int] = []
    gradient = target.Target.value_and_gradient

    def record(_: Any, __: Any, inputs: Any, *___: Any, **____: Any) -> None:
        compiled.append(inputs[-2].shape[1])

    def count(self: target.Target, u: Any, beta: float = 1.0) -> Any:
        used.append(u.shape[1])
        return gradient(self, u, beta)

    monkeypatch.setattr(target, "compiled_or_none", record)
    monkeypatch.setattr(target.Target, "value_and_gradient", count)
    x = torch.linspace(0.0, 9.0, 40)  # the guide serves for small x
    options: Any = {"seed": 0, "progress": False}
    result = pv.evaluation.log_likelihood(model, guide, x, compile=True, **options)
    assert set(used) - {40}
    assert set(compiled) <= {40}
    plain = pv.evaluation.log_likelihood(model, guide, x, **options)
    np.testing.assert_allclose(result.log_likelihood, plain.log_likelihood, atol=1e-4)
