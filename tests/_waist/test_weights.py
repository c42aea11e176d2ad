"""Log-weights per draw and datum: the sites and plates that count, and the programs that are refused."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyrovae as pv
from pyrovae._waist.weights import importance_weights
from tests.oracle import Oracle


@pytest.mark.parametrize("nesting", [None, 1, 3])
def test_weights_are_log_joint_minus_log_posterior(nesting: int | None) -> None:
    oracle = Oracle(scale=1.4, shift=0.3)
    x = oracle.data(6)
    weights = importance_weights(oracle.vae.model, oracle.vae.guide, (x,), 8, nesting=nesting)
    assert weights.log_weights.shape == (8, 6)
    assert weights.scale == 1
    assert weights.outside == ()
    torch.manual_seed(3)
    one = importance_weights(oracle.vae.model, oracle.vae.guide, (x,)).log_weights[0]
    torch.manual_seed(3)
    q = oracle.vae.posterior(x)
    z = q.rsample()
    by_hand = oracle.vae.prior().log_prob(z) + oracle.vae.likelihood(z).log_prob(x) - q.log_prob(z)
    torch.testing.assert_close(one, by_hand)


def pixels(x: Tensor, data_dim: int, latent_inside: bool) -> tuple[object, object]:
    """A program with a plate of pixels next to the data plate, and the same program without a plate of pixels."""
    n, d = x.shape
    pixel_dim = -3 - data_dim
    shaped = x if data_dim == -2 else x.T

    def model(x: Tensor) -> None:
        with pyro.plate("data", n, dim=data_dim):
            scale = pyro.sample("s", dist.LogNormal(0.0, 1.0))
            with pyro.plate("pixels", d, dim=pixel_dim):
                loc = pyro.sample("z", dist.Normal(0.0, 1.0)) if latent_inside else 0.0
                pyro.sample("x", dist.Normal(loc, scale), obs=shaped)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", n, dim=data_dim):
            pyro.sample("s", dist.LogNormal(0.1, 0.8))
            if latent_inside:
                with pyro.plate("pixels", d, dim=pixel_dim):
                    pyro.sample("z", dist.Normal(0.5 * shaped, 0.8))

    return model, guide


@pytest.mark.parametrize("data_dim", [-1, -2])
@pytest.mark.parametrize("latent_inside", [False, True])
@pytest.mark.parametrize("vectorize", [False, True])
def test_plates_inside_the_data_plate_are_summed(data_dim: int, latent_inside: bool, vectorize: bool) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    model, guide = pixels(x, data_dim, latent_inside)
    z = torch.randn(3, 4, dtype=torch.float64) if data_dim == -1 else torch.randn(4, 3, dtype=torch.float64)
    s = torch.rand(4, dtype=torch.float64) + 0.5
    values = {"s": s if data_dim == -1 else s[:, None], **({"z": z} if latent_inside else {})}
    log_weights = importance_weights(model, _fix(guide, values), (x,), 5, nesting=2 if vectorize else None).log_weights

    by_hand = dist.LogNormal(0.0, 1.0).log_prob(s) - dist.LogNormal(0.1, 0.8).log_prob(s)
    latent = (z.T if data_dim == -1 else z) if latent_inside else torch.zeros(4, 3, dtype=torch.float64)
    by_hand = by_hand + dist.Normal(latent, s[:, None]).log_prob(x).sum(1)
    if latent_inside:
        by_hand = by_hand + (dist.Normal(0.0, 1.0).log_prob(latent) - dist.Normal(0.5 * x, 0.8).log_prob(latent)).sum(1)
    torch.testing.assert_close(log_weights, by_hand.expand(5, 4))


def _fix(program: object, values: dict[str, Tensor]) -> object:
    """Give latent sites fixed values without turning them into observations."""

    class Fix(poutine.messenger.Messenger):
        def _pyro_sample(self, msg: dict[str, object]) -> None:
            if msg["name"] in values and msg["value"] is None:
                msg["value"] = values[msg["name"]]

    return Fix()(program)


def test_masks_are_kept_and_scales_are_returned(vae: pv.VAE, x: Tensor) -> None:
    observed = torch.arange(12) % 2 == 0
    torch.manual_seed(0)
    plain = importance_weights(vae.model, vae.guide, (x,), 3, nesting=1).log_weights
    torch.manual_seed(0)
    masked = importance_weights(
        poutine.mask(vae.model, observed), poutine.mask(vae.guide, observed), (x,), 3, nesting=1
    )
    torch.testing.assert_close(masked.log_weights, torch.where(observed, plain, 0.0))
    torch.manual_seed(0)
    scaled = importance_weights(poutine.scale(vae.model, 3.0), poutine.scale(vae.guide, 3.0), (x,), 3, nesting=1)
    torch.testing.assert_close(scaled.log_weights, plain)
    assert scaled.scale == 3


def test_annealing_is_divided_out_unless_asked_for(vae: pv.VAE, x: Tensor) -> None:
    def annealed(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=0.1):
                z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.likelihood(z), obs=x)

    weights = {}
    for name, model, tempered in (("plain", vae.model, True), ("out", annealed, False), ("in", annealed, True)):
        torch.manual_seed(0)
        weights[name] = importance_weights(model, vae.guide, (x,), 3, nesting=1, for_loss=tempered).log_weights
    torch.testing.assert_close(weights["out"], weights["plain"])
    assert not torch.allclose(weights["in"], weights["plain"])


def test_a_conditioned_latent_is_given() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + 2) / 2, math.sqrt(0.5)))  # exact, given loc = 2

    x = torch.randn(5, dtype=torch.float64)
    given = pyro.condition(model, data={"loc": torch.tensor(2.0, dtype=torch.float64)})
    weights = importance_weights(given, guide, (x,), 4, nesting=1)
    exact = dist.Normal(torch.tensor(2.0, dtype=torch.float64), math.sqrt(2)).log_prob(x)
    torch.testing.assert_close(weights.log_weights, exact.expand(4, 5))
    assert weights.outside == ("loc",)


def test_auxiliary_guide_sites_count() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u, log_density=torch.zeros_like(u)))

    x = torch.zeros(3)
    weights = importance_weights(model, guide, (x,), 2, nesting=1)
    assert weights.log_weights.shape == (2, 3)


def _sites(model: object = None, guide: object = None) -> tuple[object, object]:
    def default_model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def default_guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    return model or default_model, guide or default_guide


def no_plate(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def no_plate_guide(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


def sequential_plate(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"x{i}", dist.Normal(pyro.sample(f"z{i}", dist.Normal(0.0, 1.0)), 1.0), obs=x[i])


def sequential_guide(x: Tensor) -> None:
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(x[i], 1.0))


def global_latent(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(loc, 1.0)), 1.0), obs=x)


def global_guide(x: Tensor) -> None:
    pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


def only_global(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def only_global_guide(x: Tensor) -> None:
    pyro.sample("loc", dist.Normal(0.0, 1.0))


def nothing_observed(x: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0))


def forgotten_event(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z * torch.ones(3, 1), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "message"),
    [
        (no_plate, no_plate_guide, r"no data plate around the observed sites \['x'\].*pyro.plate"),
        (sequential_plate, sequential_guide, r"no data plate around.*vectorized plate"),
        (global_latent, global_guide, "latent site 'loc' lies outside the data plate 'data'.*condition on it"),
        (only_global, only_global_guide, "latent site 'loc' lies outside the data plate 'data'.*condition on it"),
        (nothing_observed, nothing_observed, "observes nothing.*obs=x"),
        (forgotten_event, None, 'at site "x", invalid log_prob shape'),
        (global_latent, None, "latent site 'loc' is in the model but not in the guide, which has \\['z'\\]"),
        (None, global_guide, "latent site 'loc' is in the guide but not in the model, which has \\['z'\\]"),
    ],
)
def test_programs_of_dependent_data_are_refused(model: object, guide: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        importance_weights(*_sites(model, guide), (torch.zeros(4),))


def test_a_latent_that_would_be_broadcast_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None], 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'z': a value of shape \(4, 1\) .*event shape \(5,\)"):
        importance_weights(model, guide, (torch.zeros(4),))


def test_data_that_would_be_broadcast_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.expand(-1, 3), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"site 'x': a value of shape \(4, 1\) .*event shape \(3,\)"):
        importance_weights(model, guide, (torch.zeros(4, 1),))


def test_a_datum_scored_in_part_has_no_log_likelihood() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", x.shape[1], subsample_size=4, dim=-1) as i:
                pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, i])

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x = torch.zeros(5, 8)
    with pytest.raises(
        ValueError, match="plate 'pixels' of site 'x' subsamples 4 of 8 entries inside the data plate 'data'"
    ):
        importance_weights(model, guide, (x,))
    assert pv.objectives.IWAE(3).loss(model, guide, x) > 0  # fine in training


def test_plates_that_differ_are_named() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("batch", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match=r"'z' lies outside the data plate 'data'.*same name, size and dim"):
        importance_weights(_sites()[0], guide, (torch.zeros(4),))


def test_an_unknown_plate_is_refused(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"no vectorized plate 'batch' in the program, whose plates are \['data'\]"):
        importance_weights(vae.model, vae.guide, (x,), plate="batch")


def test_plate_names_the_data_where_two_are_shared() -> None:
    x = torch.randn(3, 4, dtype=torch.float64)

    def model(x: Tensor) -> None:
        with pyro.plate("groups", 3, dim=-2), pyro.plate("members", 4, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("groups", 3, dim=-2), pyro.plate("members", 4, dim=-1):
            pyro.sample("z", dist.Normal(x / 2, math.sqrt(0.5)))

    exact = dist.Normal(torch.zeros((), dtype=torch.float64), math.sqrt(2)).log_prob(x)
    by_group = importance_weights(model, guide, (x,), 2, nesting=2)
    by_member = importance_weights(model, guide, (x,), 2, nesting=2, plate="members")
    torch.testing.assert_close(by_group.log_weights, exact.sum(1).expand(2, 3))
    torch.testing.assert_close(by_member.log_weights, exact.sum(0).expand(2, 4))


def test_grey_values_under_a_bernoulli_are_an_error_with_a_remedy(vae: pv.VAE) -> None:
    with pytest.raises(ValueError, match=r"site 'x': values from 0.5 to 0.5.*Bernoulli.*binariz.*likelihoods.Normal"):
        importance_weights(vae.model, vae.guide, (torch.full((4, 6), 0.5),))


def test_binary_values_of_a_wrong_shape_are_not_called_grey_values() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z[..., None] * torch.ones(5)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(ValueError, match="cannot be scored by a Bernoulli") as error:
        importance_weights(model, guide, (torch.zeros(4, 6),))
    assert "binarize" not in str(error.value)


def test_no_draws(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        importance_weights(vae.model, vae.guide, (x,), 0)


def test_model_and_guide_exchanged_are_refused(vae: pv.VAE, x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the model observes nothing; its sample sites are \['z'\].*in this order"):
        importance_weights(vae.guide, vae.model, [x])
