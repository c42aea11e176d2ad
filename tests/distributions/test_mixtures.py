"""The density of a mixture of diagonal normal distributions against the class of torch in float64."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv
from pyrovae.distributions import mixture

COMPONENTS, LATENT = 60, 3
Parameters = tuple[Tensor, Tensor, Tensor]


def parameters(loc: float = 2.0, scale: float = 0.5) -> Parameters:
    """Return the logits, locations of about the size ``loc``, and scales of about the size ``scale``."""
    return (
        torch.randn(COMPONENTS),
        loc * torch.randn(COMPONENTS, LATENT),
        scale * torch.randn(COMPONENTS, LATENT).exp(),
    )


def fast(logits: Tensor, loc: Tensor, scale: Tensor) -> Any:
    return mixture(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))


def exact(logits: Tensor, loc: Tensor, scale: Tensor, z: Tensor) -> Tensor:
    logits, loc, scale, z = (each.double() for each in (logits, loc, scale, z))
    return dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1)).log_prob(z)


@pytest.mark.parametrize("shape", [(), (5,), (4, 5)])
@pytest.mark.parametrize("scale", [1e-3, 0.5, 1e4])
@pytest.mark.parametrize("loc", [0.0, 2.0, 100.0])
def test_values_in_float32_are_exact_to_rounding(loc: float, scale: float, shape: tuple[int, ...]) -> None:
    some = parameters(loc, scale)
    z = loc * torch.randn(*shape, LATENT) + scale * torch.randn(*shape, LATENT)
    found = fast(*some).log_prob(z)
    assert found.dtype == torch.float32
    assert found.shape == shape
    torch.testing.assert_close(found.double(), exact(*some, z), rtol=2e-7, atol=1e-5)


def test_gradients_are_exact_to_rounding() -> None:
    inputs = [each.requires_grad_() for each in (*parameters(), torch.randn(11, LATENT))]
    *some, z = inputs
    found = torch.autograd.grad(fast(*some).log_prob(z).sum(), inputs)
    expected = torch.autograd.grad(exact(*some, z).sum(), inputs)
    for each, other in zip(found, expected, strict=True):
        torch.testing.assert_close(each, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e-6, 1e-8, 1e-10])
def test_narrow_components_are_scored_as_exactly_as_by_the_class_of_torch(scale: float) -> None:
    logits, loc = torch.zeros(COMPONENTS), torch.randn(COMPONENTS, 50)
    some = logits, loc, torch.full_like(loc, scale)
    z = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(*some[1:]).to_event(1)).sample((500,))
    expected = exact(*some, z)
    torch.testing.assert_close(fast(*some).log_prob(z).double(), expected, rtol=1e-6, atol=1e-3)
    at_mean = fast(*some).log_prob(loc).double()
    torch.testing.assert_close(at_mean, exact(*some, loc), rtol=1e-6, atol=1e-3)


def test_an_expanded_mixture_scores_as_before() -> None:
    p, z = fast(*parameters()), torch.randn(4, 5, LATENT)
    expanded = p.expand((5,)).expand((4, 5))
    assert expanded.batch_shape == (4, 5)
    assert torch.equal(expanded.log_prob(z), p.log_prob(z))
    assert expanded.log_prob(z[0, 0]).shape == (4, 5)
    assert expanded.sample().shape == (4, 5, LATENT)


def test_a_pyro_program_scores_a_mixture_inside_a_plate() -> None:
    p = fast(*parameters())

    def model() -> None:
        with pyro.plate("data", 5):
            pyro.sample("z", p)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert torch.equal(trace.nodes["z"]["log_prob"], p.log_prob(trace.nodes["z"]["value"]))


def test_an_infinite_value_has_density_zero_and_nan_stays_nan() -> None:
    z = torch.tensor([[torch.inf, 0.0, 0.0], [-torch.inf, 0.0, 0.0], [torch.nan, 0.0, 0.0], [3e38, -3e38, 1.0]])
    found = fast(*parameters())
    found._validate_args = False
    assert found.log_prob(z)[[0, 1, 3]].tolist() == [-torch.inf] * 3
    assert found.log_prob(z)[2].isnan()


def test_an_infinite_location_has_no_share() -> None:
    logits, loc, scale = parameters()
    loc[:2] = torch.inf
    some, z = (logits, loc, scale), torch.randn(5, LATENT)
    torch.testing.assert_close(fast(*some).log_prob(z).double(), exact(*some, z))


def test_a_value_of_the_wrong_shape_is_refused() -> None:
    p = fast(*parameters())
    with pytest.raises(ValueError, match="right-most size"):
        p.log_prob(torch.zeros(4, LATENT + 1))


@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_parameter_in_float64_gives_a_result_in_float64(index: int) -> None:
    some, z = list(parameters()), torch.randn(5, LATENT)
    some[index] = some[index].double()
    assert fast(*some).log_prob(z).dtype == torch.float64


def test_float64_is_scored_by_the_class_of_torch() -> None:
    some, z = parameters(1e4, 1e-6), torch.randn(5, LATENT).double()
    doubled = [each.double() for each in some]
    for at in (z, doubled[1][:1]):
        assert torch.equal(fast(*doubled).log_prob(at), exact(*some, at))
        assert torch.equal(fast(*doubled).expand((1,)).log_prob(at[:1]), exact(*some, at[:1]))


@pytest.mark.parametrize(
    "components",
    [
        dist.Normal(torch.zeros(2, 3), 1.0).to_event(1),
        dist.Laplace(torch.zeros(60, 3), 1.0).to_event(1),
        dist.Normal(torch.zeros(60), 1.0),
        dist.Normal(torch.zeros(60, 3, 4), 1.0).to_event(2),
        dist.MultivariateNormal(torch.zeros(60, 3), torch.eye(3).expand(60, 3, 3)),
        pv.posteriors.StudentT(torch.nn.Identity())(torch.zeros(60, 6)),
    ],
)
def test_few_and_other_components_keep_the_class_of_torch(components: Any) -> None:
    found = mixture(dist.Categorical(logits=torch.zeros(components.batch_shape[0])), components)
    assert type(found) is dist.MixtureSameFamily
    assert found.log_prob(found.sample()).isfinite()


def test_the_priors_use_the_fast_density() -> None:
    vae = pv.VAE(
        pv.priors.VampPrior(50, data=torch.rand(90, 4)),
        pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
    )
    for prior in (vae.prior(), pv.priors.GaussianMixture(2, components=50)()):
        assert type(prior) is type(fast(*parameters()))
        assert type(prior) is not dist.MixtureSameFamily
