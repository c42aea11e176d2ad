"""Ladder VAE: one layer is a plain VAE, densities agree with algebra, and every parameter has a gradient."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

import pyrovae as pv
from experiments.reproduce.ladder import LadderVAE, Moments, merge

DIGITS = pv.data.digits("static")


def ladder(latents: tuple[int, ...] = (6, 4, 2), hidden: tuple[int, ...] = (16, 12, 8), **options: Any) -> LadderVAE:
    pyro.set_rng_seed(0)
    return LadderVAE((8, 8), latents, hidden, **options)


class OneLayer(nn.Module):
    """The posterior of a plain VAE, made of the networks of a ladder with one layer."""

    def __init__(self, up: nn.Module, moments: Moments) -> None:
        super().__init__()
        self.up, self.moments = up, moments

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        loc, variance = self.moments(self.up(x.flatten(-2)))
        return dist.Normal(loc, variance.sqrt()).to_event(1)


def test_one_layer_is_a_plain_vae() -> None:
    one, x = ladder((6,), (16,)), DIGITS.train[:50]
    decoder = nn.Sequential(one.decoder, nn.Unflatten(-1, (8, 8)))
    posterior = OneLayer(one.up[0], one.up_moments[0])
    plain = pv.VAE(pv.priors.StandardNormal(6), pv.likelihoods.Bernoulli(decoder), posterior)
    losses = []
    for each in (one, plain):
        pyro.set_rng_seed(1)
        losses.append(Trace_ELBO().loss(each.model, each.guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    one.eval()
    pairs = [pv.evaluation.evaluate(each, x[:10], 50, seed=2) for each in (one, plain)]
    assert pairs[0].log_likelihood.values == pytest.approx(pairs[1].log_likelihood.values, abs=1e-4)


def test_the_merged_density_is_the_posterior_of_a_normal_observation() -> None:
    prior, seen, z = (torch.randn(7, 3, dtype=torch.float64) for _ in range(3))
    prior_variance, seen_variance = (torch.rand(7, 3, dtype=torch.float64) + 0.1 for _ in range(2))
    loc, variance = merge((seen, seen_variance), (prior, prior_variance))
    joint = dist.Normal(prior, prior_variance.sqrt()).log_prob(z) + dist.Normal(z, seen_variance.sqrt()).log_prob(seen)
    evidence = dist.Normal(prior, (prior_variance + seen_variance).sqrt()).log_prob(seen)
    torch.testing.assert_close(dist.Normal(loc, variance.sqrt()).log_prob(z), joint - evidence)
    torch.testing.assert_close(1 / variance, 1 / prior_variance + 1 / seen_variance)


def test_the_densities_of_the_programs_are_those_of_the_formulas() -> None:
    vae, x = ladder().double().eval(), DIGITS.test[:5].double()
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x)
    z1, z2, z3 = (guide.nodes[f"z{layer}"]["value"] for layer in (1, 2, 3))
    up1, up2, up3 = vae.bottom_up(x)
    log_q = normal(z3, *up3) + normal(z2, *merge(up2, vae.down[1](z3))) + normal(z1, *merge(up1, vae.down[0](z2)))
    log_p = normal(z3, torch.zeros(2), torch.ones(2)) + normal(z2, *vae.down[1](z3)) + normal(z1, *vae.down[0](z2))
    logits = vae.decoder(z1)
    log_p = log_p + (x.flatten(1) * logits - nn.functional.softplus(logits)).sum(-1)
    torch.testing.assert_close(guide.log_prob_sum(), log_q.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(model.log_prob_sum(), log_p.sum(), rtol=1e-12, atol=0)


def normal(z: Tensor, loc: Tensor, variance: Tensor) -> Tensor:
    return (-((z - loc) ** 2) / (2 * variance) - variance.log() / 2 - math.log(2 * math.pi) / 2).sum(-1)


def test_sites_have_the_shapes_of_the_layers_also_with_many_draws() -> None:
    vae, x = ladder(), DIGITS.test[:5]
    with pyro.plate("draws", 3, dim=-2):
        guide = poutine.trace(vae.guide).get_trace(x)
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x)
    assert {name: tuple(guide.nodes[name]["value"].shape) for name in ("z1", "z2", "z3")} == {
        "z1": (3, 5, 6), "z2": (3, 5, 4), "z3": (3, 5, 2)
    }  # fmt: skip
    assert model.nodes["x"]["fn"].batch_shape == (3, 5)


def test_every_parameter_has_a_gradient() -> None:
    vae = ladder()
    Trace_ELBO().differentiable_loss(vae.model, vae.guide, DIGITS.train[:50]).backward()
    without = [name for name, each in vae.named_parameters() if each.grad is None or not each.grad.abs().sum() > 0]
    assert without == []


def test_only_training_depends_on_the_batch() -> None:
    vae, x = ladder(), DIGITS.test[:6]
    with torch.no_grad():
        assert (vae.bottom_up(x)[0][0][:3] - vae.bottom_up(x[:3])[0][0]).abs().max() > 0.01  # by batch normalization
        vae.eval()
        for few, all_of_them in zip(vae.bottom_up(x[:3]), vae.bottom_up(x), strict=True):
            torch.testing.assert_close(few, (all_of_them[0][:3], all_of_them[1][:3]))
    assert math.isfinite(pv.objectives.IWAE(5).loss(vae.model, vae.guide, x))  # a dependence on other data would raise


def test_training_raises_the_bound() -> None:
    vae = ladder(batch_norm=False)
    history = pv.fit(vae, DIGITS.train, epochs=3, learning_rate=3e-3, seed=0, progress=False)
    assert history.train[-1] > history.train[0] + 3


def test_layers_need_a_width_each() -> None:
    with pytest.raises(ValueError, match="got 2 latents and 1 widths"):
        LadderVAE((8, 8), (4, 2), (16,))
    with pytest.raises(ValueError, match="got 0 latents"):
        LadderVAE((8, 8), (), ())
