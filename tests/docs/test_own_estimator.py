"""The estimator of the how-to page is the jackknife, and the library provides it with everything the page promises."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pyrovae as pv
from tests.oracle import Oracle
from tests.processes import in_each

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "own_estimator.md"
BLOCK = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)[0]
OPTIONS: dict[str, Any] = {"seed": 3, "progress": False}


def jackknife(*args: Any, **options: Any) -> Any:
    scope: dict[str, Any] = {}
    exec(compile(BLOCK, str(PAGE), "exec"), scope)
    return scope["jackknife"](*args, **{**OPTIONS, **options})


@pytest.fixture
def oracle() -> Oracle:
    return Oracle(scale=0.8)


def test_it_fits_on_fifteen_lines() -> None:
    body = re.sub(r'r""".*?"""', "", BLOCK[BLOCK.index("def jackknife") :], flags=re.DOTALL)
    assert len([line for line in body.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("num_samples", [21, 50])
def test_it_is_the_formula(oracle: Oracle, num_samples: int) -> None:
    x = oracle.data(1)  # the draws of one batch have the same seed in both calls
    result = jackknife(oracle.vae.model, oracle.vae.guide, x, num_samples)
    log_w = pv.evaluation.log_weights(oracle.vae.model, oracle.vae.guide, x, num_samples, **OPTIONS)[:, 0]
    all_but_one = torch.stack(
        [torch.cat([log_w[:i], log_w[i + 1 :]]).exp().mean().log() for i in range(num_samples)]
    ).numpy()
    whole = float(log_w.exp().mean().log())
    expected = num_samples * whole - (num_samples - 1) * all_but_one.mean()
    assert float(result.log_likelihood[0]) == pytest.approx(expected, rel=1e-9)
    error = np.sqrt((num_samples - 1) / num_samples * ((all_but_one - all_but_one.mean()) ** 2).sum())
    assert float(result.mcse[0]) == pytest.approx(error, rel=1e-6)


@pytest.mark.slow
def test_it_has_less_bias_than_the_logarithm_of_the_mean() -> None:
    oracle = Oracle(scale=1.3, shift=0.8)
    x = oracle.data(1).repeat(20_000, 1)
    exact = oracle.log_likelihood(x[:1]).item()
    plain = pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 25, **OPTIONS).log_likelihood.values - exact
    removed = jackknife(oracle.vae.model, oracle.vae.guide, x, 25).log_likelihood.values - exact
    assert plain.mean() < -5 * plain.std() / len(x) ** 0.5
    assert abs(removed.mean()) < abs(plain.mean()) / 3 + 3 * removed.std() / len(x) ** 0.5


def test_its_result_is_judged_and_compared(oracle: Oracle) -> None:
    x = oracle.data(12)
    both = {
        "jackknife": jackknife(oracle.vae.model, oracle.vae.guide, x, 200),
        "plain": pv.evaluation.evaluate(oracle.vae.model, oracle.vae.guide, x, 200, **OPTIONS),
    }
    table = pv.evaluation.compare(both)
    assert table.estimator["jackknife"] == "jackknife"
    assert table.num_samples["jackknife"] == 200
    assert 0 <= table.reliable["jackknife"] <= 1
    assert int(pv.evaluation.verdicts(both["jackknife"])["data"].sum()) == 12


def test_a_datum_that_fails_is_a_row_of_nan(oracle: Oracle) -> None:
    x = oracle.data(10)
    x[4] = torch.nan
    with pytest.warns(UserWarning, match=r"data \[4\]"):
        result = jackknife(oracle.vae.model, oracle.vae.guide, x, 100)
    assert np.flatnonzero(result.log_likelihood.isnull()).tolist() == [4]


def interrupted_at(limit: int, log_weights: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def run(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > limit:
            raise KeyboardInterrupt
        return log_weights(*args)

    return run


def test_it_goes_on_from_its_folder(oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, options = oracle.data(40), {"memory": 2**16}
    whole = jackknife(oracle.vae.model, oracle.vae.guide, x, 100, **options)
    own = pv.evaluation.Problem.log_weights
    monkeypatch.setattr(pv.evaluation.Problem, "log_weights", interrupted_at(2, own))
    with pytest.warns(UserWarning, match="interrupted"):
        part = jackknife(oracle.vae.model, oracle.vae.guide, x, 100, checkpoint=tmp_path, **options)
    monkeypatch.setattr(pv.evaluation.Problem, "log_weights", own)
    assert 0 < part.sizes["datum"] < 40
    rest = jackknife(oracle.vae.model, oracle.vae.guide, x, 100, checkpoint=tmp_path, **options)
    assert rest.equals(whole)


def in_a_process() -> Any:
    oracle = Oracle(scale=0.8)
    return jackknife(oracle.vae.model, oracle.vae.guide, oracle.data(40), 100, memory=2**16).to_dict()


@pytest.mark.slow
def test_two_processes_have_the_result_of_one() -> None:
    one = in_a_process()
    for result in in_each(2, in_a_process):
        for name in ("log_likelihood", "mcse", "pareto_k"):
            assert result["data_vars"][name]["data"] == one["data_vars"][name]["data"]
