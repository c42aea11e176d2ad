"""Sites that only the model sums out are drawn from their posterior if draws are requested."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import Tensor

import pyrovae as pv
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
model = config_enumerate(label_first)
DRAWS = 1000


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.7 * x, 1.0))


def exact_labels() -> np.ndarray:
    """Return p(y | x), shape ``(N, 3)``."""
    terms = dist.Normal(MEANS, (1 + NOISE**2) ** 0.5).log_prob(X.unsqueeze(-1)) + WEIGHTS.log()
    return terms.softmax(-1).numpy()


def check_shares(drawn: np.ndarray, exact: np.ndarray, num_draws: int) -> None:
    assert (np.abs(drawn - exact) < 5 * np.sqrt(exact * (1 - exact) / num_draws) + 1e-9).all(), (drawn, exact)


@pytest.mark.parametrize("vectorize", [True, False])
def test_labels_of_posterior_and_predictions(vectorize: bool) -> None:
    count = DRAWS if vectorize else 100
    data = E.to_inference_data(model, guide, X, 2 * count, num_draws=count, seed=0, vectorize=vectorize)
    y, z = (data["posterior"][name].values[0] for name in "yz")
    shares = np.stack([(y == value).mean(0) for value in range(3)], -1)
    check_shares(shares, exact_labels(), 0.4 * count)  # resampled draws are not independent
    weight = 1 / (1 + NOISE**2)  # E[z | x, y] = m_y + (x - m_y) / (1 + noise^2)
    expected = (exact_labels() * (MEANS.numpy() + (X.numpy()[:, None] - MEANS.numpy()) * weight)).sum(-1)
    assert np.abs(z.mean(0) - expected).max() < 5 / (0.4 * count) ** 0.5
    assert data["posterior_predictive"]["x"].shape == (1, count, 4)
    assert set(data["prior"].data_vars) == {"y", "z"}
    if vectorize:  # labels and z belong together
        slope = np.polyfit(MEANS.numpy()[y[:, 1]], z[:, 1], 1)[0]
        assert slope == pytest.approx(1 - weight, abs=0.15)


def test_checks_by_replicates_of_a_program_that_sums_out_a_site() -> None:
    found = E.posterior_predictive_check(model, guide, X, lambda x: x, 2 * DRAWS, num_draws=DRAWS, seed=0)
    weight = 1 / (1 + NOISE**2)
    expected = (exact_labels() * (MEANS.numpy() + (X.numpy()[:, None] - MEANS.numpy()) * weight)).sum(-1)
    assert np.abs(found.replicated.values.mean(0) - expected).max() < 5 * 1.2 / (0.4 * DRAWS) ** 0.5


def test_chains_with_masks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ gives warnings
        data = E.to_inference_data(capture_recapture, lambda x: None, HISTORIES, 5, num_draws=DRAWS, seed=0)
    alive = data["posterior"]["alive_3"].values[0].mean(0)
    exact = []
    for history in HISTORIES.numpy():
        first, last = history.argmax(), history.nonzero()[0][-1]
        lived = 0.6 ** (3 - last) * 0.2 ** (3 - last)  # survived and was not seen after the last capture
        until = probability_of(history[: last + 1]) if last > first else 1.0
        exact.append(until * lived / probability_of(history))
    check_shares(alive, np.array(exact), DRAWS)
    assert data["posterior"]["alive_0"].values[0, :, 5].min() == 1  # before its first capture an animal lives


def test_labels_of_words_in_documents() -> None:
    words = torch.tensor([[0, 1, 1], [2, 0, 2]])
    topics = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])

    def lda(words: Tensor) -> None:
        with pyro.plate("documents", len(words), dim=-2):
            share = pyro.sample("share", dist.Beta(2.0, 3.0))
            with pyro.plate("words", words.shape[1], dim=-1):
                topic = pyro.sample("topic", dist.Bernoulli(share), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(topics[topic.long()]), obs=words)

    def own(words: Tensor) -> None:
        with pyro.plate("documents", len(words), dim=-2):
            pyro.sample("share", dist.Beta(1.5, 2.0))

    data = E.to_inference_data(lda, own, words, 2 * DRAWS, num_draws=DRAWS, seed=0)
    share = np.linspace(5e-4, 1 - 5e-4, 1000)
    likelihood = [topics[0, word].item() * (1 - share) + topics[1, word].item() * share for word in words.flatten()]
    each = np.array(likelihood).reshape(2, 3, -1)
    joint = share * (1 - share) ** 2 * each.prod(1)
    one = topics[1][words].numpy()[..., None] * share / each
    exact = (joint[:, None] * one).sum(-1) / joint.sum(-1)[:, None]
    drawn = data["posterior"]["topic"]
    assert drawn.dims[-1] == "words"
    check_shares(drawn.values[0].mean(0), exact, 0.4 * DRAWS)
