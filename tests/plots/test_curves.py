"""Curves, bounds and differences show the results that they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pyrovae import plots
from pyrovae.evaluation import compare, evaluate
from pyrovae.training import History
from tests.oracle import Oracle
from tests.plots.examples import CURVES, TABLE


def test_learning_curves() -> None:
    history = History("IWAE", train=[-300.0] + [-100.0 + i for i in range(20)], valid=[-300.0] + [-101.0] * 20)
    ax = plots.learning_curves({"a": history, "b": History("IWAE", train=[-90.0])})
    assert [line.get_label() for line in ax.lines] == ["a, train", "a, valid", "b, train"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.train)
    assert ax.get_ylim()[0] > -120  # the first steps do not squeeze the rest
    assert "nats" in ax.get_ylabel()


def test_learning_curves_mark_the_end_of_the_warmup() -> None:
    history = History("IWAE", train=[-3.0, -2.0, -1.0], kl_weight=[0.5, 1.0, 1.0])
    line = plots.learning_curves({"a": history, "b": history}).lines[-1]
    assert line.get_label() == "KL weight reaches 1"
    assert list(line.get_xdata()) == [1, 1]


def test_bounds() -> None:
    oracle = Oracle(scale=1.4)
    x = oracle.data(30)
    result = evaluate(oracle.vae.model, oracle.vae.guide, x, 60, seed=0)
    given = plt.subplots()[1]
    ax = plots.bounds({"oracle": result}, ax=given)
    assert ax is given
    (container,) = ax.containers
    np.testing.assert_allclose(container.lines[0].get_ydata(), result.iwae.mean("datum"))
    (band,) = ax.collections[:1]
    height = np.ptp(band.get_paths()[0].vertices[:, 1][np.isclose(band.get_paths()[0].vertices[:, 0], 60)])
    assert height == pytest.approx(2 * float(result.log_likelihood.std(ddof=1)) / 30**0.5)


def test_a_bound_of_doubtful_error_is_hollow() -> None:
    doubtful = CURVES.assign(pareto_k=("datum", [0.1, 0.2, 0.3, 0.9, 0.1]))
    ax = plots.bounds({"doubtful": doubtful, "sound": CURVES.assign(pareto_k=("datum", [0.1] * 5))})
    bars = [container.lines[2][0].get_segments() for container in ax.containers]
    assert [sum(len(bar) == 2 and bool(np.isfinite(bar).all()) for bar in part) for part in bars] == [3, 4]
    (hollow,) = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    assert list(hollow.get_xdata()) == [500]
    assert hollow.zorder > max(container.lines[0].zorder for container in ax.containers)  # and so it can be seen


def test_results_without_bounds_or_of_other_measures_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the result 'a' has no bounds. Pass results of pyrovae.evaluation.evaluate"):
        plots.bounds({"a": CURVES.drop_dims("k")})
    counts = CURVES.assign_attrs(base_measure="counting")
    with pytest.raises(ValueError, match="different base measures"):
        plots.bounds({"a": counts, "b": CURVES.assign_attrs(base_measure="Lebesgue")})


def test_differences_have_both_errors() -> None:
    ax = plots.differences(TABLE)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["IWAE", "flow"]
    assert ax.get_ylim() == (1.5, -0.5)  # from top to bottom
    data, monte_carlo = ax.containers
    np.testing.assert_allclose(data.lines[0].get_xdata(), [2, -1])
    np.testing.assert_allclose(np.ptp(data.lines[2][0].get_segments()[0][:, 0]), 2 * 1.96 * 0.5)
    np.testing.assert_allclose(np.ptp(monte_carlo.lines[2][0].get_segments()[0][:, 0]), 2 * 1.96 * 0.1)
    assert "VAE" in ax.get_xlabel()
    assert "nats" in ax.get_xlabel()


def test_differences_of_compare() -> None:
    oracle, other = Oracle(scale=1.4), Oracle(scale=1.1)
    x = oracle.data(30)
    results = {
        name: evaluate(each.vae.model, each.vae.guide, x, 60, seed=0)
        for name, each in (("a", oracle), ("b", other), ("c", other))
    }
    ax = plots.differences(compare(results, reference="b"))
    assert "a" in [label.get_text() for label in ax.get_yticklabels()]


def test_differences_of_another_table_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no columns \['difference_mcse'\]. Pass the table of pyrovae.evaluation.compare"
    ):
        plots.differences(TABLE.drop(columns="difference_mcse"))
    with pytest.raises(ValueError, match=r"only the reference, \['VAE'\]. Compare at least two"):
        plots.differences(TABLE[:1])
