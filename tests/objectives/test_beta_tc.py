"""The weights by which a mini-batch estimates the aggregate posterior."""

from itertools import permutations

import pyro
import pytest
import torch
from torch import Tensor

from pyrovae.objectives import BetaTC
from pyrovae.objectives.beta_tc import BatchWeights, log_batch_weights
from tests.conftest import small_vae
from tests.objectives.correlated import Correlated, OneDraw


def by_the_authors(n: int, size: int) -> Tensor:
    """The importance weights of the code that accompanies the paper, in its own notation."""
    m = n - 1
    odd = (size - m) / (size * m)
    table = torch.full((n, n), 1 / m)
    table.view(-1)[:: m + 2] = 1 / size
    table.view(-1)[1 :: m + 2] = odd
    table[m, 0] = odd
    return table


@pytest.mark.parametrize(("n", "size"), [(2, 2), (2, 9), (5, 5), (5, 40), (64, 1000)])
def test_stratified_weights_are_those_of_the_paper(n: int, size: int) -> None:
    found = log_batch_weights(torch.zeros(n, 1), size, "stratified").exp()
    torch.testing.assert_close(found, by_the_authors(n, size))
    torch.testing.assert_close(found.sum(1), torch.ones(n))


@pytest.mark.parametrize("weights", ["even", "stratified"])
def test_batches_estimate_the_aggregate_without_bias(weights: BatchWeights) -> None:
    """The mean over all ordered batches with datum 0 is the density of all data at its draw."""
    toy, x, z = Correlated(), torch.randn(5, 2).double(), torch.randn(2).double()

    def guide(batch: Tensor) -> None:
        with pyro.plate("data", len(batch)):
            pyro.sample("z", OneDraw(batch @ toy.gain.T, toy.scale, z))

    own = torch.distributions.Normal(x[0] @ toy.gain.T, toy.scale).log_prob(z).sum()
    objective = BetaTC(data_size=5, weights=weights)
    densities = torch.stack(
        [
            (own - objective.terms(toy.model, guide, x[[0, *others]]).mutual_information[0]).exp()
            for others in permutations(range(1, 5), 2)
        ]
    )
    of_all = torch.distributions.Normal(x @ toy.gain.T, toy.scale).log_prob(z).sum(-1).exp().mean()
    torch.testing.assert_close(densities.mean(), of_all)


def test_the_terms_are_those_of_the_weights(x: Tensor) -> None:
    vae, size = small_vae(), 40
    pyro.set_rng_seed(3)
    terms = BetaTC(data_size=size, weights="stratified").terms(vae.model, vae.guide, x)
    pyro.set_rng_seed(3)
    q = vae.posterior(x).base_dist
    z = q.sample()
    pairs = torch.distributions.Normal(q.loc, q.scale).log_prob(z.unsqueeze(1)).detach()
    table = by_the_authors(len(x), size).log()
    joint, apart = (table + pairs.sum(-1)).logsumexp(1), (table[..., None] + pairs).logsumexp(1).sum(-1)
    torch.testing.assert_close(terms.total_correlation, joint - apart)
    torch.testing.assert_close(terms.mutual_information, pairs.diagonal().sum(0) - joint)


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="weights='odd' must be one of"):
        BetaTC(data_size=9, weights="odd")  # type: ignore[arg-type]
