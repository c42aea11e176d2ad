"""Figures of posterior predictive checks and of calibration."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pyrovae import plots
from tests.plots.examples import check_of, ranks_of


def test_posterior_predictive() -> None:
    random = np.random.default_rng(0)
    observed = np.array([0.0, 0.5, 9.0])
    replicated = random.normal(size=(1000, 3))
    ax = plots.posterior_predictive(check_of(observed, replicated), statistic="largest pixel")
    inside, outside = ax.containers
    np.testing.assert_allclose(inside.lines[0].get_xdata(), observed[:2])
    np.testing.assert_allclose(outside.lines[0].get_ydata(), replicated[:, 2:].mean(0))
    low, high = inside.lines[2][0].get_segments()[0][:, 1]
    np.testing.assert_allclose([low, high], np.quantile(replicated[:, 0], [0.05, 0.95]))
    assert [text.get_text()[-5:] for text in ax.get_legend().get_texts()] == ["(67%)", "(33%)"]
    with pytest.raises(ValueError, match=r"has no \['replicated'\]. Pass a result of"):
        plots.posterior_predictive(check_of(observed, replicated).drop_vars("replicated"))


def test_calibration_marks_the_units_that_are_not_calibrated() -> None:
    random = np.random.default_rng(3)
    ranks = random.integers(0, 100, (500, 3))
    ranks[:, 1] = ranks[:, 1] // 2  # the latents lie below the draws
    ax = plots.calibration(ranks_of(ranks))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["95% band of uniform ranks", "z, unit 1"]
    line = next(line for line in ax.lines if line.get_label() == "z, unit 1")
    assert line.get_ydata().max() == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_the_band_of_calibration_holds_uniform_ranks() -> None:
    random = np.random.default_rng(1)
    runs, left = 100, 0
    for _ in range(runs):
        ax = plots.calibration(ranks_of(random.integers(0, 100, (200, 4))), ax=plt.figure().subplots())
        left += len(ax.get_legend().get_texts()) > 1
        plt.close("all")
    assert left <= 5 + 4 * np.sqrt(runs * 0.05 * 0.95)


def test_calibration_of_several_sites() -> None:
    ranks = np.random.default_rng(0).integers(0, 100, (200, 1))
    result = ranks_of(ranks, w=ranks)
    assert plots.calibration(result, site="w").get_ylabel()
    with pytest.raises(ValueError, match=r"sites \['z', 'w'\], but site=None. Pass one of these sites as site="):
        plots.calibration(result)
