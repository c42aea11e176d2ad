"""Settings of components, in their repr and in the comparison with saved files."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.components import describe
from tests.components import LIKELIHOODS, POSTERIORS, PRIORS
from tests.conftest import small_vae

mlp, likelihoods, posteriors, priors = pv.networks.mlp, pv.likelihoods, pv.posteriors, pv.priors
Pair = tuple[Callable[[], nn.Module], Callable[[], nn.Module]]


def pair(make: Callable[..., nn.Module], name: str, one: Any, other: Any) -> Pair:
    return partial(make, **{name: one}), partial(make, **{name: other})


def autoencoder(penalty: Any = None, corruption: Any = None) -> nn.Module:
    return pv.autoencoders.Autoencoder(mlp(4, 2), mlp(2, 4), penalty=penalty, corruption=corruption)


def fixed(distribution: Any) -> nn.Module:
    return pv.VAE(distribution, likelihoods.Normal(mlp(2, 4)), posteriors.DiagonalNormal(mlp(4, 4)))


NUMBERS: dict[str, Pair] = {
    "levels": pair(lambda levels: likelihoods.DiscretizedLogistic(mlp(2, 8), levels), "levels", 17, 256),
    "unit": pair(lambda unit: likelihoods.Poisson(mlp(2, 4), unit=unit), "unit", 1.0, 0.5),
    "total_count": pair(lambda total_count: likelihoods.Binomial(mlp(2, 4), total_count), "total_count", 4, 16),
    "min_scale": pair(
        lambda min_scale: likelihoods.Laplace(mlp(2, 8), None, min_scale=min_scale), "min_scale", 0.1, 0.2
    ),
    "scale": pair(lambda scale: likelihoods.Normal(mlp(2, 4), scale), "scale", 1.0, 0.1),
    "min_concentration": (lambda: likelihoods.Beta(mlp(2, 8), 0.0), lambda: likelihoods.Beta(mlp(2, 8), 1.0)),
    "dim": pair(lambda dim: likelihoods.Beta(mlp(2, (4, 4)), dim=dim), "dim", -1, -2),
    "zero_inflated": pair(
        lambda zero_inflated: likelihoods.Poisson(mlp(2, 4), zero_inflated=zero_inflated), "zero_inflated", True, False
    ),
    "df": pair(lambda df: posteriors.StudentT(mlp(4, 4), df), "df", 3.0, 5.0),
    "rank": pair(lambda rank: posteriors.MultivariateNormal(mlp(4, 12), rank), "rank", 1, 2),
    "steps": pair(lambda steps: posteriors.SemiAmortized(posteriors.Laplace(mlp(4, 4)), steps), "steps", 5, 9),
    "weight": pair(autoencoder, "penalty", pv.autoencoders.L1(0.1), pv.autoencoders.L1(0.2)),
    "u": pair(autoencoder, "corruption", pv.autoencoders.Masking(0.1), pv.autoencoders.Masking(0.2)),
    "p": (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.5)),
    "prior distribution .*type": (
        lambda: fixed(dist.Normal(torch.zeros(2), 1.0).to_event(1)),
        lambda: fixed(dist.Laplace(torch.zeros(2), 1.0).to_event(1)),
    ),
    "prior .*loc": (
        lambda: fixed(dist.Normal(torch.zeros(30), 1.0).to_event(1)),
        lambda: fixed(dist.Normal(torch.ones(30), 1.0).to_event(1)),
    ),
    "prior .*scale": (
        lambda: fixed(dist.Normal(torch.zeros(2), 1.0).to_event(1)),
        lambda: fixed(dist.Normal(torch.zeros(2), 2.0).to_event(1)),
    ),
    "prior .*LogNormal": (
        lambda: fixed(dist.LogNormal(torch.zeros(2), 1.0).to_event(1)),
        lambda: fixed(dist.Normal(torch.zeros(2), 1.0).to_event(1)),
    ),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_another_number_is_refused_by_name(name: str, tmp_path: Path) -> None:
    one, other = NUMBERS[name]
    pv.save(one(), tmp_path / "module.pt")
    pv.load(tmp_path / "module.pt", into=one())
    with pytest.raises(ValueError, match=name):
        pv.load(tmp_path / "module.pt", into=other())


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_each_part_comes_back(mode: bool, tmp_path: Path) -> None:
    vae, other = small_vae(), small_vae()
    vae.train(mode)
    vae.likelihood.network[0].train(not mode)
    pv.save(vae, tmp_path / "vae.pt")
    pv.load(tmp_path / "vae.pt", into=other)
    assert [part.training for part in other.modules()] == [part.training for part in vae.modules()]


CONTEXTS: dict[str, tuple[dict[str, Any], tuple[int, ...] | None]] = {
    "prior": (PRIORS, None),
    "likelihood": (LIKELIHOODS, (2, 3)),
    "posterior": (POSTERIORS, (2, 4, 6)),
}
MODULES = [
    (role, name) for role, (parts, _) in CONTEXTS.items() for name, part in parts.items() if isinstance(part, nn.Module)
]


@pytest.mark.parametrize(("role", "name"), MODULES)
def test_use_does_not_change_a_description(role: str, name: str) -> None:
    parts, shape = CONTEXTS[role]
    component = copy.deepcopy(parts[name])
    before = describe(component)
    p = component(*(() if shape is None else (torch.rand(shape),)))
    p.log_prob(p.sample())
    assert describe(component) == before
    assert repr(component)


def test_lazy_parameters_of_a_fixed_prior_are_no_difference() -> None:
    prior = priors.Fixed(dist.OneHotCategorical(torch.ones(3)))
    before = describe(prior)
    prior().log_prob(prior().sample())
    assert prior().logits is not None
    assert describe(prior) == before


def test_a_repr_is_the_call() -> None:
    assert repr(likelihoods.Binomial(mlp(2, 4), 16)) == "Binomial(network=Sequential(12 parameters), total_count=16)"
    assert repr(priors.VampPrior(5, (2,))) == "VampPrior(components=5, event_shape=(2))"
    assert repr(small_vae()).splitlines()[:2] == ["VAE(", "  prior=StandardNormal(latent=2),"]
    joint = likelihoods.Joint({"a": likelihoods.Bernoulli(mlp(2, 1))})
    assert "('a'): Bernoulli(network=" in repr(joint) or "'a'" in repr(joint)


def test_a_table_for_notebooks() -> None:
    vae = small_vae()
    table = vae._repr_html_()
    assert table.startswith("<table><caption>VAE</caption>")
    assert f"{sum(p.numel() for p in vae.parameters()):,}" in table
    vae.prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
    assert "Fixed(distribution=Independent(Normal" in vae._repr_html_()


def test_codes_of_data(x: torch.Tensor) -> None:
    vae = small_vae()
    torch.testing.assert_close(vae.encode(x).mean, vae.posterior(x).mean)
    assert vae.encode(x).rsample().requires_grad
    with pytest.raises(ValueError, match="posterior"):
        vae.encode(torch.zeros(3, 5))


def test_testing_needs_no_import_of_its_own() -> None:
    pv.testing.check_prior(priors.StandardNormal(2), latent=2)
