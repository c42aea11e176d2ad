"""An autoguide that draws the shared latents as one vector does not pack data."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoGuideList, AutoMultivariateNormal, AutoNormal
from torch import Tensor

import pyrovae as pv
from tests.truth.summed_out import HISTORIES

E = pv.evaluation
X = torch.randn(8, generator=torch.Generator().manual_seed(0)) + 1


def hierarchy(x: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mean, weights[0]))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("shared", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_a_list_of_a_vector_of_shared_latents_and_of_local_ones(shared: type) -> None:
    guide = AutoGuideList(hierarchy)
    guide.append(shared(poutine.block(hierarchy, expose=["mean", "weights"])))
    guide.append(AutoNormal(poutine.block(hierarchy, expose=["z"]), init_scale=1.0))
    guide(X)
    with pytest.raises(ValueError, match=r"'mean' lies outside the data plate .*evaluate_globals"):
        E.evaluate(hierarchy, guide, X, 10, seed=0)
    found = E.evaluate_globals(hierarchy, guide, X, 300, num_draws=20, seed=0, progress=False)
    draws = [guide(X) for _ in range(2000)]
    mean, scale = (torch.stack([f(draw) for draw in draws]) for f in (lambda d: d["mean"], lambda d: d["weights"][0]))
    density = dist.Normal(mean, (1 + scale**2).sqrt()).log_prob(X.unsqueeze(-1)).exp().detach().numpy()
    own = np.exp(found.log_likelihood.values)
    error = np.hypot(own.std(0) / own.mean(0) / 20**0.5, density.std(1) / density.mean(1) / 2000**0.5)
    assert (np.abs(found.log_predictive.values - np.log(density.mean(1))) < 5 * error + 0.01).all()


def test_a_vector_of_the_data_is_still_refused() -> None:
    guide = AutoDiagonalNormal(hierarchy)
    guide(X)
    for call in (E.evaluate, E.evaluate_globals):
        with pytest.raises(ValueError, match="draws the latent sites of all data as one vector"):
            call(hierarchy, guide, X, 10, seed=0)


def survival(captured: Tensor) -> None:
    survival, recapture = (pyro.sample(name, dist.Uniform(0.0, 1.0)) for name in ("survival", "recapture"))
    with pyro.plate("animals", len(captured)):
        alive = torch.ones(len(captured))
        for t in pyro.markov(range(captured.shape[1])):
            alive = pyro.sample(f"alive_{t}", dist.Bernoulli(survival * alive), infer={"enumerate": "parallel"})
            pyro.sample(f"seen_{t}", dist.Bernoulli(recapture * alive), obs=captured[:, t])


def test_a_vector_of_shared_latents_beside_sites_that_are_summed_out() -> None:
    guide = AutoDiagonalNormal(poutine.block(survival, expose=["survival", "recapture"]))
    guide(HISTORIES)
    with pytest.raises(ValueError, match=r"'survival' lies outside the data plate .*evaluate_globals"):
        E.evaluate(survival, guide, HISTORIES, 10, seed=0)
    objective = TraceEnum_ELBO(max_plate_nesting=1)
    with pytest.raises(ValueError, match=r"'survival' lies outside the data plate .* Declare the full size"):
        pv.fit((survival, guide), HISTORIES, objective=objective, epochs=1, batch_size=3, progress=False)
