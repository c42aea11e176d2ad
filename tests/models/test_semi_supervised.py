"""Labels that are given or summed out, and missing entries."""

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, TraceEnum_ELBO
from pyro.optim import Adam
from torch import Tensor, nn

import pyrovae as pv
from tests.models.examples import CLASSES, conditional_vae, labels, m2
from tests.oracle import Oracle

Joint, mlp = pv.networks.Joint, pv.networks.mlp


def test_a_given_label_reaches_likelihood_and_posterior(x: Tensor) -> None:
    vae, y = conditional_vae(), labels(12)
    before = {name: part.detach().clone() for name, part in vae.named_parameters()}
    pv.fit(vae, (x, y), epochs=1, objective=pv.objectives.IWAE(3))
    assert all(not part.equal(before[name]) for name, part in vae.named_parameters())
    results = pv.evaluation.evaluate(vae.model, vae.guide, (x, y), 50, seed=0)
    others = pv.evaluation.evaluate(vae.model, vae.guide, (x, y.roll(1, 1)), 50, seed=0)
    assert (results.elbo != others.elbo).all()
    assert vae.generate(12, y).shape == vae.reconstruct(x, y).shape == (12, 6)


def test_another_number_of_inputs_names_the_component(x: Tensor) -> None:
    vae = conditional_vae()
    vae.likelihood = pv.likelihoods.Bernoulli(mlp(2, 6))
    with pytest.raises(TypeError, match=r"likelihood does not take the 2 inputs .*, of shapes .*networks.Joint"):
        pv.fit(vae, (x, labels(12)), epochs=1)


def certain(vae: pv.SemiSupervisedVAE) -> pv.SemiSupervisedVAE:
    """A VAE whose posterior of z has almost no spread, so that its bounds have closed forms."""
    vae.posterior = _Narrow()
    return vae


class _Narrow(nn.Module):
    """A posterior of almost a point at zero, for any input."""

    def forward(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        shape = torch.broadcast_shapes(x.shape[:-1], y.shape[:-1])
        return dist.Uniform(torch.zeros(*shape, 2), 1e-6).to_event(1)


def joint_log_prob(vae: pv.SemiSupervisedVAE, x: Tensor) -> Tensor:
    """Return log p(x, z) - log q(z) at z = 0 for each label, shape ``(classes, N)``, with the prior of the label."""
    z = torch.zeros(len(x), 2)
    prior = vae.label_prior()
    latent = vae.prior().log_prob(z)
    return torch.stack(
        [
            prior.log_prob(y) + latent + vae.likelihood(z, y.expand(len(x), -1)).log_prob(x) + 2 * math.log(1e-6)
            for y in torch.eye(CLASSES)
        ]
    )


def test_the_evaluation_sums_an_unknown_label_out(x: Tensor) -> None:
    vae, y = certain(m2()).eval(), labels(12, known=4)
    terms = joint_log_prob(vae, x)
    expected = torch.cat([terms[torch.arange(4) % CLASSES, torch.arange(4)], terms.logsumexp(0)[4:]])
    for vectorize in (True, False):
        weights = pv.evaluation.log_weights(vae.model, vae.guide, (x, y), 3, seed=0, vectorize=vectorize)
        torch.testing.assert_close(weights, expected.expand(3, 12), atol=2e-4, rtol=0)


def test_trace_enum_elbo_is_the_bound_of_the_paper(x: Tensor) -> None:
    vae, y = certain(m2()).eval(), labels(12, known=4)
    terms, q = joint_log_prob(vae, x), vae.classify(x).T
    unknown = (q * (terms - q.log())).sum(0)
    expected = torch.cat([terms[torch.arange(4) % CLASSES, torch.arange(4)], unknown[4:]])
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x, y)
    assert loss == pytest.approx(-float(expected.detach().sum()), abs=2e-3)


def test_the_elbo_of_a_known_label_is_that_of_a_vae_given_it(x: Tensor) -> None:
    vae, y = m2().eval(), labels(12)
    loss = TraceEnum_ELBO(max_plate_nesting=1, num_particles=2000, vectorize_particles=True)
    trained = -loss.loss(vae.model, vae.guide, x, y) / 12
    result = pv.evaluation.evaluate(vae.model, vae.guide, (x, y), 2000, seed=0)
    assert float(result.elbo.mean()) == pytest.approx(trained, abs=0.05)


def test_a_learned_label_prior_gets_the_gradient_of_the_known_labels_alone(x: Tensor) -> None:
    vae, y = m2(), labels(2)
    logits = torch.zeros(3, requires_grad=True)
    vae.label_prior = lambda: dist.OneHotCategorical(logits=logits)
    TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(vae.model, vae.guide, x[:2], y)
    torch.testing.assert_close(logits.grad, -torch.tensor([1 / 3, 1 / 3, -2 / 3]), atol=1e-4, rtol=0)


def test_enumeration_that_draws_is_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel", "num_samples": 7})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(ValueError, match="'y' requests 7 parallel samples, which do not sum"):
        pv.evaluation.log_weights(model, guide, torch.randn(4), 3)


def test_a_likelihood_conditional_on_images() -> None:
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Normal(Joint(mlp(2 + 16, (4, 4)), event_dims=(1, 2))),
        pv.posteriors.DiagonalNormal(Joint(mlp(32, 4), event_dims=(2, 2))),
    )
    x, image = torch.randn(12, 4, 4), torch.randn(12, 4, 4)
    pv.fit(vae, (x, image), epochs=1, objective=pv.objectives.IWAE(3))
    assert vae.generate(12, image).shape == (12, 4, 4)


def test_training_adds_the_classification_of_the_known_labels(x: Tensor) -> None:
    y = labels(12, known=4)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    vae = certain(m2(classification_weight=2.5))
    training, evaluating = (
        elbo.loss(part.model, part.guide, x, y) for part in (vae.train(), copy.deepcopy(vae).eval())
    )
    classification = vae.classifier(x[:4]).log_prob(y[:4]).sum().detach()
    assert training == pytest.approx(evaluating - 2.5 * float(classification), abs=2e-3)


def test_an_unknown_label_of_a_single_datum_and_a_single_draw(x: Tensor) -> None:
    vae = certain(m2()).eval()
    weights = pv.evaluation.log_weights(vae.model, vae.guide, (x[:1], labels(1, known=0)), 1, seed=0)
    torch.testing.assert_close(weights, joint_log_prob(vae, x[:1]).logsumexp(0, keepdim=True), atol=2e-4, rtol=0)


def test_m2_learns_from_few_labels() -> None:
    torch.manual_seed(0)
    truth = torch.arange(600) % CLASSES
    x = torch.bernoulli((0.05 + 0.9 * torch.eye(3))[truth].repeat(1, 2))
    y = labels(600, known=30)
    vae = m2(classification_weight=5.0)
    pv.fit(vae, (x, y), objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=15, learning_rate=1e-2, seed=0)
    assert (vae.classify(x).argmax(-1) == truth)[30:].float().mean() > 0.9
    own = vae.generate(labels(60), mean=True)[:, :3].argmax(-1)
    assert (own == torch.arange(60) % CLASSES).float().mean() > 0.9


def test_m2_trains_by_stock_svi_and_survives_copies_and_exchanges(x: Tensor) -> None:
    vae = pickle.loads(pickle.dumps(copy.deepcopy(m2())))
    vae.prior = pv.priors.GaussianMixture(2, 3)
    before = {name: part.detach().clone() for name, part in vae.named_parameters()}
    SVI(vae.model, vae.guide, Adam({"lr": 0.01}), TraceEnum_ELBO(max_plate_nesting=1)).step(x, labels(12, known=4))
    assert all(not part.equal(before[name]) for name, part in vae.named_parameters())
    with pytest.raises(AttributeError, match="nonsense"):
        vae.nonsense  # noqa: B018


def test_labels_that_are_not_one_hot_are_refused(x: Tensor) -> None:
    vae = m2()
    with pytest.raises(ValueError, match=r"one-hot rows.*shape \(12, 3\) with values from 0 to 2. Use torch"):
        pv.fit(vae, (x, 2 * labels(12)), objective=TraceEnum_ELBO(max_plate_nesting=1), epochs=1)
    with pytest.raises(ValueError, match=r"generate: y must hold one-hot labels, .* got shape \(3,\)"):
        vae.generate(torch.tensor([0, 1, 0]))
    vae.label_prior = dist.OneHotCategorical(torch.ones(2))
    with pytest.raises(ValueError, match=r"label prior .*event shape \(2,\), but the data have event shape \(3,\)"):
        vae.model(x, labels(12))
    vae.classifier = lambda x: dist.Categorical(torch.ones(12, 3))
    with pytest.raises(ValueError, match="classifier"):
        vae.guide(x, labels(12))
    vae = m2()
    with pytest.raises(ValueError, match=r"classifier .*event shape \(3,\).*\(4,\)"):
        vae.guide(x, torch.zeros(12, 4))
    with pytest.raises(ValueError, match="classification_weight=-1 must be at least 0"):
        m2(classification_weight=-1)


def test_enumeration_with_a_plate_inside_the_data_plate() -> None:
    """Each pixel is one of two unknown kinds: the sum over kinds is inside the product over pixels."""
    x = torch.randn(5, 4).double()
    share, loc = torch.tensor([0.3, 0.7]).double(), torch.tensor([-1.0, 2.0]).double()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            with pyro.plate("pixels", 4, dim=-1):
                kind = pyro.sample("kind", dist.Categorical(share), infer={"enumerate": "parallel"})
                pyro.sample("x", dist.Normal(loc[kind] + z, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True), 0.3))

    torch.manual_seed(0)
    draws = poutine.trace(guide).get_trace(x)
    z = draws.nodes["z"]["value"]
    pixels = torch.stack([share[k].log() + dist.Normal(loc[k] + z, 0.5).log_prob(x) for k in range(2)]).logsumexp(0)
    q = dist.Normal(x.mean(-1, keepdim=True), 0.3)
    expected = (pixels.sum(-1, keepdim=True) + dist.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).squeeze(-1)
    fixed = poutine.replay(guide, trace=draws)
    weights = pv.evaluation.log_weights(model, fixed, x, 2, seed=0, vectorize=False)
    torch.testing.assert_close(weights, expected.expand(2, 5), atol=1e-6, rtol=0)
    assert pv.evaluation.log_weights(model, guide, x, 3, seed=0).shape == (3, 5)


class _Masked(nn.Module):
    """The exact posterior of the oracle given the observed entries, for a mask that differs between data."""

    def __init__(self, oracle: Oracle, widen: float) -> None:
        super().__init__()
        self.oracle, self.widen = oracle, widen

    def forward(self, x: Tensor, mask: Tensor) -> dist.TorchDistribution:
        loc, covariance = z_given_observed(self.oracle, x, mask)
        return dist.MultivariateNormal(loc, self.widen**2 * covariance)


def z_given_observed(oracle: Oracle, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    w = oracle.w * mask.unsqueeze(-1)
    precision = torch.eye(oracle.latent).double() + w.mT @ w / oracle.sigma**2
    covariance = torch.linalg.inv(precision)
    residual = torch.where(mask, x - oracle.b, 0.0)
    return (covariance @ (w.mT @ residual.unsqueeze(-1))).squeeze(-1) / oracle.sigma**2, covariance


@pytest.mark.parametrize("widen", [1.0, 1.5])
def test_imputation_and_likelihood_of_what_was_observed_are_the_oracles(widen: float) -> None:
    oracle = Oracle()
    x, mask = oracle.data(8), torch.rand(8, 5) < 0.6
    filled = torch.where(mask, x, 123.0)  # values of missing entries have no influence
    likelihood = pv.likelihoods.Masked(oracle.vae.likelihood)
    vae = pv.VAE(oracle.vae.prior, likelihood, _Masked(oracle, widen)).double()

    covariance = oracle.w @ oracle.w.T + oracle.sigma**2 * torch.eye(5).double()
    observed = [
        dist.MultivariateNormal(oracle.b[m], covariance[m][:, m]).log_prob(datum[m]) if m.any() else torch.zeros(())
        for datum, m in zip(x, mask, strict=True)
    ]
    results = pv.evaluation.evaluate(vae.model, vae.guide, (filled, mask), 4000, seed=0)
    error = torch.from_numpy(results.log_likelihood.values) - torch.stack([part.double() for part in observed])
    assert error.abs().max() < (1e-6 if widen == 1.0 else 0.1)

    imputed = pv.evaluation.impute(vae.model, vae.guide, (filled, mask), 20_000, num_imputations=200, seed=0)
    loc, spread = z_given_observed(oracle, x, mask)
    mean = loc @ oracle.w.T + oracle.b
    std = ((oracle.w @ spread @ oracle.w.T).diagonal(dim1=-2, dim2=-1) + oracle.sigma**2).sqrt()
    torch.testing.assert_close(torch.from_numpy(imputed["mean"].values), torch.where(mask, x, mean), atol=0.04, rtol=0)
    torch.testing.assert_close(torch.from_numpy(imputed["std"].values), torch.where(mask, 0.0, std), atol=0.03, rtol=0)
    copies = torch.from_numpy(imputed["imputations"].values)
    assert copies.shape == (200, 8, 5)
    torch.testing.assert_close(copies.mean(0), torch.where(mask, x, mean), atol=0.3, rtol=0)
    torch.testing.assert_close(copies.std(0), torch.where(mask, 0.0, std), atol=0.2, rtol=0)


def test_imputation_in_chunks_and_images() -> None:
    x, mask = torch.bernoulli(torch.full((7, 3, 2), 0.5)), torch.rand(7, 3, 2) < 0.5
    vae = pv.VAE(
        pv.priors.StandardNormal(2),
        pv.likelihoods.Masked(pv.likelihoods.Bernoulli(mlp(2, (3, 2)))),
        pv.posteriors.DiagonalNormal(pv.networks.ZeroFilled(mlp((2, 3, 2), 4), event_dim=2)),
    )
    pv.fit(vae, (x, mask), epochs=1)
    imputed = pv.evaluation.impute(vae.model, vae.guide, (x, mask), 50, seed=0, memory=2000)
    assert imputed["mean"].dims == ("datum", "event_0", "event_1")
    assert imputed["mean"].shape == (7, 3, 2)
    assert (imputed["ess"] >= 1).all()
    assert "imputations" not in imputed
    with pytest.raises(ValueError, match=r"mask has shape \(7, 3\), but the data have shape \(7, 3, 2\)"):
        pv.evaluation.impute(vae.model, vae.guide, (x, mask[..., 0]))
    for options in ({"num_samples": 0}, {"num_imputations": -2}):
        with pytest.raises(ValueError, match="num_samples must be at least 1"):
            pv.evaluation.impute(vae.model, vae.guide, (x, mask), **options)
    with pytest.raises(TypeError, match=r"a tuple \(x, mask\)"):
        pv.evaluation.impute(vae.model, vae.guide, x)
    with pytest.raises(ValueError, match="does not observe a site 'image'"):
        pv.evaluation.impute(vae.model, vae.guide, (x, mask), site="image")


def test_masked_refuses_entries_that_depend_on_each_other() -> None:
    likelihood = pv.likelihoods.Masked(lambda z: dist.MultivariateNormal(z, torch.eye(2)))
    with pytest.raises(TypeError, match="the entries of a MultivariateNormal are not independent given z"):
        likelihood(torch.zeros(3, 2), torch.ones(3, 2))
