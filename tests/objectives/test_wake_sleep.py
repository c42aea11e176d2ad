"""Reweighted wake-sleep normalizes the weights of each datum, and sleeps as Pyro does."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

import pyrovae as pv
from pyrovae.objectives import ReweightedWakeSleep
from tests.objectives.by_hand import deep_draws, deep_logs, deep_vae, flat_draws, flat_logs, flat_vae, gradients


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_both_gradients_agree_with_plain_pytorch(vectorize: bool, scale: float) -> None:
    vae, x, k = flat_vae(), torch.randn(6, 3).double(), 4
    objective = ReweightedWakeSleep(k, vectorize_particles=vectorize)
    model, guide = pyro.poutine.scale(vae.model, scale), pyro.poutine.scale(vae.guide, scale)
    objective.loss(model, guide, x)  # finds the depth of the plates
    torch.manual_seed(1)
    losses = objective.loss_and_grads(model, guide, x)
    found = gradients(vae)
    torch.manual_seed(1)
    z = [part.detach() for part in flat_draws(vae, x, k, vectorize)]
    _compare(vae, found, losses, flat_logs(vae, x, z), k, scale)


def test_draws_of_one_layer_are_fixed_for_the_next() -> None:
    vae, x, k = deep_vae(), torch.randn(6, 3).double(), 4
    torch.manual_seed(1)
    losses = ReweightedWakeSleep(k, max_plate_nesting=1).loss_and_grads(vae.model, vae.guide, x)
    found = gradients(vae)
    torch.manual_seed(1)
    z = [part.detach() for part in deep_draws(vae, x, k, True)]
    _compare(vae, found, losses, deep_logs(vae, x, z), k)


def _compare(vae: Any, found: Any, losses: Any, logs: Any, k: int, scale: float = 1.0) -> None:
    likelihood, prior, guide = logs
    log_w = likelihood + prior - guide.detach()
    theta = -scale * (log_w.logsumexp(0) - math.log(k)).sum()
    phi = -scale * (log_w.detach().softmax(0) * guide).sum()
    assert losses == pytest.approx((theta.item(), phi.item()))
    (theta + phi).backward()
    expected = gradients(vae)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_the_differentiable_loss_has_the_value_of_the_bound_and_both_gradients() -> None:
    vae, x = flat_vae(), torch.randn(6, 3).double()
    objective = ReweightedWakeSleep(3, max_plate_nesting=1)
    found = []
    torch.manual_seed(1)
    theta, _ = objective.loss_and_grads(vae.model, vae.guide, x)
    found.append(gradients(vae))
    torch.manual_seed(1)
    loss = objective(vae.model, vae.guide)(x)
    loss.backward()
    found.append(gradients(vae))
    assert loss.item() == pytest.approx(theta)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


def test_pyros_own_lets_one_particle_of_the_batch_take_all_weight() -> None:
    """This is the reason for a separate class: Pyro's loss of copies of a datum is not that of the datum."""
    vae, x = flat_vae(), torch.tensor([[1.5, -1.0, 2.0]]).double()
    exact = pv.evaluation.log_weights(vae.model, vae.guide, x, 50_000, seed=0)
    bound = -(exact.unflatten(0, (-1, 5)).logsumexp(1) - math.log(5)).mean().item()
    ours = ReweightedWakeSleep(5).loss(vae.model, vae.guide, x.expand(5000, -1))[0].item() / 5000
    pyros = pyro.infer.ReweightedWakeSleep(5).loss(vae.model, vae.guide, x.expand(5000, -1))[0].item() / 5000
    assert ours == pytest.approx(bound, abs=0.03)
    assert pyros > bound + 0.2


class Mixture(nn.Module):
    """Two clusters, known to the model. The guide learns to infer the label, and can be trained by the sleep phase."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Linear(1, 1).double()
        self.gap = nn.Parameter(torch.tensor(3.0).double())

    def model(self, x: Tensor, observations: Any = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5).double()))
            pyro.sample("x", dist.Normal(self.gap * (z - 0.5), 1.0), obs=x)

    def guide(self, x: Tensor, observations: Any = None) -> None:
        x = x if observations is None else observations["x"]
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.logit(x.unsqueeze(-1)).squeeze(-1)))


@pytest.mark.parametrize("insomnia", [1.0, 0.5, 0.0])
def test_a_discrete_latent_is_learnt(insomnia: float) -> None:
    mixture = Mixture()
    mixture.gap.requires_grad_(False)
    truth = torch.randint(2, (400,))
    x = 3 * (truth - 0.5).double() + torch.randn(400).double()
    objective = ReweightedWakeSleep(10, insomnia)
    pv.fit(mixture, x, objective=objective, epochs=60, batch_size=100, learning_rate=0.1)
    assert mixture.logit.weight.item() == pytest.approx(3.0, abs=0.45)  # log odds of the label are 3 x
    assert mixture.logit.bias.item() == pytest.approx(0.0, abs=0.45)


@pytest.mark.parametrize(("insomnia", "model_has_params"), [(0.0, False), (0.0, True), (0.4, True)])
def test_it_sleeps_as_pyro_does(insomnia: float, model_has_params: bool) -> None:
    mixture, x = Mixture(), torch.randn(7).double()
    slopes = {}
    for name, made in {
        "ours": ReweightedWakeSleep(3, insomnia, model_has_params, max_plate_nesting=1),
        "asleep": pyro.infer.ReweightedWakeSleep(3, 0.0, False, max_plate_nesting=1),
        "awake": ReweightedWakeSleep(3, 1.0, max_plate_nesting=1),
    }.items():
        torch.manual_seed(0)
        if name == "asleep" and (model_has_params or insomnia > 0):  # the sleep phase follows the wake phase
            ReweightedWakeSleep(3, 1.0, max_plate_nesting=1).loss(mixture.model, mixture.guide, x)
        made.loss_and_grads(mixture.model, mixture.guide, x)
        slopes[name] = mixture.logit.weight.grad.item()
        mixture.zero_grad()
    expected = (1 - insomnia) * slopes["asleep"] + insomnia * slopes["awake"]
    assert slopes["ours"] == pytest.approx(expected)
    assert slopes["asleep"] != pytest.approx(slopes["awake"], rel=0.01)


def test_svi_gives_both_losses(vae: pv.VAE, x: Tensor) -> None:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.02}), ReweightedWakeSleep(5))
    losses = [svi.step(x) for _ in range(200)]
    assert sum(theta for theta, _ in losses[-20:]) / 20 < sum(theta for theta, _ in losses[:20]) / 20 - 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 1}, "at least 2, .* got num_particles=1. For a single particle, train with Trace_ELBO"),
        ({"insomnia": 1.5}, "must be in .*, got insomnia=1.5"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReweightedWakeSleep(**options)
