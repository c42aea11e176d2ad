"""Increase of the likelihood of a Gaussian mixture by EM, in half-steps.

Each iteration is split into its half-steps, with log p(x), the ELBO and the KL after each of them. The script checks
the guarantees of EM: the ELBO equals log p(x) after an E step, and no step lowers either. It also compares the
parameters with those of scikit-learn's EM from the same initial values.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor

from experiments import _comparison as comparison
from experiments.em import pictures
from experiments.em.expectation_maximization import (
    HalfStep,
    Parameters,
    climb,
    elbo,
    gap,
    load,
    log_likelihood,
    start,
)


@dataclass
class Options:
    """Options of the experiment."""

    classes: tuple[int, ...] = (2, 3, 8)
    """Digits of the mixture, each represented by its first two principal components."""
    components: int = 3
    """Number of components of the mixture."""
    tolerance: float = 1e-10
    """Tolerance: EM ends when an iteration raises log p(x) by less than this, in nats per datum."""
    max_iterations: int = 1000
    """Maximum number of iterations."""
    seed: int = 0
    """Seed of the initial means, which are random data."""
    out: Path = Path("results/em/mixture")
    """Folder for tables and figures."""


def main(options: Options) -> pd.DataFrame:
    """Run EM. Print and write the table of half-steps and the figures."""
    x = load(options.classes)
    begin = start(x, options.components, options.seed)
    path = list(climb(x, begin, options.tolerance, options.max_iterations))
    table = measure(x, path)
    check(table)
    print(f"\n{len(x)} digits, {options.components} components, {path[-1].iteration} iterations of EM")
    print("nats per datum; error of the identity: log p(x) - ELBO - KL of the sum over the data\n")
    shown = table[table.iteration.isin({0, 1, 2, 3, 5, 10, 20, path[-1].iteration})]
    print(shown.to_string(index=False, float_format="{:.6g}".format))
    print(f"\nlargest error of the identity: {table.error.abs().max():.1e} nats")
    print(f"largest difference from scikit-learn's parameters: {distance_to_sklearn(x, begin.theta, path[-1]):.1e}")
    figures = {"bound": pictures.bound(x, path, table), "mixture": pictures.mixture(x, path)}
    comparison.write(options, table, figures)
    return table


def measure(x: Tensor, path: list[HalfStep]) -> pd.DataFrame:
    """Return one row for each half-step: log p(x), ELBO and KL per datum, and the error of their identity."""
    rows = []
    for iteration, step, theta, q in path:
        evidence, bound, kl = log_likelihood(x, theta), elbo(x, theta, q), gap(x, theta, q)
        per_datum = {"log p(x)": evidence / len(x), "ELBO": bound / len(x), "KL": kl / len(x)}
        rows.append({"iteration": iteration, "step": step, **per_datum, "error": evidence - bound - kl})
    return pd.DataFrame(rows)


def check(table: pd.DataFrame) -> None:
    """Check the guarantees of EM on the measured values.

    Raises:
        ArithmeticError: If a guarantee is violated.
    """
    promises = {
        "log p(x) = ELBO + KL": table.error.abs().max() < 1e-8,
        "the KL is 0 after an E step": table.KL[table.step == "E"].abs().max() < 1e-12,
        "no step lowers the ELBO": table.ELBO.diff().min() > -1e-12,
        "no step lowers log p(x)": table["log p(x)"].diff().min() > -1e-12,
    }
    if broken := [promise for promise, is_kept in promises.items() if not is_kept]:
        raise ArithmeticError(f"EM violates a guarantee: {broken[0]}.")


def distance_to_sklearn(x: Tensor, theta: Parameters, end: HalfStep) -> float:
    """Return the largest parameter difference from scikit-learn's EM after as many iterations from the same start."""
    other = GaussianMixture(
        len(theta.weights),
        tol=0.0,
        reg_covar=0.0,
        max_iter=end.iteration,
        init_params="random",  # overridden by the next three arguments
        weights_init=theta.weights.numpy(),
        means_init=theta.means.numpy(),
        precisions_init=theta.covariances.inverse().numpy(),
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is fixed on purpose
        other.fit(x.numpy())
    pairs = zip(end.theta, (other.weights_, other.means_, other.covariances_), strict=True)
    return max(float(np.abs(ours.numpy() - theirs).max()) for ours, theirs in pairs)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
