r"""How does EM climb the likelihood of a Gaussian mixture?

With p(z = k) = pi_k and p(x | z = k) = N(mu_k, Sigma_k), for any q(z),

    log p(x) = ELBO(q, theta) + KL(q || p(z | x, theta)).

The E step sets q to the posterior, here by Pyro's enumeration of z: the KL is 0 and the bound touches log p(x). The M
step moves theta to the bound's maximum, in closed form: log p(x) rises by as much as the bound or more, and the
difference is the new KL. The three terms come by three ways (torch's density of a mixture, an enumerated
``TraceEnum_ELBO``, Bayes' rule), so that their identity is a check; scikit-learn's EM from the same start is another.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from pyro.infer import TraceEnum_ELBO
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from torch import Tensor
from torch.distributions import kl_divergence

import pyrovae as pv
from experiments import _comparison as comparison


@dataclass
class Options:
    """Options of the experiment."""

    classes: tuple[int, ...] = (2, 3, 8)
    """Digits that are mixed, each given by its first two principal components."""
    components: int = 3
    """Components of the mixture."""
    tolerance: float = 1e-10
    """EM ends when an iteration raises log p(x) by less, in nats per datum."""
    max_iterations: int = 1000
    """Or after so many iterations."""
    seed: int = 0
    """Seed of the start: means at random data."""
    out: Path = Path("results/em/mixture")
    """Folder for tables and figures."""


class Parameters(NamedTuple):
    """theta: weights (K,), means (K, D) and covariances (K, D, D)."""

    weights: Tensor
    means: Tensor
    covariances: Tensor


class HalfStep(NamedTuple):
    """Where EM is after a step: parameters, and a categorical q(z) for each datum."""

    iteration: int
    step: str
    theta: Parameters
    q: dist.Categorical


def model(x: Tensor, theta: Parameters) -> None:
    """The mixture, as a Pyro program in which z is to be summed over."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(theta.weights), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.MultivariateNormal(theta.means[z], theta.covariances[z]), obs=x)


def guide(x: Tensor, q: dist.Categorical) -> None:
    """Any q(z), summed over too."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", q, infer={"enumerate": "parallel"})


def no_guide(x: Tensor) -> None:
    """Leaves z to the model."""


def e_step(x: Tensor, theta: Parameters) -> dist.Categorical:
    """The q(z) that maximizes the bound: p(z | x, theta)."""
    return TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(partial(model, theta=theta), no_guide, x)["z"]


def m_step(x: Tensor, q: dist.Categorical) -> Parameters:
    """The parameters that maximize the bound: moments of the data, weighted by q."""
    sizes = q.probs.sum(0)
    means = q.probs.T @ x / sizes[:, None]
    centred = x - means[:, None]
    covariances = torch.einsum("nk,kni,knj->kij", q.probs, centred, centred) / sizes[:, None, None]
    return Parameters(sizes / len(x), means, covariances)


def log_likelihood(x: Tensor, theta: Parameters) -> float:
    """The log-likelihood log p(x | theta), nats summed over the data."""
    components = dist.MultivariateNormal(theta.means, theta.covariances)
    return float(dist.MixtureSameFamily(dist.Categorical(theta.weights), components).log_prob(x).sum())


def elbo(x: Tensor, theta: Parameters, q: dist.Categorical) -> float:
    """The bound, nats summed over the data; z is enumerated, so there is no Monte Carlo error."""
    return -TraceEnum_ELBO(max_plate_nesting=1).loss(partial(model, theta=theta), partial(guide, q=q), x)


def gap(x: Tensor, theta: Parameters, q: dist.Categorical) -> float:
    """KL(q || p(z | x, theta)), nats summed over the data, with the posterior by Bayes' rule."""
    of_component = dist.MultivariateNormal(theta.means, theta.covariances).log_prob(x[:, None])
    return float(kl_divergence(q, dist.Categorical(logits=theta.weights.log() + of_component)).sum())


def start(x: Tensor, components: int, seed: int) -> HalfStep:
    """Means at random data, the covariance of all data, and a q that knows nothing."""
    chosen = np.random.RandomState(seed).choice(len(x), components, replace=False)
    weights = x.new_full((components,), 1 / components)
    theta = Parameters(weights, x[chosen], x.T.cov().expand(components, -1, -1))
    return HalfStep(0, "start", theta, dist.Categorical(weights.expand(len(x), -1)))


def climb(x: Tensor, state: HalfStep, tolerance: float, max_iterations: int) -> Iterator[HalfStep]:
    """The start, and E and M steps by turns until log p(x) rises no more."""
    yield state
    before = log_likelihood(x, state.theta)
    for iteration in range(1, max_iterations + 1):
        q = e_step(x, state.theta)
        yield HalfStep(iteration, "E", state.theta, q)
        state = HalfStep(iteration, "M", m_step(x, q), q)
        yield state
        now = log_likelihood(x, state.theta)
        if now - before < tolerance * len(x):
            return
        before = now


def load(classes: tuple[int, ...]) -> Tensor:
    """Digits of these classes by their first two principal components, in units of a pixel's grey range; float64."""
    splits = pv.data.digits()
    if splits.labels is None:
        raise ValueError("digits have labels")
    images = splits.train[torch.isin(splits.labels[0], torch.tensor(classes))].flatten(1).double()
    centred = images - images.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T


def main(options: Options) -> pd.DataFrame:
    """Runs EM; prints and writes the table of half-steps and the figures."""
    x = load(options.classes)
    begin = start(x, options.components, options.seed)
    path = list(climb(x, begin, options.tolerance, options.max_iterations))
    table = measure(x, path)
    check(table)
    print(f"\n{len(x)} digits, {options.components} components, {path[-1].iteration} iterations of EM")
    print("nats per datum; the identity's error, log p(x) - ELBO - KL, is that of the sum over the data\n")
    shown = table[table.iteration.isin({0, 1, 2, 3, 5, 10, 20, path[-1].iteration})]
    print(shown.to_string(index=False, float_format="{:.6g}".format))
    print(f"\nlargest error of the identity: {table.error.abs().max():.1e} nats")
    print(f"largest difference from scikit-learn's parameters: {distance_to_sklearn(x, begin.theta, path[-1]):.1e}")
    comparison.write(options, table, {"bound": draw_bound(x, path, table), "mixture": draw_mixture(x, path)})
    return table


def measure(x: Tensor, path: list[HalfStep]) -> pd.DataFrame:
    """One row a half-step: log p(x), ELBO and KL per datum, and the error of their identity."""
    rows = []
    for iteration, step, theta, q in path:
        evidence, bound, kl = log_likelihood(x, theta), elbo(x, theta, q), gap(x, theta, q)
        per_datum = {"log p(x)": evidence / len(x), "ELBO": bound / len(x), "KL": kl / len(x)}
        rows.append({"iteration": iteration, "step": step, **per_datum, "error": evidence - bound - kl})
    return pd.DataFrame(rows)


def check(table: pd.DataFrame) -> None:
    """Holds EM's promises against the figures.

    Raises:
        ArithmeticError: If one is broken.
    """
    promises = {
        "log p(x) = ELBO + KL": table.error.abs().max() < 1e-8,
        "the KL is 0 after an E step": table.KL[table.step == "E"].abs().max() < 1e-12,
        "no step lowers the ELBO": table.ELBO.diff().min() > -1e-12,
        "no step lowers log p(x)": table["log p(x)"].diff().min() > -1e-12,
    }
    if broken := [promise for promise, is_kept in promises.items() if not is_kept]:
        raise ArithmeticError(f"EM breaks its promise that {broken[0]}")


def distance_to_sklearn(x: Tensor, theta: Parameters, end: HalfStep) -> float:
    """Largest difference of a parameter from that of scikit-learn after as many iterations from the same start."""
    other = GaussianMixture(
        len(theta.weights),
        tol=0.0,
        reg_covar=0.0,
        max_iter=end.iteration,
        init_params="random",  # overridden by the three that follow
        weights_init=theta.weights.numpy(),
        means_init=theta.means.numpy(),
        precisions_init=theta.covariances.inverse().numpy(),
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is to make just so many iterations
        other.fit(x.numpy())
    pairs = zip(end.theta, (other.weights_, other.means_, other.covariances_), strict=True)
    return max(float(np.abs(ours.numpy() - theirs).max()) for ours, theirs in pairs)


def draw_bound(x: Tensor, path: list[HalfStep], table: pd.DataFrame, iterations: int = 5) -> Figure:
    """Bishop's pictures: log p(x) taken apart at each half-step, and the bounds along the way of two M steps."""
    figure, (bars, curves) = plt.subplots(1, 2, figsize=(9.5, 3.8), layout="constrained")
    first = table[table.iteration <= iterations]
    names = ["start", *(f"{row.step}$_{{{row.iteration}}}$" for row in first.itertuples() if row.iteration)]
    floor = first.ELBO.iloc[0] - 0.05 * (first["log p(x)"].iloc[-1] - first.ELBO.iloc[0])
    bars.bar(names, first.ELBO - floor, bottom=floor, color="C0", alpha=0.8, label=r"ELBO$(q, \theta)$")
    bars.bar(names, first.KL, bottom=first.ELBO, color="C1", label=r"KL$(q \,\|\, p(z \mid x, \theta))$")
    bars.scatter(names, first["log p(x)"], color="black", marker="_", s=250, label=r"$\log p(x \mid \theta)$")
    bars.set(ylabel="nats per datum", ylim=(floor, None), xlabel="half-step")
    bars.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize="small")
    _curves(curves, x, path)
    return figure


def _curves(ax: Axes, x: Tensor, path: list[HalfStep]) -> None:
    """Draws log p(x) along a curve from the start through the first M step, and the bounds of two E steps."""
    first, second = path[1], path[3]
    places = np.linspace(-0.3, 1.4, 80)
    thetas = [along(first.theta, second.theta, float(place)) for place in places]
    ax.plot(places, [log_likelihood(x, theta) / len(x) for theta in thetas], color="black")
    for i, (place, state) in enumerate(((0.0, first), (1.0, second))):
        bound = [elbo(x, theta, state.q) / len(x) for theta in thetas]
        ax.plot(places, bound, color=f"C{2 * i}", label=f"ELBO$(q_{i + 1}, \\theta)$")
        ax.plot(place, elbo(x, state.theta, state.q) / len(x), color=f"C{2 * i}", marker="o")
    ax.axvline(1.0, color="0.7", linestyle=":", linewidth=1, zorder=0)
    ax.set(xlabel=r"$\theta$, from $\theta_0$ (0) through $\theta_1$ (1)", ylabel="nats per datum")
    ax.plot([], [], color="black", label=r"$\log p(x \mid \theta)$")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize="small")


def along(begin: Parameters, end: Parameters, place: float) -> Parameters:
    """A point on the curve through two parameters, straight in log-weights, means and Cholesky factors."""

    def between(a: Tensor, b: Tensor) -> Tensor:
        return a + place * (b - a)

    factors = between(*map(torch.linalg.cholesky, (begin.covariances, end.covariances)))
    weights = between(begin.weights.log(), end.weights.log()).softmax(-1)
    return Parameters(weights, between(begin.means, end.means), factors @ factors.mT)


def draw_mixture(x: Tensor, path: list[HalfStep]) -> Figure:
    """The data, coloured by q, and the components' two-sigma ellipses: at the start, on the way, and at the end."""
    last = path[-1].iteration
    shown = [state for state in path if state.step != "E" and state.iteration in {0, 1, min(5, last), last}]
    figure, axes = plt.subplots(1, len(shown), figsize=(2.9 * len(shown), 3.0), layout="constrained")
    low, high = x.numpy().min(0), x.numpy().max(0)
    limits = np.array([low, high]) + 0.1 * np.array([low - high, high - low])
    colors = plt.get_cmap("Set2")(np.arange(len(path[0].theta.weights)))
    for ax, state in zip(np.atleast_1d(axes), shown, strict=True):
        ax.scatter(*x.T, s=5, c=np.clip(state.q.probs.numpy() @ colors, 0, 1))
        for mean, covariance in zip(state.theta.means, state.theta.covariances, strict=True):
            ellipse(ax, mean, covariance, "black")
        plural = "" if state.iteration == 1 else "s"
        title = "start" if state.iteration == 0 else f"after {state.iteration} iteration{plural}"
        ax.set(title=title, xticks=[], yticks=[], xlim=limits[:, 0], ylim=limits[:, 1], aspect="equal")
    return figure


def ellipse(ax: Axes, mean: Tensor, covariance: Tensor, color: str, label: str | None = None) -> None:
    """Draws the mean and the two-sigma ellipse of a normal distribution."""
    variances, axes = np.linalg.eigh(covariance.numpy())
    angle = float(np.degrees(np.arctan2(*axes[::-1, 1])))
    width, height = 4 * np.sqrt(variances[::-1])
    ax.add_patch(
        Ellipse((float(mean[0]), float(mean[1])), width, height, angle=angle, fill=False, edgecolor=color, label=label)
    )
    ax.plot(*mean.tolist(), color=color, marker="+", markersize=7)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
