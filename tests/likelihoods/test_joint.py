"""Likelihoods of tables with columns of different kinds, and imputation of all of them."""

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.testing import check_likelihood

mlp, likelihoods = pv.networks.mlp, pv.likelihoods
NAMES = ["height", "weight", "smokes", "group", "visits"]


def table(n: int, seed: int = 0) -> Tensor:
    """Rows of a factor model: two real columns, a binary, a categorical one of three values, and counts."""
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 1, generator=draw)
    noise = torch.randn(n, 2, generator=draw)
    real = torch.cat([z, -z], 1) + 0.2 * noise
    binary = torch.bernoulli(torch.sigmoid(4 * z), generator=draw)
    group = torch.multinomial((3 * z * torch.tensor([-1.0, 0.0, 1.0])).softmax(1), 1, generator=draw).float()
    return torch.cat([real, binary, group, torch.poisson(torch.exp(1 + z), generator=draw)], 1)


def joint(latent: int = 1) -> likelihoods.Joint:
    return likelihoods.Joint(
        {
            ("height", "weight"): likelihoods.Normal(mlp(16, 2 * 2), scale=None, min_scale=0.05),
            "smokes": likelihoods.Bernoulli(mlp(16, 1)),
            "group": likelihoods.Categorical(mlp(16, 3), levels=3),
            "visits": likelihoods.Poisson(mlp(16, 1)),
        },
        network=nn.Sequential(mlp(latent, 16), nn.Tanh()),
    )


def vae_of_table(likelihood: nn.Module) -> pv.VAE:
    encoder = pv.networks.ZeroFilled(mlp((2, 5), 32, 2), event_dim=1)
    return pv.VAE(pv.priors.StandardNormal(1), likelihood, pv.posteriors.DiagonalNormal(encoder))


def test_the_contract_of_a_likelihood() -> None:
    torch.manual_seed(0)
    check_likelihood(joint(latent=3), latent=3, event_shape=(5,))


def test_the_log_density_is_the_sum_over_columns() -> None:
    likelihood, z, x = joint(), torch.randn(4, 7, 1), table(7)
    h = likelihood.network(z)
    columns = {"height": x[:, :2], "smokes": x[:, 2:3], "group": x[:, 3:4], "visits": x[:, 4:]}
    parts = likelihood.columns
    expected = sum(parts[group](h).log_prob(columns[group[0]]) for group in parts)
    torch.testing.assert_close(likelihood(z).log_prob(x), expected)
    assert likelihood.column_names == NAMES


@pytest.mark.parametrize("column", range(5))
def test_nan_means_missing(column: int) -> None:
    likelihood, z, x = joint(), torch.randn(6, 1), table(6)
    entries = likelihood(z).base_dist.log_prob(x)
    holes = x.clone()
    holes[2, column] = torch.nan
    found = likelihood(z).log_prob(holes)
    torch.testing.assert_close(found[2], entries[2].sum() - entries[2, column])
    torch.testing.assert_close(found[[0, 1, 3, 4, 5]], entries[[0, 1, 3, 4, 5]].sum(-1))
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in likelihood.parameters())


def test_beta_and_positive_columns_may_be_missing() -> None:
    likelihood = likelihoods.Joint(
        {"share": likelihoods.Beta(mlp(2, 2)), "income": lambda z: dist.LogNormal(z[..., :1], 1.0).to_event(1)}
    )
    x = torch.tensor([[0.3, torch.nan], [torch.nan, 2.0], [torch.nan, torch.nan]])
    found = likelihood(torch.zeros(3, 2)).log_prob(x)
    assert found.isfinite().all()
    assert found[2] == 0


def test_all_columns_are_imputed() -> None:
    """Held-out entries are closer to the imputed means than to the means of their columns."""
    x = table(1000)
    mask = (torch.rand(1000, 5, generator=torch.Generator().manual_seed(1)) < 0.7).float()
    vae = vae_of_table(likelihoods.Masked(joint()))
    pv.fit(vae, (x * mask, mask), epochs=60, learning_rate=1e-2, batch_size=100, seed=0, progress=False)
    found = pv.evaluation.impute(vae.model, vae.guide, (x * mask, mask), 200, num_imputations=2, seed=0)
    filled, missing = torch.tensor(found["mean"].values), mask == 0
    for column in range(5):
        rows = missing[:, column]
        average = x[~rows, column].mean()
        error, baseline = (x[rows, column] - filled[rows, column]).abs(), (x[rows, column] - average).abs()
        gain = baseline - error
        assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5, NAMES[column]
    drawn = torch.tensor(found["imputations"].values)[:, missing[:, 3], 3]
    assert set(drawn.unique().tolist()) <= {0.0, 1.0, 2.0}
    counts = found["imputations"].values[..., 4]
    assert np.array_equal(counts, counts.round())


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [(2, 0.5, "column 'smokes' holds values"), (3, 3.0, "column 'group'"), (4, -1.0, "column 'visits'")],
)
def test_values_outside_their_column_are_refused_by_name(column: int, value: float, message: str) -> None:
    x = table(5)
    x[1, column] = value
    with pytest.raises(ValueError, match=message):
        joint()(torch.zeros(5, 1)).log_prob(x)


def test_bad_columns_are_refused() -> None:
    with pytest.raises(ValueError, match="must not repeat a name"):
        likelihoods.Joint({"a": likelihoods.Bernoulli(mlp(2, 1)), ("a", "b"): likelihoods.Normal(mlp(2, 2))})
    with pytest.raises(ValueError, match="at least one column"):
        likelihoods.Joint({})
    with pytest.raises(ValueError, match=r"columns \('a', 'b'\) has event shape \(3,\), but \(2,\) is required"):
        likelihoods.Joint({("a", "b"): likelihoods.Normal(mlp(2, 3))})(torch.zeros(4, 2))
    with pytest.raises(TypeError, match="are not independent"):
        likelihoods.Joint({("a", "b"): lambda z: dist.MultivariateNormal(z, torch.eye(2))})(torch.zeros(4, 2))


def test_draws_and_moments() -> None:
    p = joint()(torch.zeros(1, 1))
    draws = p.sample((20_000,)).squeeze(1)
    error = draws.std(0) / len(draws) ** 0.5
    assert ((draws.mean(0) - p.mean.squeeze(0)).abs() < 4 * error).all()
    torch.testing.assert_close(draws.var(0), p.variance.squeeze(0).detach(), rtol=0.1, atol=0.01)
    assert p.expand((3, 1)).sample().shape == (3, 1, 5)


@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_a_wrong_code_is_reported_although_other_values_are_missing(call: str) -> None:
    """The codes of pandas are -1 for missing values, and the message names that column instead of the NaN."""
    x = table(20)
    x[:, 3], x[::2, 0] = -1.0, torch.nan
    vae = vae_of_table(joint())
    with pytest.raises(ValueError, match="column 'group' holds values from -1 "):
        pv.fit(vae, x, epochs=1, progress=False) if call == "fit" else pv.evaluation.evaluate(vae, x, 10, seed=0)


def test_impute_says_how_a_mask_is_made() -> None:
    with pytest.raises(TypeError, match=r"got Tensor. For a tensor x with NaN, pass \(x.nan_to_num"):
        pv.evaluation.impute(vae_of_table(joint()), table(5))  # type: ignore[arg-type]
