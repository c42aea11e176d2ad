"""The terms of the KL divergence against closed forms and mixtures written by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from torch import Tensor

import pyrovae as pv
from tests.oracle import Oracle
from tests.processes import in_each
from tests.scripts import Chain, GammaPoisson, Pixels


def posterior(oracle: Oracle, x: Tensor) -> torch.distributions.Normal:
    with torch.no_grad():
        return oracle.vae.posterior(x).base_dist


def test_kl_per_dimension_is_the_closed_form() -> None:
    oracle = Oracle(0.5, 1.0)
    x = oracle.data(30)
    q = posterior(oracle, x)
    exact = 0.5 * (q.loc**2 + q.scale**2 - 1) - q.scale.log()
    divergences = pv.evaluation.kl_per_dimension(oracle.vae.model, oracle.vae.guide, x, 1, memory=2**12)
    np.testing.assert_allclose(divergences.z, exact, rtol=1e-10)


def test_kl_without_a_closed_form_is_a_mean_over_draws() -> None:
    script = GammaPoisson()
    x = script.data(20)
    divergences = pv.evaluation.kl_per_dimension(script.model, script.guide, x, 4000, seed=0).z[:, 0]
    q = dist.LogNormal(((x + 2) / 2).log(), 0.6)
    z = q.sample((40_000,))
    expected = (q.log_prob(z) - dist.Gamma(torch.tensor(3.0).double(), 1.0).log_prob(z)).mean(0)
    np.testing.assert_allclose(divergences, expected, atol=0.07)


def test_kl_of_layers_and_of_inner_plates() -> None:
    chain, pixels = Chain(), Pixels()
    x = chain.data(10)
    layers = pv.evaluation.kl_per_dimension(chain.model, chain.guide, x, 20_000, seed=0)
    # log q(z1 | x) - log p(z1 | z2), z1 = x / 2 + e and z2 = 0.4 z1 + 0.9 f: z1 and z2 depend on each other, so it is
    # not the divergence of N(x / 2, 1) and N(z2, 1).
    np.testing.assert_allclose(layers.z1[:, 0], 0.5 * ((0.6 * 0.5 * x) ** 2 + 0.6**2 + 0.9**2 - 1), atol=0.08)
    assert layers.sizes == {"datum": 10, "z1_unit": 1, "z2_unit": 1}
    x = pixels.data(4)
    inner = pv.evaluation.kl_per_dimension(pixels.model, pixels.guide, x, 3).z
    np.testing.assert_allclose(inner, 0.5 * ((0.4 * x) ** 2 + 0.81 - 1) - math.log(0.9), rtol=1e-10)


def test_a_site_without_independent_dimensions_counts_as_one(x: Tensor) -> None:
    vae = pv.VAE(
        pv.priors.NormalizingFlow(2, pv.flows.coupling(2)),
        pv.likelihoods.Bernoulli(pv.networks.mlp(2, 6)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(6, 2 * 2)),
    )
    divergences = pv.evaluation.kl_per_dimension(vae.model, vae.guide, x, 50)
    assert divergences.z.shape == (12, 1)
    terms = pv.evaluation.elbo_surgery(vae.model, vae.guide, x)
    assert "total_correlation" not in terms


def test_collapsed_units() -> None:
    oracle = Oracle()
    with torch.no_grad():  # the second unit says nothing, but of one datum in a hundred
        oracle.vae.posterior.network[0].weight[1].zero_()
        oracle.vae.posterior.network[0].weight[3].zero_()
        oracle.vae.posterior.network[0].bias[1] = 0
        oracle.vae.posterior.network[0].bias[3] = 0
    divergences = pv.evaluation.kl_per_dimension(oracle.vae.model, oracle.vae.guide, oracle.data(100))
    assert pv.evaluation.collapsed_units(divergences).z.values.tolist() == [False, True]
    divergences.z[0, 1] = 5.0
    assert pv.evaluation.collapsed_units(divergences).z.values.tolist() == [False, True]
    divergences.z[1, 1] = 5.0
    assert pv.evaluation.collapsed_units(divergences).z.values.tolist() == [False, False]
    assert pv.evaluation.collapsed_units(divergences, delta=0.02).z.values.tolist() == [False, True]
    with pytest.raises(ValueError, match=r"got epsilon=0 and delta=0.01"):
        pv.evaluation.collapsed_units(divergences, epsilon=0)


@pytest.mark.slow
def test_surgery_against_the_mixture_written_by_hand() -> None:
    oracle = Oracle(0.7, 0.3)
    x = oracle.data(90)
    q = posterior(oracle, x)
    z = q.sample((1000,)).flatten(0, 1)  # (draws, 2)
    each = q.log_prob(z[:, None])  # (draws, N, 2)
    aggregate = each.sum(-1).logsumexp(1) - math.log(90)
    units = each.logsumexp(1) - math.log(90)
    own = q.log_prob(z.unflatten(0, (1000, 90))).sum(-1).flatten()
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    expected = {
        "mutual_information": own - aggregate,
        "marginal_kl": aggregate - prior.sum(-1),
        "total_correlation": aggregate - units.sum(-1),
        "dimension_wise_kl": (units - prior).sum(-1),
    }
    exact = (0.5 * (q.loc**2 + q.scale**2 - 1) - q.scale.log()).sum(-1)
    for memory in (2**20, 2**26):
        terms = pv.evaluation.elbo_surgery(oracle.vae.model, oracle.vae.guide, x, 400, seed=0, memory=memory)
        for name, values in expected.items():
            assert float(terms[name].mean()) == pytest.approx(values.mean().item(), abs=0.02), name
        np.testing.assert_allclose(terms.kl, exact, atol=0.2)
        assert float(terms.kl.mean()) == pytest.approx(exact.mean().item(), abs=0.02)
        elbo = oracle.elbo(x).mean().item()
        assert float((terms.reconstruction - terms.kl).mean()) == pytest.approx(elbo, abs=0.03)


def test_terms_add_up() -> None:
    oracle = Oracle(0.7, 0.3)
    terms = pv.evaluation.elbo_surgery(oracle.vae.model, oracle.vae.guide, oracle.data(50), seed=0)
    np.testing.assert_allclose(terms.kl, terms.mutual_information + terms.marginal_kl)
    np.testing.assert_allclose(terms.marginal_kl, terms.total_correlation + terms.dimension_wise_kl)
    assert float(terms.mutual_information.mean()) < math.log(50)


def test_surgery_of_layers_has_the_joint_aggregate() -> None:
    chain = Chain()
    x = chain.data(40)
    terms = pv.evaluation.elbo_surgery(chain.model, chain.guide, x, 200, seed=0)
    assert "total_correlation" not in terms
    z1 = 0.5 * x + torch.randn(2000, 40, dtype=torch.float64)
    z1 = z1.flatten()  # q(z2 | z1) is the same for all data, so it says nothing more of x
    log_q = dist.Normal(0.5 * x, 1.0).log_prob(z1[:, None])
    information = dist.Normal(0.5 * x, 1.0).log_prob(z1.unflatten(0, (2000, 40))).flatten() - (
        log_q.logsumexp(1) - math.log(40)
    )
    assert float(terms.mutual_information.mean()) == pytest.approx(information.mean().item(), abs=0.02)


def test_a_program_that_subsamples() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(4).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=4) as i:
            pyro.sample("z", dist.Normal(x[i] / 2, 0.6))

    x = torch.randn(10, dtype=torch.float64)
    terms = pv.evaluation.elbo_surgery(model, guide, x, 2000, seed=0)
    q = dist.Normal(x / 2, 0.6)
    z = q.sample((20_000,))
    aggregate = q.log_prob(z.flatten()[:, None]).logsumexp(1).unflatten(0, (20_000, 10)) - math.log(10)
    expected = (q.log_prob(z) - aggregate).mean(0)
    np.testing.assert_allclose(terms.mutual_information, expected, atol=0.05)
    divergences = pv.evaluation.kl_per_dimension(model, guide, x)
    np.testing.assert_allclose(divergences.z[:, 0], 0.5 * (x**2 / 4 + 0.36 - 1) - math.log(0.6), rtol=1e-10)


def test_refusals(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(ValueError, match="num_samples, the number of draws per datum, must be at least 1, got 0"):
        pv.evaluation.elbo_surgery(vae.model, vae.guide, x, 0)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("e", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    with pytest.raises(ValueError, match="auxiliary site 'e' of the guide has no counterpart"):
        pv.evaluation.kl_per_dimension(vae.model, guide, x)
    assert isinstance(pv.evaluation.kl_per_dimension(vae.model, vae.guide, x), xr.Dataset)


def tight(x: Tensor) -> None:
    """Return a model of two layers, the second almost a copy of the first."""
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
        z1 = pyro.sample("z1", dist.Normal(z2, 0.1))
        pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


def bottom_up(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(0.5 * x, 0.7))
        pyro.sample("z2", dist.Normal(z1, 0.1))


def test_divergences_add_up_to_the_term_of_the_elbo() -> None:
    x = torch.randn(20, dtype=torch.float64)
    divergences = pv.evaluation.kl_per_dimension(tight, bottom_up, x, 4000, seed=0)
    total = (divergences.z1 + divergences.z2.values).sum("z1_unit")
    terms = pv.evaluation.elbo_surgery(tight, bottom_up, x, 4000, seed=0)
    elbo = pv.evaluation.evaluate(tight, bottom_up, x, 4000, seed=0).elbo
    np.testing.assert_allclose(total, terms.kl, atol=0.1)
    np.testing.assert_allclose(terms.reconstruction - terms.kl, elbo, atol=0.1)


def test_masked_latents_have_no_divergence_and_no_aggregate() -> None:
    x, mask = torch.randn(6, dtype=torch.float64), torch.tensor([True, True, False, True, True, True])

    def model(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, mask: Tensor) -> None:
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(0.5 * x, 0.8))

    divergences = pv.evaluation.kl_per_dimension(model, guide, (x, mask)).z[:, 0]
    exact = 0.5 * ((0.5 * x) ** 2 + 0.64 - 1) - math.log(0.8)
    np.testing.assert_allclose(divergences, exact * mask)
    with pytest.raises(ValueError, match="latent site 'z' is masked"):
        pv.evaluation.elbo_surgery(model, guide, (x, mask))
    for estimator in (pv.evaluation.ais, pv.evaluation.nuts):
        with pytest.raises(ValueError, match="latent site 'z' is masked"):
            estimator(model, guide, (x, mask))


@pytest.mark.parametrize("count", [2, 3])  # problem.few() has two data
def test_enumerated_sites_are_refused(count: int) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(count)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(1.0 * y, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(len(x), count)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x + y, 1.0))

    for diagnostic in (pv.evaluation.kl_per_dimension, pv.evaluation.elbo_surgery):
        with pytest.raises(ValueError, match="the program sums out a discrete latent site"):
            diagnostic(model, guide, torch.randn(5))


def test_a_guide_that_changes_with_every_run_has_no_aggregate(vae: pv.VAE, x: Tensor) -> None:
    vae.posterior = pv.posteriors.SemiAmortized(vae.posterior, steps=3)
    with pytest.raises(ValueError, match="density of the guide differs by"):
        pv.evaluation.elbo_surgery(vae.model, vae.guide, x)


KL: dict[str, Any] = {"seed": 0, "progress": False}


@pytest.mark.parametrize("size", [1, 2, 30])
def test_kl_per_dimension_is_read_from_a_folder_in_which_all_rows_are_done(size: int, tmp_path: Path) -> None:
    oracle = Oracle()
    x = oracle.data(size)
    first, again = (
        pv.evaluation.kl_per_dimension(oracle.vae.model, oracle.vae.guide, x, 3, checkpoint=tmp_path, **KL)
        for _ in range(2)
    )
    assert first.z.dims == ("datum", "z_unit")
    assert again.equals(first)


def divergences_of_one_batch() -> tuple[Any, Any]:
    oracle = Oracle()
    divergences = pv.evaluation.kl_per_dimension(oracle.vae.model, oracle.vae.guide, oracle.data(4), 3, **KL)
    return divergences.z.dims, divergences.z.values.tolist()


@pytest.mark.slow
def test_a_process_without_a_batch_has_the_dimensions_of_the_result() -> None:
    one = divergences_of_one_batch()
    assert in_each(2, divergences_of_one_batch) == [one, one]


def test_latents_with_a_prior_for_each_label_have_no_aggregate() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y, 0.1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(y, 0.1))

    x, y = torch.randn(16), torch.arange(16.0) // 8
    with pytest.raises(ValueError, match="the prior of the latents differs between data"):
        pv.evaluation.elbo_surgery(model, guide, (x, y), **KL)
    terms = pv.evaluation.elbo_surgery(model, guide, (x[8:], y[8:]), **KL)  # the advice: data of one label
    np.testing.assert_allclose(terms.marginal_kl, 0, atol=1e-5)


def test_a_hierarchical_prior_is_the_same_for_all_data() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(top, 0.1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(x / 2, 1.0))
            pyro.sample("z", dist.Normal(top, 0.1))

    terms = pv.evaluation.elbo_surgery(model, guide, torch.randn(70), **KL)
    assert terms.marginal_kl.mean() > 0
