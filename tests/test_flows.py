"""Flows: the Jacobian agrees with autograd, both directions are inverse, and the import changes no setting."""

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
import zuko
from torch import nn

from pyrovae import flows
from pyrovae.distributions import NormalizingFlow

FLOWS = {
    "coupling": lambda latent, context: flows.coupling(latent, context=context, depth=3),
    "spline coupling": lambda latent, context: flows.coupling(latent, context=context, univariate="spline"),
    "autoregressive": lambda latent, context: flows.autoregressive(latent, context=context, depth=3),
    "spline autoregressive": lambda latent, context: flows.autoregressive(latent, context=context, univariate="spline"),
    "inverse autoregressive": lambda latent, context: flows.inverse_autoregressive(latent, context=context, depth=3),
    "zuko": lambda latent, context: zuko.flows.NSF(latent, context, transforms=2).transform.inv,
}


def perturbed(flow: nn.Module) -> nn.Module:
    """Return the flow in float64 with perturbed parameters, because some flows start at the identity."""
    flow = flow.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return flow


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("context", [0, 2])
def test_density_is_the_change_of_variables(name: str, context: int) -> None:
    flow = perturbed(FLOWS[name](3, context))
    h = torch.randn(2, dtype=torch.float64) if context else None
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    noise = torch.randn(3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flow(h), noise)
    expected = base.log_prob(noise) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(NormalizingFlow(base, flow(h)).log_prob(flow(h)(noise)), expected)


@pytest.mark.parametrize("name", FLOWS)
def test_a_draw_is_scored_as_the_same_value_from_elsewhere(name: str) -> None:
    flow = perturbed(FLOWS[name](3, 2))
    base = dist.Normal(torch.zeros(4, 3, dtype=torch.float64), 1.0).to_event(1)
    p = NormalizingFlow(base, flow(torch.randn(4, 2, dtype=torch.float64)))
    z = p.rsample((5,))
    assert p.batch_shape == (4,)
    torch.testing.assert_close(p.log_prob(z), p.log_prob(z.clone()))
    torch.testing.assert_close(p.expand((2, 4)).log_prob(z[:2]), p.log_prob(z[:2]))


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_of_a_draw_score_and_of_the_same_value_agree(name: str) -> None:
    flow = perturbed(FLOWS[name](3, 0))
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    noise = base.sample((6,))

    def gradients(fresh: bool) -> list[torch.Tensor]:
        transform = flow(None)
        p = NormalizingFlow(base, transform)
        torch.manual_seed(0)
        z = p.rsample((6,))
        log_prob = p.log_prob(z.clone() if fresh else z)
        return list(torch.autograd.grad(log_prob.sum(), list(flow.parameters())))

    del noise
    for first, second in zip(gradients(fresh=False), gradients(fresh=True), strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("name", FLOWS)
def test_one_latent_dimension(name: str) -> None:
    flow = FLOWS[name](1, 2)
    base = dist.Normal(torch.zeros(4, 1), 1.0).to_event(1)
    p = NormalizingFlow(base, flow(torch.randn(4, 2)))
    assert p.log_prob(p.sample((5,))).shape == (5, 4)


@pytest.mark.parametrize("latent", [1, 4])
@pytest.mark.parametrize("make", [flows.coupling, flows.autoregressive])
def test_a_flow_starts_near_its_base(make: Callable[[int], nn.Module], latent: int) -> None:
    noise = torch.randn(1000, latent)
    assert (make(latent)()(noise) - noise).abs().max() < 0.3


def test_the_gate_is_that_of_the_paper() -> None:
    flow = perturbed(flows.inverse_autoregressive(3, depth=1))
    z = torch.randn(5, 3, dtype=torch.float64)
    m, s = flow.transforms[0].hyper(z).unflatten(-1, (3, 2)).unbind(-1)
    sigma = torch.sigmoid(s + 2)
    torch.testing.assert_close(flow()(z), sigma * z + (1 - sigma) * m)


def test_inverse_autoregressive_flow_is_autoregressive_in_the_noise() -> None:
    flow = perturbed(flows.inverse_autoregressive(4, depth=1))
    jacobian = torch.autograd.functional.jacobian(flow(), torch.randn(4, dtype=torch.float64))
    assert jacobian.triu(1).eq(0).all()
    assert jacobian.tril(-1).ne(0).any()


def test_validation_stays_as_it_was() -> None:
    assert torch.distributions.Distribution._validate_args
    with pytest.raises(ValueError, match="scale"):
        torch.distributions.Normal(0.0, -1.0)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="latent=0"):
        flows.coupling(0)
    with pytest.raises(ValueError, match="depth=0"):
        flows.inverse_autoregressive(2, depth=0)
    with pytest.raises(ValueError, match=r"univariate must be one of .* got 'cubic'"):
        flows.autoregressive(2, univariate="cubic")
