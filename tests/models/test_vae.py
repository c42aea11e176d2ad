"""A VAE is an ordinary Pyro program, and its parameters belong to the module."""

import copy
import io
import pickle
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

import pyrovae as pv
from tests.conftest import small_vae
from tests.oracle import Oracle


def trained_by_svi(vae: pv.VAE, x: Tensor) -> None:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    for _ in range(2):
        svi.step(x)


def trained_by_elbo_module(vae: pv.VAE, x: Tensor) -> None:
    elbo = Trace_ELBO()(vae.model, vae.guide)
    optimizer = torch.optim.Adam(elbo.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        elbo(x).backward()
        optimizer.step()


def trained_by_fit(vae: pv.VAE, x: Tensor) -> None:
    pv.fit(vae, x, epochs=2, progress=False)


TRAINERS = [trained_by_svi, trained_by_elbo_module, trained_by_fit]


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


@pytest.mark.parametrize("train", TRAINERS)
def test_every_parameter_trains(vae: pv.VAE, x: Tensor, train: Callable[[pv.VAE, Tensor], None]) -> None:
    before = snapshot(vae)
    train(vae, x)
    assert changed(vae, before) == set(before)
    assert not pyro.get_param_store().keys()


@pytest.mark.parametrize("train", TRAINERS)
def test_vaes_of_one_process_share_nothing(x: Tensor, train: Callable[[pv.VAE, Tensor], None]) -> None:
    first, second = small_vae(), small_vae()
    for vae, other in ((first, second), (second, first)):
        mine, theirs = snapshot(vae), snapshot(other)
        train(vae, x)
        assert changed(vae, mine) == set(mine)
        assert not changed(other, theirs)


@pytest.mark.parametrize("train", TRAINERS)
@pytest.mark.parametrize("trained_before", [False, True])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
def test_copies_train_and_are_independent(
    vae: pv.VAE,
    x: Tensor,
    train: Callable[[pv.VAE, Tensor], None],
    trained_before: bool,
    duplicate: Callable[[pv.VAE], pv.VAE],
) -> None:
    if trained_before:
        train(vae, x)
    clone = duplicate(vae)
    for one, other in ((clone, vae), (vae, clone)):
        mine, theirs = snapshot(one), snapshot(other)
        train(one, x)
        assert changed(one, mine) == set(mine)
        assert not changed(other, theirs)


@pytest.mark.parametrize("train", TRAINERS)
def test_an_exchanged_component_trains(vae: pv.VAE, x: Tensor, train: Callable[[pv.VAE, Tensor], None]) -> None:
    train(vae, x)
    vae.likelihood = old = pv.likelihoods.Bernoulli(pv.networks.mlp(2, 5, 6))
    vae.likelihood = new = pv.likelihoods.Bernoulli(pv.networks.mlp(2, 4, 6))
    before, before_old = snapshot(vae), snapshot(old)
    train(vae, x)
    assert vae.likelihood is vae.model.likelihood is new
    assert changed(vae, before) == set(before)
    assert not changed(old, before_old)


def test_components_are_any_callables(vae: pv.VAE, x: Tensor) -> None:
    vae.prior = lambda: dist.Laplace(torch.zeros(2), 1.0).to_event(1)
    vae.posterior = lambda x: dist.Normal(x[..., :2], 1.0).to_event(1)
    trained_by_svi(vae, x)
    assert isinstance(poutine.trace(vae.model).get_trace(x).nodes["z"]["fn"].base_dist, dist.Laplace)
    vae.prior = pv.priors.StandardNormal(2)  # a module again
    assert vae.generate(4).shape == (4, 6)


def test_two_vaes_in_one_program(x: Tensor) -> None:
    first, second = small_vae(), small_vae()

    def model(x: Tensor) -> None:
        with scope(prefix="a"):
            first.model(x)
        with scope(prefix="b"):
            second.model(x)

    def guide(x: Tensor) -> None:
        with scope(prefix="a"):
            first.guide(x)
        with scope(prefix="b"):
            second.guide(x)

    before = snapshot(first), snapshot(second)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x)
    assert changed(first, before[0]) == set(before[0])
    assert changed(second, before[1]) == set(before[1])


def test_frozen_parameters_stay(vae: pv.VAE, x: Tensor) -> None:
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(x)  # Adam's momentum would go on moving a parameter that is still announced
    vae.likelihood.requires_grad_(False)
    before = snapshot(vae)
    svi.step(x)
    assert changed(vae, before) == {name for name in before if name.startswith("guide")}


def test_state_dict_holds_everything_once(vae: pv.VAE) -> None:
    state = vae.state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state) == len(list(vae.parameters())) == 8
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    other = small_vae()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(tensor, state[name])


def test_sites_and_plate(vae: pv.VAE, x: Tensor) -> None:
    trace = poutine.trace(vae.model).get_trace(x)
    assert trace.stochastic_nodes == ["data", "z"]
    assert trace.observation_nodes == ["x"]
    (frame,) = trace.nodes["x"]["cond_indep_stack"]
    assert (frame.name, frame.dim, frame.size) == ("data", -1, 12)


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO])
def test_stock_elbos_agree_with_the_closed_form(elbo: type) -> None:
    oracle = Oracle(scale=1.3, shift=0.4)
    x = oracle.data(20)
    loss = elbo(num_particles=4000, vectorize_particles=True).loss(oracle.vae.model, oracle.vae.guide, x)
    assert loss == pytest.approx(-oracle.elbo(x).sum().item(), abs=1.0)


def test_mean_field_kl_is_the_textbook_formula(vae: pv.VAE, x: Tensor) -> None:
    vae, x = vae.double(), x.double()
    q = vae.posterior(x)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    textbook = -0.5 * (1 + 2 * scale.log() - loc**2 - scale**2).sum()

    torch.manual_seed(0)
    loss = TraceMeanField_ELBO().loss(vae.model, vae.guide, x)
    torch.manual_seed(0)
    trace = poutine.trace(poutine.replay(vae.model, poutine.trace(vae.guide).get_trace(x))).get_trace(x)
    reconstruction = trace.log_prob_sum(lambda name, site: site["is_observed"])
    assert loss == pytest.approx((textbook - reconstruction).item(), rel=1e-12)

    z = q.sample((200_000,))
    monte_carlo = (q.log_prob(z) - vae.prior().log_prob(z)).mean(0).sum()
    assert monte_carlo.item() == pytest.approx(textbook.item(), rel=0.02)


def test_predictive(vae: pv.VAE, x: Tensor) -> None:
    draws = Predictive(poutine.uncondition(vae.model), guide=vae.guide, num_samples=7)(x)
    assert draws["z"].shape == (7, 12, 2)
    assert draws["x"].shape == (7, 12, 6)


@pytest.mark.slow
def test_nuts_finds_the_posterior() -> None:
    oracle = Oracle()
    x = oracle.data(2)
    torch.set_default_dtype(torch.float64)
    try:
        mcmc = MCMC(NUTS(oracle.vae.model, jit_compile=False), num_samples=200, warmup_steps=100, disable_progbar=True)
        mcmc.run(x)
    finally:
        torch.set_default_dtype(torch.float32)
    z, q = mcmc.get_samples()["z"], oracle.vae.posterior(x)
    assert (z.mean(0) - q.mean).abs().max() < 0.2
    assert (z.std(0) / q.stddev).log().abs().max() < 0.2


def test_condition_and_block(vae: pv.VAE, x: Tensor) -> None:
    z = torch.zeros(12, 2)
    trace = poutine.trace(poutine.condition(vae.model, data={"z": z})).get_trace(x)
    assert trace.nodes["z"]["is_observed"]
    assert "z" not in poutine.trace(poutine.block(vae.guide, hide=["z"])).get_trace(x)


def test_generate_and_reconstruct(vae: pv.VAE, x: Tensor) -> None:
    draws = vae.generate(5000)
    assert draws.shape == (5000, 6)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert not draws.requires_grad
    torch.testing.assert_close(draws.mean(0), vae.generate(5000, mean=True).mean(0), atol=0.03, rtol=0)
    assert vae.generate(0).shape == (0, 6)
    assert vae.reconstruct(x).shape == x.shape
    assert 0 < vae.reconstruct(x, mean=True).min() < vae.reconstruct(x, mean=True).max() < 1


def test_reconstructions_are_of_the_data() -> None:
    oracle = Oracle()
    x = oracle.data(500)
    exact = oracle.vae.likelihood(oracle.vae.posterior(x).mean).mean
    reconstruction = oracle.vae.reconstruct(x, mean=True)
    assert not reconstruction.requires_grad
    assert (reconstruction - exact).abs().mean() < 0.5 * (x - x.roll(1, 0)).abs().mean()
    torch.testing.assert_close(reconstruction.mean(0), exact.mean(0), atol=0.1, rtol=0)


def test_generate_draws_from_the_oracle() -> None:
    oracle = Oracle()
    draws = oracle.vae.generate(100_000)
    covariance = oracle.w @ oracle.w.T + oracle.sigma**2 * torch.eye(oracle.size)
    torch.testing.assert_close(draws.mean(0), oracle.b, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.T.cov(), covariance, atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("role", "component", "error", "message"),
    [
        ("prior", 3, TypeError, "the prior must be a callable that returns a distribution, got int"),
        ("likelihood", dist.Normal(0.0, 1.0), TypeError, "the likelihood must be a callable .* got Normal"),
        ("prior", dist.Normal(torch.zeros(2), 1.0), ValueError, r"prior .*batch shape \(2,\).*to_event"),
        ("posterior", nn.Linear(6, 4).forward, TypeError, "the posterior is the method Linear.forward of a module"),
        ("prior", lambda: dist.Normal(torch.zeros(2), 1.0), ValueError, r"prior .*batch shape \(2,\).*to_event"),
        ("likelihood", lambda z: dist.Normal(z, 1.0), ValueError, r"likelihood .*\(12, 2\) .*required .*\(12,\)"),
        ("likelihood", lambda z: dist.Normal(z, 1.0).to_event(1), ValueError, r"event shape \(2,\).*\(6,\)"),
        ("posterior", lambda x: dist.Normal(x.sum() + torch.zeros(2), 1.0).to_event(1), ValueError, "the posterior"),
        (
            "prior",
            pv.priors.StandardNormal(5),
            ValueError,
            r"'z' .* event shape \(2,\), but the prior has event shape \(5,\)\. .* latent",
        ),
        (
            "prior",
            pv.priors.StandardNormal(1),
            ValueError,
            r"'z' .* event shape \(2,\), but the prior has event shape \(1,\)",
        ),
        (
            "prior",
            pv.priors.StandardNormal,
            TypeError,
            r"the prior is the class StandardNormal .* StandardNormal\(...\)",
        ),
    ],
)
def test_a_broken_component_is_named(
    vae: pv.VAE, x: Tensor, role: str, component: object, error: type[Exception], message: str
) -> None:
    def exchange_and_run() -> None:
        setattr(vae, role, component)
        poutine.replay(vae.model, poutine.trace(vae.guide).get_trace(x))(x)

    with pytest.raises(error, match=message):
        exchange_and_run()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, 5), r"posterior cannot take a tensor of shape \(4, 5\), torch.float32 \(.*mat1"),
        (
            torch.zeros(4, 6).double(),
            r"posterior cannot take a tensor of shape \(4, 6\), torch.float64 \(.*mat1",
        ),
    ],
)
def test_data_that_do_not_fit_the_network_are_named(vae: pv.VAE, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pv.fit(vae, x, progress=False)


def test_a_handler_that_replaces_parameters_is_refused(vae: pv.VAE, x: Tensor) -> None:
    lifted = poutine.lift(vae.model, prior=lambda *_: dist.Normal(0.0, 1.0)())
    with pytest.raises(ValueError, match=r"replaces the parameter .*PyroSample"):
        poutine.trace(lifted).get_trace(x)


def test_lazy_networks_train(x: Tensor) -> None:
    vae = small_vae()
    vae.posterior = pv.posteriors.DiagonalNormal(nn.LazyLinear(4))
    trained_by_fit(vae, x)
    assert vae.posterior.network.weight.shape == (4, 6)


def test_generate_refuses_a_negative_number(vae: pv.VAE) -> None:
    with pytest.raises(ValueError, match="n=-1"):
        vae.generate(-1)


def test_a_likelihood_of_several_parameters_names_the_number_of_outputs() -> None:
    mlp = pv.networks.mlp
    likelihood = pv.likelihoods.NegativeBinomial(mlp(2, 6))
    vae = pv.VAE(pv.priors.StandardNormal(2), likelihood, pv.posteriors.DiagonalNormal(mlp(6, 4)))
    with pytest.raises(ValueError, match=r"event shape \(3,\).* NegativeBinomial needs 2 outputs for each entry"):
        vae.model(torch.ones(4, 6))
