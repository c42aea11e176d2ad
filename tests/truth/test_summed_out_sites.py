"""Sites that are summed out: masked ones on which others depend, and ones that the model needs before the guide."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate
from scipy import stats
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program, check_close
from tests.truth.summed_out import (
    HISTORIES,
    MEANS,
    NOISE,
    WEIGHTS,
    X,
    capture_recapture,
    label_first,
    probability_of,
)

E = pv.evaluation


@pytest.mark.parametrize("by_handler", [True, False])
def test_a_masked_site_keeps_its_probabilities_for_the_sites_that_depend_on_it(by_handler: bool) -> None:
    def model(captured: Tensor) -> None:
        capture_recapture(captured, by_handler=by_handler)

    exact = np.log([probability_of(history) for history in HISTORIES.numpy()])
    for vectorize in (True, False):
        found = E.evaluate(model, lambda captured: None, HISTORIES, 2, seed=0, vectorize=vectorize).log_likelihood
        np.testing.assert_allclose(found, exact, atol=1e-5)
    if by_handler:  # Pyro sums over the values of a distribution with a mask of its own as if all had probability one
        loss = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda captured: None, HISTORIES)
        assert -loss == pytest.approx(exact.sum(), abs=1e-4)


def label_last(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.7 * x, 0.8))
        logits = -0.3 * (z.unsqueeze(-1) - MEANS) ** 2
        pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


def exact_mixture(x: Tensor) -> np.ndarray:
    densities = stats.norm.pdf(x.numpy()[:, None], MEANS.numpy(), (1 + NOISE**2) ** 0.5)
    return np.log(densities @ WEIGHTS.numpy())


@pytest.mark.parametrize("model", [label_first, config_enumerate(label_first)])
@pytest.mark.parametrize("vectorize", [True, False])
def test_a_latent_that_the_model_draws_after_a_label_and_the_guide_before(model: Program, vectorize: bool) -> None:
    check_close(E.evaluate(model, label_last, X, 1000, seed=0, vectorize=vectorize), exact_mixture(X))


def test_a_chain_of_labels_that_the_guide_enumerates() -> None:
    transition = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    x = torch.tensor([[-2.1, 0.3, 1.4], [2.6, 2.0, -1.0]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y: int | Tensor = 0
            for t in pyro.markov(range(x.shape[1])):
                y = pyro.sample(f"y_{t}", dist.Categorical(transition[y]))
                z = pyro.sample(f"z_{t}", dist.Normal(MEANS[y], 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, NOISE), obs=x[:, t])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for t in pyro.markov(range(x.shape[1])):
                pyro.sample(f"z_{t}", dist.Normal(0.7 * x[:, t], 0.8))
                uniform = dist.Categorical(torch.ones(len(x), 3))
                pyro.sample(f"y_{t}", uniform, infer={"enumerate": "parallel"})

    message = np.eye(3)[[0, 0]]
    for t in range(3):
        emission = stats.norm.pdf(x[:, t].numpy()[:, None], MEANS.numpy(), (1 + NOISE**2) ** 0.5)
        message = (message @ transition.numpy()) * emission
    check_close(E.evaluate(model, guide, x, 1000, seed=0), np.log(message.sum(-1)))


def test_the_iwae_bound_of_a_latent_that_the_model_draws_after_a_label() -> None:
    losses = [pv.objectives.IWAE(200).loss(label_first, label_last, X) for _ in range(10)]
    assert abs(np.mean(losses) + exact_mixture(X).sum()) < 5 * np.std(losses) / 10**0.5 + 0.02
