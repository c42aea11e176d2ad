"""One check for each tool: the tool's result on a program agrees with Pyro or with an independent log p(x)."""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI

import pyrovae as pv
from pyrovae._compilation.graphs import Graph
from tests.conftest import interpret
from tests.programs.case import Case
from tests.programs.reference import log_evidence, log_weights, summarize

RUNS = 20  # runs of a loss whose mean is compared
ERRORS = 5.0  # standard errors by which two estimates may differ
ROUNDING = 2e-3  # nats per datum
fit = partial(pv.fit, progress=False, device="cpu", seed=0)


def check_close(found: Any, expected: Any, error: Any, what: str) -> None:
    """Compare two estimates with a multiple of their standard error."""
    difference = np.abs(np.asarray(found) - np.asarray(expected))
    assert (difference <= ERRORS * np.asarray(error) + ROUNDING).all(), (
        f"{what}: {found} and {expected} differ by more than {ERRORS:g} errors of {error}"
    )


def mean(values: Any) -> tuple[float, float]:
    """Return the mean of numbers and its standard error."""
    values = np.asarray(values, dtype=float)
    return values.mean(), values.std(ddof=1) / np.sqrt(len(values))


def check_fit(case: Case) -> None:
    """The history holds Pyro's ELBO at the same parameters, and training moves the parameters."""
    programs, data, elbo = case.fresh(), case.data(), case.elbo()
    expected, error = mean([-elbo.loss(programs.model, programs.guide, *data) / case.size for _ in range(RUNS)])
    options: Any = {"objective": case.elbo(), "batch_size": case.size}
    history = fit((programs.model, programs.guide), data, epochs=RUNS, learning_rate=1e-30, **options)
    found, own = mean(history.train)
    check_close(found, expected, np.hypot(error, own), "ELBO of the history")
    before = state(programs)
    fit((programs.model, programs.guide), data, epochs=2, learning_rate=1e-2, **options)
    after = state(programs)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items()), "no parameter has moved"


def check_svi(case: Case) -> None:
    """pv.SVI has the losses of pyro.infer.SVI."""
    np.testing.assert_allclose(losses(case, pv.SVI), losses(case, SVI), rtol=1e-4, atol=1e-4)


def check_compile(case: Case) -> None:
    """Traced steps, without the compiler behind them, have the losses of pyro.infer.SVI."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Graph, "compile", interpret)
        compiled = losses(case, partial(pv.SVI, compile=True))
    np.testing.assert_allclose(compiled, losses(case, SVI), rtol=1e-3, atol=1e-3)


def losses(case: Case, make: Callable[..., Any]) -> list[float]:
    """Return the losses of four steps."""
    programs, data = case.fresh(), case.data()
    svi = make(programs.model, programs.guide, pyro.optim.Adam({"lr": 1e-2}), case.elbo())
    return [float(svi.step(*data)) for _ in range(4)]


def check_iwae(case: Case) -> None:
    """The bound of five draws is that of Pyro's log-weights; with an enumerating guide, many draws give log p(x)."""
    programs, data = case.fresh(), case.data()
    particles = 1000 if case.guide_enumerates else 5
    objective = pv.objectives.IWAE(particles)
    with torch.no_grad():
        values = [-objective.loss(programs.model, programs.guide, *data) for _ in range(RUNS)]
    found, own = mean(values)
    if case.guide_enumerates:
        exact, error = log_evidence(case)
        check_close(found + np.var(values) / 2, exact.sum(), np.hypot(own, np.linalg.norm(error)), "IWAE_1000")
        return
    weights = log_weights(case, programs, particles * RUNS).reshape(RUNS, particles, -1)
    expected, error = mean((np.logaddexp.reduce(weights, axis=1) - np.log(particles)).sum(-1))
    check_close(found, expected, np.hypot(own, error), "IWAE_5")


def check_evaluate(case: Case) -> None:
    """The ELBO of each datum is Pyro's, and the estimate of log p(x) agrees with the reference."""
    programs = case.fresh()
    results = pv.evaluation.evaluate(programs.model, programs.guide, case.data(), 1000, seed=0, progress=False)
    _check_log_likelihood(case, results)
    if not case.guide_enumerates:
        reference = log_weights(case, case.unpenalized(), 60)
        error = np.hypot(reference.std(0, ddof=1) / np.sqrt(len(reference)), results.elbo_mcse.values)
        check_close(results.elbo.values, reference.mean(0), error, "ELBO of a datum")


def check_estimator(case: Case, estimate: Callable[..., Any]) -> None:
    """The estimate of log p(x) agrees with the reference."""
    programs = case.fresh()
    results = estimate(programs.model, programs.guide, case.data(), seed=0, progress=False)
    _check_log_likelihood(case, results)


def _check_log_likelihood(case: Case, results: Any) -> None:
    exact, error = log_evidence(case)
    found = results.log_likelihood.values
    check_close(found, exact, np.hypot(error, results.mcse.values), "log p(x) of a datum")


def check_inference_data(case: Case) -> None:
    """Draws have shapes by datum, weights estimate log p(x), and the observed data are those passed."""
    programs = case.fresh()
    options: Any = {"weights": "raw", "num_prior_draws": 0, "seed": 0, "progress": False}
    found = pv.evaluation.to_inference_data(programs.model, programs.guide, case.data(), 400, **options)
    estimate, own = summarize(found["sample_stats"]["log_weights"].values[0])
    exact, error = log_evidence(case)
    check_close(estimate, exact, np.hypot(own, error), "log p(x) by the weights of the draws")
    for group in ("posterior", "posterior_predictive"):
        for name, values in found[group].data_vars.items():
            assert values.shape[:2] == (1, 400), (group, name)
            assert values.sizes["datum"] == case.size, (group, name)
    for name, values in found["observed_data"].data_vars.items():
        shape = values.shape
        assert found["posterior_predictive"][name].shape[2:] == shape, name


def check_checkpoint(case: Case) -> None:
    """A run that goes on from its folder ends with the parameters of a run without interruption."""
    ends = []
    for parts in ((4,), (2, 4)):
        with tempfile.TemporaryDirectory() as folder:
            programs = case.fresh()
            for epochs in parts:
                where = None if parts == (4,) else Path(folder)
                options: Any = {"objective": case.elbo(), "batch_size": case.size, "learning_rate": 1e-2}
                pair = programs.model, programs.guide
                fit(pair, case.data(), epochs=epochs, checkpoint=where, **options)
            ends.append(state(programs))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def check_save_and_load(case: Case) -> None:
    """A module that is built anew has the saved module's losses after loading."""
    with tempfile.TemporaryDirectory() as folder:
        programs = case.fresh()
        pv.SVI(programs.model, programs.guide, pyro.optim.Adam({"lr": 1e-2}), case.elbo()).step(*case.data())
        pv.save(programs, Path(folder) / "programs.pt")
        expected = _loss(case, programs)
        other = case.fresh(seed=1)
        pv.load(Path(folder) / "programs.pt", into=other)
        assert _loss(case, other) == pytest.approx(expected, rel=1e-5)


def _loss(case: Case, programs: Any) -> float:
    pyro.set_rng_seed(3)
    return case.elbo().loss(programs.model, programs.guide, *case.data())


def state(programs: Any) -> dict[str, torch.Tensor]:
    """Return copies of all parameters, those of Pyro's store among them."""
    own = copy.deepcopy(programs.state_dict())
    stored = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return {**own, **stored}


CHECKS: dict[str, Callable[[Case], None]] = {
    "fit": check_fit,
    "SVI": check_svi,
    "IWAE": check_iwae,
    "evaluate": check_evaluate,
    "log_likelihood": partial(
        check_estimator, estimate=partial(pv.evaluation.log_likelihood, num_samples=1000, precision=0.2)
    ),
    "ais": partial(check_estimator, estimate=partial(pv.evaluation.ais, num_chains=32, num_temperatures=20)),
    "rqmc": partial(check_estimator, estimate=partial(pv.evaluation.rqmc, num_samples=1024)),
    "nuts": partial(
        check_estimator, estimate=partial(pv.evaluation.nuts, num_samples=60, warmup_steps=40, max_tree_depth=3)
    ),
    "inference data": check_inference_data,
    "checkpoint": check_checkpoint,
    "save and load": check_save_and_load,
    "compile": check_compile,
}
