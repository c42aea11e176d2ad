"""A datum that fails affects no other datum, in every estimator; data of one column may have any strides."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program, check_close, exact_normal, normal_guide, normal_model

E = pv.evaluation
X = torch.randn(9, generator=torch.Generator().manual_seed(1))
BAD = 123.0


def raising(x: Tensor) -> None:
    if (x == BAD).any():
        raise RuntimeError("no such datum")
    normal_model(x)


def indexing(x: Tensor) -> None:
    table = torch.zeros(100)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + table[x.abs().long()], 1.0), obs=x)


def discrete(x: Tensor) -> None:
    if (x == BAD).any():
        raise ValueError("no such datum")
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Bernoulli(torch.full_like(x, 0.5)))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def discrete_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("b", dist.Bernoulli(torch.full_like(x, 0.5)))


def exact_discrete(x: Tensor) -> np.ndarray:
    return torch.logaddexp(*(dist.Normal(b, 1.0).log_prob(x) for b in (0.0, 1.0))).numpy() - np.log(2)


PROGRAMS: dict[str, tuple[Program, Program, Callable[[Tensor], np.ndarray]]] = {
    "raising": (raising, normal_guide, exact_normal),
    "indexing": (indexing, normal_guide, exact_normal),
    "discrete": (discrete, discrete_guide, exact_discrete),
}


@pytest.mark.parametrize("index", [0, 4, 8])
@pytest.mark.parametrize("name", PROGRAMS)
def test_log_likelihood_of_a_datum_that_fails(name: str, index: int) -> None:
    model, guide, exact = PROGRAMS[name]
    x = X.clone()
    x[index] = BAD
    keep = np.arange(9) != index
    with pytest.warns(UserWarning, match=rf"\[{index}\]"):
        found = E.log_likelihood(model, guide, x, seed=0)
    assert np.isnan(found.log_likelihood.values[index])
    assert not found.reliable.values[index]
    assert found.estimator.values[index] == "none"
    check_close(found.isel(datum=keep), exact(x)[keep])
    assert found.reliable.values[keep].all()
    assert E.diagnose(found).verdict.values[index] == "no estimate"
    assert int(E.verdicts(found)["data"]["no estimate"]) == 1


@pytest.mark.parametrize("bad", [2, 3])
def test_several_data_that_fail(bad: int) -> None:
    x = X.clone()
    x[:bad] = BAD
    with pytest.warns(UserWarning, match="raise an error"), pytest.warns(UserWarning, match="are NaN or infinite"):
        found = E.log_likelihood(raising, normal_guide, x, seed=0)
    assert np.isnan(found.log_likelihood.values).tolist() == [True] * bad + [False] * (9 - bad)
    check_close(found.isel(datum=slice(bad, None)), exact_normal(x)[bad:])


def column_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None], 1.0).to_event(1), obs=x)


def column_guide(x: Tensor) -> None:
    normal_guide(x[..., 0])


COLUMNS: dict[str, Any] = {
    "transposed": X[None].T,
    "table": pd.DataFrame({"a": X.numpy()}),
    "array": X.numpy()[None].T,
    "every second": torch.stack([X, X]).T[:, ::2],
    "one datum": X[None].T[:1],
}


@pytest.mark.parametrize("estimate", [E.evaluate, E.log_likelihood])
@pytest.mark.parametrize("kind", COLUMNS)
def test_data_of_one_column(kind: str, estimate: Callable[..., Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # warnings about few data
        found = estimate(column_model, column_guide, COLUMNS[kind], seed=0)
    check_close(found, exact_normal(X)[: found.sizes["datum"]])
    contiguous = torch.tensor(np.asarray(COLUMNS[kind]).tolist())
    assert found.attrs["data_sha1"] == E.Problem(column_model, column_guide, contiguous).data.fingerprint()


@pytest.mark.parametrize("kind", COLUMNS)
def test_training_on_one_column(kind: str, tmp_path: Any) -> None:
    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x[..., 0], 0.7))

    pv.fit((column_model, guide), COLUMNS[kind], epochs=1, seed=0, checkpoint=tmp_path / "run", progress=False)
