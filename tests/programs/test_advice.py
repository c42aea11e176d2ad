"""The advice of each refusal of the matrix is followed until the call succeeds, and the result is compared."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.poutine import block
from scipy import stats

import pyrovae as pv
from tests.programs.case import Case, Guided
from tests.programs.cases import CASES
from tests.programs.driver import outcome
from tests.programs.hierarchies import AT_BATS, HITS, NoPooling, Regression
from tests.programs.mixtures import GLOBALS
from tests.programs.reference import log_weights
from tests.programs.refusals import REFUSALS
from tests.programs.sequences import DeepMarkovModel
from tests.programs.tools import RUNS, check_close, mean

evaluate = partial(pv.evaluation.evaluate, seed=0, progress=False)


def is_right(case: Case | str, *tools: str) -> None:
    """Demand that cells are right, those of the program that the advice leads to."""
    for tool in tools:
        found = outcome(CASES[case] if isinstance(case, str) else case, tool)
        assert found.kind == "right", f"{found.message}\n{found.where}"


def average_over_draws_or_condition() -> None:
    case = CASES["baseball, full pooling, AutoNormal"]
    programs = case.fresh()
    pair = programs.model, programs.guide
    results = pv.evaluation.evaluate_globals(*pair, case.data(), 5, num_draws=30, seed=0, progress=False)
    phi = torch.stack([programs.guide(*case.data())["phi"] for _ in range(2000)]).detach().numpy()
    expected = stats.binom.pmf(HITS.numpy(), AT_BATS.numpy(), phi[:, None])
    found = np.exp(results.log_likelihood.values)
    error = np.hypot(*(draws.std(0) / draws.mean(0) / np.sqrt(len(draws)) for draws in (found, expected)))
    check_close(results.log_predictive.values, np.log(expected.mean(0)), error, "log p(x) averaged over draws")

    model = CASES["baseball, partial pooling, AutoNormal"].fresh().model
    given = pyro.condition(model, data={"m": torch.tensor(0.3), "kappa": torch.tensor(9.0)})
    results = evaluate(given, NoPooling().guide, (AT_BATS, HITS), 1000)
    exact = stats.betabinom.logpmf(HITS.numpy(), AT_BATS.numpy(), 2.7, 6.3)
    check_close(results.log_likelihood.values, exact, results.mcse.values, "log p(x) given the shared latents")


def condition_on_the_point() -> None:
    case = CASES["Gaussian mixture, AutoDelta"]
    programs = case.fresh()
    values = {name: value.detach() for name, value in programs.guide.median().items()}
    results = evaluate(pyro.condition(programs.model, data=values), lambda x: None, case.data(), 100)
    weights, locs, scale = (values[name].numpy() for name in GLOBALS)
    x = case.data()[0].numpy()[:, None]
    exact = np.log((weights * stats.norm.pdf(x, locs, scale)).sum(-1))
    np.testing.assert_allclose(results.log_likelihood.values, exact, rtol=1e-4)
    is_right("one latent a datum, AutoNormal", "evaluate")  # the guide that samples


def sample_all_entries() -> None:
    def several(model: Any) -> AutoGuideList:
        guide = AutoGuideList(model)
        guide.append(AutoNormal(block(model, hide=["sigma"])))
        guide.append(AutoNormal(block(model, expose=["sigma"])))
        return guide

    case = replace(CASES["regression, AutoGuideList"], build=lambda: Guided(Regression(), several))
    programs = case.fresh()
    options: Any = {"num_draws": 3, "seed": 0, "progress": False}
    results = pv.evaluation.evaluate_globals(programs.model, programs.guide, case.data(), 5, **options)
    assert np.isfinite(results.log_predictive.values).all()
    is_right("one latent a datum, AutoGuideList", "evaluate")


def leave_out_the_mask() -> None:
    def whole() -> tuple[torch.Tensor, torch.Tensor]:
        return CASES["deep Markov model, ragged"].data()[0], torch.full((3,), 3)

    case = CASES["deep Markov model, ragged"]
    is_right(replace(case, build=lambda: DeepMarkovModel(is_masked=False), data=whole), "ais", "nuts")
    is_right(case, "evaluate")


def run_once_a_draw() -> None:
    case = CASES["ProdLDA"]
    programs = case.fresh()
    objective = pv.objectives.IWAE(5, vectorize_particles=False)
    found, own = mean([-objective.loss(programs.model, programs.guide, *case.data()) for _ in range(RUNS)])
    weights = log_weights(case, programs, 5 * 2000).reshape(2000, 5, -1)
    expected, error = mean((np.logaddexp.reduce(weights, axis=1) - np.log(5)).sum(-1))
    check_close(found, expected, np.hypot(own, error), "IWAE_5")


def build_as_it_was_built() -> None:
    """The masks of an autoregressive network are drawn when it is built, so the same seed makes the same network."""
    case = CASES["one latent a datum, AutoIAFNormal"]
    with tempfile.TemporaryDirectory() as folder:
        pv.save(case.fresh(), Path(folder) / "programs.pt")
        other = case.fresh()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1.0)
        pv.load(Path(folder) / "programs.pt", into=other)
    assert all(map(torch.equal, other.parameters(), case.fresh().parameters()))


FOLLOWED: dict[str, tuple[str, str, Callable[[], None]]] = {
    "shared latent": ("baseball, partial pooling, AutoNormal", "evaluate", average_over_draws_or_condition),
    "packed latents": (
        "one latent a datum, AutoDiagonalNormal",
        "evaluate",
        partial(is_right, "one latent a datum, AutoNormal", "IWAE", "evaluate"),
    ),
    "point": ("Gaussian mixture, AutoDelta", "evaluate", condition_on_the_point),
    "partly a point": ("regression, AutoGuideList", "evaluate", sample_all_entries),
    "discrete site": ("M2, labels sampled", "nuts", partial(is_right, "M2, labels sampled", "evaluate")),
    "enumerated in the guide": (
        "M2, labels enumerated in the guide",
        "ais",
        partial(is_right, "M2, labels enumerated in the model", "ais", "evaluate"),
    ),
    "masked site": ("deep Markov model, ragged", "ais", leave_out_the_mask),
    "without latents": ("HMM, vectorized plate", "nuts", partial(is_right, "HMM, vectorized plate", "evaluate")),
    "without inverse": ("baseball, no pooling", "rqmc", partial(is_right, "baseball, no pooling", "evaluate")),
    "one draw a run": ("ProdLDA", "rqmc", partial(is_right, "ProdLDA", "evaluate")),
    "scored together": ("ProdLDA", "IWAE", run_once_a_draw),
    "without reparameterized draws": (
        "M2, labels sampled",
        "IWAE",
        partial(is_right, "M2, labels enumerated in the guide", "fit"),
    ),
    "built in another way": ("one latent a datum, AutoIAFNormal", "save and load", build_as_it_was_built),
    "without a plate": ("HMM, sequential plate", "fit", partial(is_right, "HMM, vectorized plate", "fit", "evaluate")),
}
SLOW = ("masked site", "enumerated in the guide", "one draw a run")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in REFUSALS])
def test_the_advice_of_a_refusal_works(name: str) -> None:
    case, tool, follow = FOLLOWED[name]
    assert CASES[case].refused[tool] == name
    assert outcome(CASES[case], tool).kind == "refused"
    follow()
