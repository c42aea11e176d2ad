"""Verdicts and predictions are right for proposals that are known to be right, too narrow, too wide or shifted."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr

from pyrovae.evaluation import diagnose, draws_needed, evaluate, log_likelihood, verdicts
from pyrovae.evaluation.diagnostics.tails import is_tail_light, tail_shape
from tests.oracle import Oracle

NAMES = ["reliable", "more draws", "proposal too narrow"]


def results_of(pareto_k: list[float], mcse: list[float], num_samples: int = 1000) -> xr.Dataset:
    return xr.Dataset(
        {"pareto_k": ("datum", np.array(pareto_k)), "mcse": ("datum", np.array(mcse))},
        coords={"datum": np.arange(len(mcse))},
        attrs={"num_samples": num_samples},
    )


@pytest.mark.parametrize(
    ("scale", "shift", "num_samples", "verdict", "share"),
    [
        (1.0, 0.0, 1000, "reliable", 1.0),
        (0.9, 0.0, 1000, "reliable", 1.0),  # k = 1 - 0.9^2 = 0.19
        (1.5, 0.5, 1000, "reliable", 1.0),
        (3.0, 0.0, 1000, "reliable", 1.0),  # a wide proposal has bounded weights
        (5.0, 0.0, 1000, "more draws", 0.8),
        (5.0, 0.0, 4000, "reliable", 1.0),
        (0.4, 0.0, 5000, "proposal too narrow", 0.75),  # k = 0.84; over 8 seeds 0.79 to 0.89
        (0.2, 0.0, 5000, "proposal too narrow", 0.92),  # k = 0.96; over 8 seeds 0.95 to 0.99
        (1.0, 2.0, 1000, "proposal too narrow", 0.9),
        (1.5, 3.0, 1000, "proposal too narrow", 0.9),
    ],
)
def test_verdicts_on_the_oracle(scale: float, shift: float, num_samples: int, verdict: str, share: float) -> None:
    oracle = Oracle(scale, shift)
    results = evaluate(oracle.vae.model, oracle.vae.guide, oracle.data(200), num_samples, seed=0, k=[1])
    assert float((diagnose(results).verdict == verdict).mean()) >= share


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.75**0.5, 0.4**0.5])  # k = 0.25, and 0.6: infinite variance
def test_the_predicted_draws_halve_the_error(scale: float) -> None:
    oracle = Oracle(scale)
    x = oracle.data(1).expand(2000, -1)  # repeats of one datum
    exact = oracle.log_likelihood(x).numpy()
    pilot = evaluate(oracle.vae.model, oracle.vae.guide, x, 1000, seed=0, k=[1])
    precision = float(pilot.mcse.median()) / 2
    predicted = int(draws_needed(pilot, precision).median())
    after = evaluate(oracle.vae.model, oracle.vae.guide, x, predicted, seed=1, k=[1])
    # Where the variance is infinite no mcse is the true error, but both have to fall alike.
    assert float(after.mcse.median()) == pytest.approx(precision, rel=0.1)
    assert spread(after.log_likelihood - exact) == pytest.approx(spread(pilot.log_likelihood - exact) / 2, rel=0.12)
    if scale**2 > 0.5:
        assert float((after.log_likelihood - exact).std()) == pytest.approx(precision, rel=0.1)


def spread(errors: xr.DataArray) -> float:
    """Return half the width of the central 68 %, a standard deviation that is robust to heavy tails."""
    low, high = errors.quantile([0.16, 0.84]).values
    return float(high - low) / 2


def test_draws_needed_by_hand() -> None:
    needed = draws_needed(
        results_of([-np.inf, 0.3, 0.5, 0.6, 0.6, 0.9, 1.0, np.inf], [0.0] + [0.2] * 3 + [0.001] + [0.2] * 3)
    )
    assert needed.dims == ("datum",)
    by_hand = [10, 4000, 4000, math.ceil(1000 * 2**2.5), math.ceil(10**2.5), 10**10, np.inf, np.inf]
    np.testing.assert_allclose(needed, by_hand, rtol=1e-9)


def cascade_results(pareto_k: list[float], mcse: list[float], draws: list[float]) -> xr.Dataset:
    """Return results like those of log_likelihood, which makes different numbers of draws for different data."""
    reliable = ("datum", np.array(mcse) <= 0.1)
    return results_of(pareto_k, mcse, 2000).assign(draws=("datum", np.array(draws)), reliable=reliable)


def test_draws_needed_counts_the_draws_of_each_datum() -> None:
    results = cascade_results([0.3, 0.3, 0.3, np.nan], [0.1, 0.1, 0.1, np.nan], [1000, 2000, 8000, 0])
    np.testing.assert_allclose(draws_needed(results, 0.05), [4000, 8000, 32_000, np.inf])
    assert verdicts(results).draws_needed["reliable"] == 8000
    with pytest.raises(ValueError, match="these results have 20"):
        draws_needed(cascade_results([0.3, 0.3], [0.1, 0.1], [20, 2000]))


def test_a_stricter_precision_counts_for_results_of_log_likelihood() -> None:
    results = cascade_results([0.3, 0.3, np.nan], [0.02, 0.08, np.nan], [2000, 2000, 0])
    assert diagnose(results).verdict.values.tolist() == ["reliable", "reliable", "no estimate"]
    assert diagnose(results, precision=0.05).verdict.values.tolist() == ["reliable", "more draws", "no estimate"]


def test_tails_are_judged_together_if_they_have_equal_numbers_of_draws() -> None:
    k_hat = np.random.default_rng(0).normal(0.5, 0.3, 60)
    counts = np.repeat([500.0, 4000.0, np.nan], 20)
    apart = [is_tail_light(k_hat[:20], 500), is_tail_light(k_hat[20:40], 4000), np.zeros(20, dtype=bool)]
    np.testing.assert_array_equal(is_tail_light(k_hat, counts), np.concatenate(apart))
    assert 0 < np.concatenate(apart).sum() < 40


def test_just_below_one_no_float_is_large_enough() -> None:
    assert draws_needed(results_of([0.9999], [0.2])).item() == np.inf


def test_verdicts_by_hand() -> None:
    # 1,000 draws have a tail of 95, so that 0.45 means 0.445 with an error of 0.148, and 0.6 means 0.611 with 0.165.
    results = results_of([0.45, 0.6, 0.71, 0.2, -np.inf], [0.05, 0.05, 0.01, 0.11, 0.0])
    expected = ["reliable", "proposal too narrow", "proposal too narrow", "more draws", "reliable"]
    assert diagnose(results).verdict.values.tolist() == expected
    assert diagnose(results, precision=0.2).verdict.values.tolist()[3] == "reliable"


def test_k_hat_is_shrunk_towards_its_mean_over_the_data() -> None:
    k_hat = np.full(400, 0.5) + np.random.default_rng(0).normal(0, 0.15, 400)  # the spread equals the error of k-hat
    mean, deviation = tail_shape(k_hat, 1000)
    assert mean.std() < k_hat.std() / 3
    assert deviation.max() < 0.1
    mean, deviation = tail_shape(np.concatenate([k_hat - 1, k_hat + 1]), 1000)  # two kinds of data keep their k
    assert mean[:400].max() < 0 < mean[400:].min()
    assert (tail_shape(np.array([-np.inf, np.inf]), 1000)[0] == [-np.inf, np.inf]).all()


def test_equal_weights_are_reliable_beside_data_of_equal_k() -> None:
    """The spread of k over the data is zero, and so is the error of a datum with equal weights."""
    mean, deviation = tail_shape(np.array([0.3] * 30 + [-np.inf, np.inf]), 1000)
    assert not np.isnan(deviation).any()
    assert is_tail_light(np.array([0.3] * 30 + [-np.inf, np.inf]), 1000).tolist() == [True] * 31 + [False]
    assert mean[-2:].tolist() == [-np.inf, np.inf]


@pytest.mark.parametrize("scale", [0.5**0.5, 0.5, 0.4])  # k = 0.5, 0.75, 0.84
def test_reliable_data_are_covered(scale: float) -> None:
    oracle = Oracle(scale)
    x = oracle.data(1500)
    results = evaluate(oracle.vae.model, oracle.vae.guide, x, 1000, seed=0, k=[1])
    reliable = diagnose(results, precision=0.2).verdict.values == "reliable"
    covered = abs(results.log_likelihood.values - oracle.log_likelihood(x).numpy()) < 1.96 * results.mcse.values
    assert reliable.mean() < 0.05 or covered[reliable].mean() > 0.85


def test_every_estimator_is_judged() -> None:
    chains = results_of([0.3, 0.3], [0.05, 0.4], 32).drop_attrs().assign_attrs(num_chains=32)
    assert diagnose(chains).verdict.values.tolist() == ["more draws", "more draws"]  # too few for a k-hat
    assert diagnose(chains).draws_needed.values.tolist() == [101, 512]
    many = chains.assign_attrs(num_chains=1000)
    assert diagnose(many).verdict.values.tolist() == ["reliable", "more draws"]
    mixed = results_of([0.0, 0.0], [0.01, 0.01]).drop_vars("pareto_k").assign(r_hat=("datum", [1.01, 1.4]))
    assert diagnose(mixed).verdict.values.tolist() == ["reliable", "proposal too narrow"]
    failed = results_of([np.nan, 0.1], [np.nan, 0.01])
    assert diagnose(failed).verdict.values.tolist() == ["no estimate", "reliable"]
    assert list(verdicts(failed).index) == [*NAMES, "no estimate"]


def test_a_diagnosis_is_kept_with_its_results(tmp_path: object) -> None:
    oracle = Oracle(0.7)
    results = evaluate(oracle.vae.model, oracle.vae.guide, oracle.data(10), 100, seed=0)
    diagnosis = diagnose(results, precision=0.2)
    assert diagnosis.attrs == {**results.attrs, "precision": 0.2}
    diagnosis.to_netcdf(tmp_path / "diagnosis.nc")
    with xr.open_dataset(tmp_path / "diagnosis.nc") as again:
        assert again.verdict.values.tolist() == diagnosis.verdict.values.tolist()


def test_the_summary_lists_the_worst_first() -> None:
    results = results_of([0.1, 1.2, 0.2, 0.8, 1.5, 0.3, 0.4], [0.05, 0.1, 0.3, 0.1, 0.1, 0.5, 0.2])
    table = verdicts(results)
    assert list(table.index) == NAMES
    assert table["data"].tolist() == [1, 3, 3]
    np.testing.assert_allclose(table.share, [1 / 7, 3 / 7, 3 / 7])
    assert table.worst.tolist() == [[0], [5, 2, 6], [4, 1, 3]]
    np.testing.assert_allclose(table.draws_needed, [250, 25_000, np.inf])
    assert verdicts(results, worst=2).worst.tolist() == [[0], [5, 2], [4, 1]]
    assert verdicts(results, precision=1.0)["data"].tolist() == [4, 0, 3]
    assert np.isnan(verdicts(results, precision=1.0).draws_needed["more draws"])


def test_the_summary_names_data_by_their_labels() -> None:
    chosen = results_of([0.1, 1.2, 0.9], [0.05, 0.1, 0.1]).isel(datum=[2, 1])
    assert verdicts(chosen).worst["proposal too narrow"] == [1, 2]


@pytest.mark.parametrize(
    ("results", "precision", "message"),
    [
        (results_of([0.1], [0.1]), 0.0, "precision.* positive and finite, got 0.0"),
        (results_of([0.1], [0.1]), math.nan, "precision.* positive and finite, got nan"),
        (results_of([0.1], [0.1]).drop_attrs(), 0.1, "have no attribute 'num_samples'"),
        (results_of([0.1], [0.1]).drop_vars("mcse"), 0.1, "but no 'mcse'"),
    ],
)
def test_results_that_cannot_be_judged_are_refused(results: xr.Dataset, precision: float, message: str) -> None:
    for judge in (diagnose, verdicts):
        with pytest.raises(ValueError, match=message):
            judge(results, precision=precision)


def test_the_summary_is_over_data_alone() -> None:
    two = results_of([0.1], [0.1]).expand_dims(draw=2)
    assert diagnose(two).verdict.sizes == {"draw": 2, "datum": 1}
    with pytest.raises(ValueError, match=r"dimensions \('draw', 'datum'\), but verdicts needs \('datum',\)"):
        verdicts(two)


@pytest.mark.parametrize("judge", [draws_needed, verdicts])
def test_a_dtype_is_no_monte_carlo_error(judge: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"in nats, got 'bfloat16'. .*product_precision='bfloat16'"):
        judge(xr.Dataset(), precision="bfloat16")


def test_log_likelihood_refuses_a_dtype_as_its_monte_carlo_error() -> None:
    oracle = Oracle()
    with pytest.raises(TypeError, match="product_precision='bfloat16'"):
        log_likelihood(oracle.vae.model, oracle.vae.guide, oracle.data(2), precision="bfloat16")  # type: ignore[arg-type]
