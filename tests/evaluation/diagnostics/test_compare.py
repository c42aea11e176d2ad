"""Differences are paired and agree with a computation by hand. Results that are not comparable are refused."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import pyrovae as pv
from pyrovae.evaluation import compare, evaluate
from tests.oracle import Oracle

ATTRIBUTES = {"data_sha1": "ab", "binarization": "static", "base_measure": "counting"}


def results_of(log_likelihood: list[float], mcse: float = 0.1, **attrs: object) -> xr.Dataset:
    values = np.array(log_likelihood)
    return xr.Dataset(
        {"log_likelihood": ("datum", values), "mcse": ("datum", np.full(len(values), mcse))},
        coords={"datum": np.arange(len(values))},
        attrs={**ATTRIBUTES, **attrs},
    )


def test_columns_by_hand() -> None:
    a = results_of([-1.0, -3.0, -5.0, -7.0], mcse=0.3, num_samples=500, estimator="importance sampling")
    a["pareto_k"] = "datum", [0.1, 0.71, 0.7, -np.inf]
    b = results_of([-2.0, -3.0, -7.0, -10.0], mcse=0.4, estimator="annealed importance sampling")
    table = compare({"a": a, "b": b})
    numbers = {
        "log_likelihood": [-4.0, -5.5],
        "error": [np.std([1, 3, 5, 7], ddof=1) / 2, np.std([2, 3, 7, 10], ddof=1) / 2],
        "mcse": [np.nan, 0.4 / 2],  # one datum in four of model a has a k-hat of 0.71
        "difference": [0.0, -1.5],
        "difference_error": [0.0, np.std([1, 0, 2, 3], ddof=1) / 2],
        "difference_mcse": [0.0, np.nan],
        "bias": [np.nan, np.nan],
        "reliable": [0.0, np.nan],  # mcse is 0.3, and a precision of 0.1 is asked for
        "high_pareto_k": [0.25, np.nan],
        "num_samples": [500, np.nan],
    }
    assert list(table.columns) == [*numbers, "estimator"]
    for name, column in numbers.items():
        np.testing.assert_allclose(table[name].astype(float), column, err_msg=name)
        assert table[name].dtype == float, name
    assert table.estimator.tolist() == ["importance sampling", "annealed importance sampling"]


def test_the_bias_is_that_of_a_logarithm_where_weights_have_a_variance() -> None:
    result = results_of([-1.0, -3.0], mcse=0.3)
    result["pareto_k"] = "datum", [0.7, -np.inf]
    assert compare({"a": result}).bias.tolist() == [pytest.approx(-0.045)]


def test_results_without_a_name_are_refused() -> None:
    with pytest.raises(TypeError, match=r"got a single result.* such as compare\(\{'VAE'"):
        compare(results_of([0.0, 1.0]))  # type: ignore[arg-type]


def test_the_reference_is_chosen() -> None:
    results = {"a": results_of([0.0, 2.0]), "b": results_of([1.0, 4.0])}
    assert compare(results).difference.to_dict() == {"a": 0.0, "b": 1.5}
    assert compare(results, reference="b").difference.to_dict() == {"a": -1.5, "b": 0.0}
    assert list(compare(results, reference="b").index) == ["b", "a"]


def test_one_datum_has_no_standard_error() -> None:
    table = compare({"a": results_of([0.0]), "b": results_of([1.0])})
    assert table.difference_error.isna().all()
    assert table.difference["b"] == 1.0


def test_a_missing_mcse_leaves_the_mean_without_one() -> None:
    assert compare({"a": results_of([0.0, 1.0], mcse=np.nan)}).mcse.isna().all()


def test_errors_on_the_oracle() -> None:
    right, wrong = Oracle(), Oracle()
    with torch.no_grad():
        wrong.vae.likelihood.network[0].bias.add_(0.3)
        x = right.data(500)
    results = {
        name: evaluate(oracle.vae.model, oracle.vae.guide, x, 2000, seed=seed, k=[1])
        for seed, (name, oracle) in enumerate({"right": right, "wrong": wrong}.items())
    }
    shifted = Oracle()
    shifted.b = right.b + 0.3
    gain = (shifted.log_likelihood(x) - right.log_likelihood(x)).detach()
    row = compare(results).loc["wrong"]
    assert abs(row.difference - row.bias - float(gain.mean())) < 4 * row.difference_mcse
    assert row.difference_error == pytest.approx(float(gain.std()) / 500**0.5, rel=0.05)
    assert row.difference_error < 0.7 * row.error  # for the data are the same
    assert row.difference_mcse == pytest.approx(row.mcse)  # the other's posterior is exact


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (results_of([0.0, 1.0], data_sha1="cd"), r"'a' and 'b' .* their data_sha1 is 'ab' and 'cd'\. Evaluate both"),
        (results_of([0.0, 1.0], binarization="dynamic"), "'a' and 'b' .* binarization is 'static' and 'dynamic'"),
        (
            results_of([0.0, 1.0], base_measure="Lebesgue", data_sha1="cd"),
            r"'a' and 'b' .* base_measure is 'counting' and 'Lebesgue'\. Compare only densities",
        ),
        (results_of([0.0]), "'a' and 'b' .* their number of data is 2 and 1"),
        (results_of([0.0, 1.0, 2.0]).isel(datum=[0, 2]), "'a' and 'b' hold different data along 'datum'"),
        (results_of([0.0, 1.0]).drop_attrs(), "of 'b' have no attribute 'base_measure'"),
        (results_of([0.0, 1.0]).expand_dims(draw=3), r"of 'b' has dimensions \('draw', 'datum'\)"),
    ],
)
def test_results_that_are_not_comparable_are_refused(other: xr.Dataset, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare({"a": results_of([0.0, 1.0]), "b": other})


def test_a_density_is_not_compared_with_a_probability(vae: pv.VAE, x: torch.Tensor) -> None:
    grey = pv.VAE(vae.prior, lambda z: dist.Normal(vae.likelihood.network(z), 1.0).to_event(1), vae.posterior)
    results = {name: evaluate(each.model, each.guide, x, 30, seed=0) for name, each in {"a": vae, "b": grey}.items()}
    with pytest.raises(ValueError, match="base_measure is 'counting' and 'Lebesgue'"):
        compare(results)


def test_no_results_and_no_reference() -> None:
    with pytest.raises(ValueError, match="no results to compare"):
        compare({})
    with pytest.raises(ValueError, match=r"reference='b' is not the name of a result\. Choose from \['a'\]"):
        compare({"a": results_of([0.0, 1.0])}, reference="b")
