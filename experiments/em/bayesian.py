r"""Posterior over the parameters of a mixture, in comparison with the point estimate of EM.

The mixture of the first script gets priors, with the data in units of their standard deviation:

    pi ~ Dirichlet(1), mu_k ~ N(0, 2^2 I), Sigma_k = S_k R_k S_k, S_k ~ LogNormal(-1/2, 1), R_k ~ LKJ(1).

Mean-field stochastic variational inference fits independent normals to the transformed parameters (Pyro's
``AutoNormal``, with z summed out by ``TraceEnum_ELBO``). NUTS on the same program gives the width of the exact
posterior. Both start from the estimate of EM, and therefore in one of the K! labellings. NUTS stays in this labelling
only if the components hardly overlap; its effective sample size shows whether it did. All three are compared by their
predictive density of test digits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
import tyro
import xarray as xr
from matplotlib.figure import Figure
from pyro import poutine
from pyro.infer import MCMC, NUTS, TraceEnum_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.ops.stats import effective_sample_size
from scipy.stats import gaussian_kde
from torch import Tensor, nn

import pyrovae as pv
from experiments import _comparison as comparison
from experiments._comparison import cell
from experiments._figures import printed
from experiments.em import expectation_maximization as em
from experiments.em.expectation_maximization import Parameters
from experiments.em.pictures import ellipse
from pyrovae.plots import style


@dataclass
class Options:
    """Options of the experiment."""

    classes: tuple[int, ...] = (0, 3, 6)
    """Digits of the mixture, represented by two principal components. The default digits hardly overlap."""
    components: int = 3
    """Number of components of the mixture."""
    num_data: int = 100
    """Number of training data. The others are test data."""
    steps: int = 1000
    """Steps of variational inference."""
    learning_rate: float = 0.02
    """Initial learning rate of Adam. A cosine schedule lowers it to a hundredth of this value."""
    num_draws: int = 300
    """Draws of the parameters from each posterior. NUTS uses the same number of warm-up steps."""
    seed: int = 0
    """Seed of EM's initial values, of training and of the draws."""
    out: Path = Path("results/em/bayesian")
    """Folder for tables and figures."""


class BayesianMixture(nn.Module):
    """The mixture with random parameters, and a mean-field guide that starts from a point estimate."""

    def __init__(self, point: Parameters) -> None:
        super().__init__()
        self.components, self.size = point.means.shape
        self.guide = AutoNormal(
            poutine.block(self.model, hide=["z"]),
            init_loc_fn=init_to_value(values=as_values(point)),
            init_scale=0.05,
        )

    def model(self, x: Tensor) -> None:
        """Run the model on data ``x``, shape ``(N, D)``."""
        one = x.new_ones(())
        weights = pyro.sample("weights", dist.Dirichlet(one.expand(self.components)))
        with pyro.plate("components", self.components):
            means = pyro.sample("means", dist.Normal(0 * one, 2.0).expand([self.size]).to_event(1))
            scales = pyro.sample("scales", dist.LogNormal(-0.5 * one, 1.0).expand([self.size]).to_event(1))
            factors = pyro.sample("factors", dist.LKJCholesky(self.size, one))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            scale_tril = scales[..., None] * factors
            pyro.sample("x", dist.MultivariateNormal(means[z], scale_tril=scale_tril[z]), obs=x)


def as_values(point: Parameters) -> dict[str, Tensor]:
    """Return the values of the sites at a point estimate."""
    scales = point.covariances.diagonal(dim1=-2, dim2=-1).sqrt()
    factors = torch.linalg.cholesky(point.covariances) / scales[..., None]
    return {"weights": point.weights, "means": point.means, "scales": scales, "factors": factors}


def as_parameters(draws: Mapping[str, Tensor]) -> Parameters:
    """Return parameters from draws of the sites, with the same leading dimensions."""
    scale_tril = draws["scales"][..., None] * draws["factors"]
    return Parameters(draws["weights"], draws["means"], scale_tril @ scale_tril.mT)


def main(options: Options) -> pd.DataFrame:
    """Fit by EM, variational inference and NUTS. Print and write the tables and the figure."""
    x = em.load(options.classes)
    x = x / x.std(0)
    order = torch.from_numpy(np.random.RandomState(options.seed).permutation(len(x)))
    train, test = x[order[: options.num_data]], x[order[options.num_data :]]

    point = maximum_likelihood(train, options)
    draws = {"SVI, mean field": variational(train, point, options), "NUTS": sampled(train, point, options)}
    table = summarize(point, draws)
    print(f"\nparameters from {len(train)} data: estimate of EM, posterior mean ± standard deviation\n")
    print(table.to_string())
    predictions = {"EM": predict(test, Parameters(*(part[None] for part in point)))}
    predictions |= {name: predict(test, theta) for name, theta in draws.items()}
    print(f"\nlog predictive density of {len(test)} test data, nats per datum\n")
    print(judge(predictions).to_string())
    comparison.write(options, table, {"posterior": draw(train, point, draws)}, results=predictions)
    return table


def maximum_likelihood(x: Tensor, options: Options) -> Parameters:
    """Return the final estimate of EM."""
    *_, end = em.climb(x, em.start(x, options.components, options.seed), 1e-10, 1000)
    return end.theta


def variational(x: Tensor, point: Parameters, options: Options) -> Parameters:
    """Return draws from the mean-field posterior, trained on all data in every step."""
    pyro.set_rng_seed(options.seed)
    module = BayesianMixture(point)
    module.guide(x)  # creates the parameters of the guide
    schedule = partial(
        torch.optim.lr_scheduler.CosineAnnealingLR, T_max=options.steps, eta_min=options.learning_rate / 100
    )
    pv.fit(
        module,
        x,
        objective=TraceEnum_ELBO(max_plate_nesting=1),
        epochs=options.steps,
        batch_size=len(x),
        learning_rate=options.learning_rate,
        scheduler=schedule,
        seed=options.seed,
        device="cpu",
    )
    with torch.no_grad():
        draws = [module.guide(x) for _ in range(options.num_draws)]
    return as_parameters({name: torch.stack([values[name] for values in draws]) for name in draws[0]})


def sampled(x: Tensor, point: Parameters, options: Options) -> Parameters:
    """Return draws from the posterior by one NUTS chain, which starts at the point and thereby keeps its labels."""
    pyro.set_rng_seed(options.seed)
    kernel = NUTS(
        BayesianMixture(point).model, max_plate_nesting=1, init_strategy=init_to_value(values=as_values(point))
    )
    chain = MCMC(kernel, num_samples=options.num_draws, warmup_steps=options.num_draws, disable_progbar=True)
    with pyro.validation_enabled(False):
        chain.run(x)
    theta = as_parameters({name: draws.detach() for name, draws in chain.get_samples().items()})
    sizes = effective_sample_size(theta.means[None])
    print(f"\nNUTS: {options.num_draws} draws, effective sample size of any mean at least {float(sizes.min()):.0f}")
    return theta


def predict(x: Tensor, theta: Parameters) -> xr.Dataset:
    """Return the log density of data, averaged over draws of the parameters, with its Monte Carlo error."""
    components = dist.MultivariateNormal(theta.means, theta.covariances)
    log_prob = dist.MixtureSameFamily(dist.Categorical(theta.weights), components).log_prob(x[:, None])
    num_draws = log_prob.shape[1]
    log_predictive = log_prob.logsumexp(1) - np.log(num_draws)
    ratios = (log_prob - log_predictive[:, None]).exp()
    mcse = ratios.std(1, correction=min(1, num_draws - 1)) / num_draws**0.5
    return xr.Dataset(
        {"log_likelihood": ("datum", log_predictive.numpy()), "mcse": ("datum", mcse.numpy())},
        coords={"datum": np.arange(len(x))},
    )


def summarize(point: Parameters, draws: Mapping[str, Parameters]) -> pd.DataFrame:
    """Return one row for each weight and each coordinate of a mean."""
    table = pd.DataFrame({"EM": {name: f"{float(value):.3f}" for name, value in scalars(point).items()}})
    deviations = {}
    for posterior, theta in draws.items():
        values = scalars(theta)
        deviations[posterior] = {name: float(value.std()) for name, value in values.items()}
        table[posterior] = [
            f"{float(value.mean()):.3f} ± {deviations[posterior][name]:.3f}" for name, value in values.items()
        ]
    first, second = (pd.Series(own) for own in deviations.values())
    return table.assign(**{"ratio of deviations": (first / second).round(2)})


def scalars(theta: Parameters) -> dict[str, Tensor]:
    """Return weights and means by name, each with the leading dimensions of the parameters."""
    components, size = theta.means.shape[-2:]
    weights = {f"weight {k + 1}": theta.weights[..., k] for k in range(components)}
    return weights | {f"mean {k + 1}, {i + 1}": theta.means[..., k, i] for k in range(components) for i in range(size)}


def judge(predictions: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return the log predictive densities, and their paired differences from the first."""
    first = next(iter(predictions.values()))
    rows = {}
    for name, own in predictions.items():
        difference = cell(own.log_likelihood - first.log_likelihood, np.hypot(own.mcse, first.mcse), digits=4)
        rows[name] = {"log p(x)": cell(own.log_likelihood, own.mcse), "difference": "" if own is first else difference}
    return pd.DataFrame(rows).T


@printed
def draw(x: Tensor, point: Parameters, draws: Mapping[str, Parameters]) -> Figure:
    """Draw the posteriors of the means together with the data, and those of the weights with the estimate of EM."""
    figure, (plane, line) = plt.subplots(1, 2, figsize=(style.PAGE, 3.2), layout="constrained")
    plane.plot(*x.T, color="0.75", marker=".", markersize=5, linestyle="", label="data")
    grid = np.linspace(0, 1, 400)
    for i, (name, theta) in enumerate(draws.items()):
        color, dashes = style.color(i), style.LINES[i]
        for k in range(len(point.weights)):
            mean, covariance = theta.means[:, k].mean(0), theta.means[:, k].T.cov()
            ellipse(plane, mean, covariance, color, linestyle=dashes)
            density = gaussian_kde(theta.weights[:, k].numpy())(grid)
            line.plot(grid, density, color=color, linestyle=dashes, label=name if k == 0 else None)
            line.axvline(float(point.weights[k]), color="black", linestyle=":", linewidth=1)
    plane.plot(*point.means.T, color="black", marker="+", markersize=9, linestyle="")
    plane.set(xlabel="first principal component", ylabel="second principal component", title="means, two deviations")
    line.plot([], [], color="black", linestyle=":", linewidth=1, marker="+", markersize=9, label="EM")
    line.set(xlim=(0, 1), ylim=(0, None), xlabel="weight", ylabel="posterior density", title="weights")
    handles, labels = (a + b for a, b in zip(*(ax.get_legend_handles_labels() for ax in (plane, line)), strict=True))
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
