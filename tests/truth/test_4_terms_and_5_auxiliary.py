"""log p(x) contains the model's sites and the guide's latent sites, with their masks, and no other terms."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from scipy import stats
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import check_close, exact_normal, normal_model

X = torch.tensor([0.3, -1.0, 2.0])
ON = torch.tensor([True, False, True])


def test_an_observed_site_of_the_guide_is_no_part() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.8))
            pyro.sample("label", dist.Normal(z, 1.0), obs=torch.zeros(len(x)))

    for result in (
        pv.evaluation.evaluate(normal_model, guide, X, 2000, seed=0),
        pv.evaluation.rqmc(normal_model, guide, X, 1024, seed=0),
        pv.evaluation.ais(normal_model, guide, X, 16, num_temperatures=20, seed=0),
    ):
        check_close(result, exact_normal(X))


@pytest.mark.parametrize("where", ["model", "guide"])
def test_a_latent_that_only_one_program_masks_is_refused(where: str) -> None:
    def masked(program: str) -> Tensor:
        return ON if program == where else torch.ones(3, dtype=torch.bool)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).mask(masked("model")))
            pyro.sample("x", dist.Normal(z, 1.0).mask(ON), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=masked("guide")):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    for call in (
        lambda: pv.evaluation.evaluate(model, guide, X, 10, seed=0),
        lambda: pv.evaluation.log_weights(model, guide, X, 10, seed=0),
        lambda: pv.objectives.IWAE(2).loss(model, guide, X),
    ):
        with pytest.raises(ValueError, match="'z' has different masks in guide"):
            call()


def test_a_latent_that_both_programs_mask_is_left_out() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=ON):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=ON):
            pyro.sample("z", dist.Normal(x / 2, 0.8))

    check_close(pv.evaluation.evaluate(model, guide, X, 3000, seed=0), np.where(ON, exact_normal(X), 0))


@pytest.mark.parametrize("with_handler", [True, False])
def test_a_masked_site_that_is_summed_out_counts_once(with_handler: bool) -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            prior, mask = dist.Categorical(torch.ones(3) / 3), poutine.mask(mask=ON)
            if with_handler:
                with mask:
                    k = pyro.sample("k", prior, infer={"enumerate": "parallel"})
            else:
                k = pyro.sample("k", prior.mask(ON), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(k.float(), 1.0).mask(ON), obs=x)

    mixture = np.log(np.mean([stats.norm.pdf(X.numpy(), k, 1) for k in range(3)], axis=0))
    found = pv.evaluation.evaluate(model, lambda x: None, X, 30, seed=0).log_likelihood
    np.testing.assert_allclose(found, np.where(ON, mixture, 0), atol=1e-5)


@pytest.mark.parametrize("lengths", [[4, 2, 1, 3], [1, 1, 4, 4], [4, 4, 4, 4]])
def test_hidden_markov_models_of_several_lengths(lengths: list[int]) -> None:
    transition, means = torch.tensor([[0.7, 0.3], [0.2, 0.8]]), torch.tensor([-1.0, 1.0])
    y = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))

    def model(y: Tensor, length: Tensor) -> None:
        with pyro.plate("sequences", len(y)):
            state: int | Tensor = 0
            for t in pyro.markov(range(4)):
                with poutine.mask(mask=t < length):
                    state = pyro.sample(f"h{t}", dist.Categorical(transition[state]), infer={"enumerate": "parallel"})
                    pyro.sample(f"y{t}", dist.Normal(means[state], 1.0), obs=y[:, t])

    def forward(series: np.ndarray) -> float:
        alpha = transition[0].numpy()
        for t, value in enumerate(series):
            alpha = (alpha if t == 0 else alpha @ transition.numpy()) * stats.norm.pdf(value, means.numpy(), 1)
        return float(np.log(alpha.sum()))

    exact = [forward(series[:length].numpy()) for series, length in zip(y, lengths, strict=True)]
    found = pv.evaluation.evaluate(model, lambda y, length: None, (y, torch.tensor(lengths)), 30, seed=0)
    np.testing.assert_allclose(found.log_likelihood, exact, atol=1e-4)


def test_the_bound_of_a_guide_that_enumerates() -> None:
    means = torch.tensor([-1.0, 1.0])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            z = pyro.sample("z", dist.Normal(means[k], 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            q = dist.Categorical(logits=torch.stack([-x, x], -1))
            k = pyro.sample("k", q, infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal((means[k] + x) / 2, 0.8))

    exact = np.log(0.3 * stats.norm.pdf(X, -1, 2**0.5) + 0.7 * stats.norm.pdf(X, 1, 2**0.5))
    check_close(pv.evaluation.evaluate(model, guide, X, 3000, seed=0), exact)
    losses = [pv.objectives.IWAE(200).loss(model, guide, X) for _ in range(10)]
    assert abs(np.mean(losses) + exact.sum()) < 5 * np.std(losses) / 10**0.5 + 0.02


def auxiliary(x: Tensor, size: int = 1, scale: float = 0.8) -> Tensor:
    loc = (x / 2).unsqueeze(-1).expand(len(x), size)
    return pyro.sample("a", dist.Normal(loc, scale).to_event(1), infer={"is_auxiliary": True})


def free(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = auxiliary(x)
        pyro.sample("z", dist.Normal(0.1 * a[..., 0], 0.8))


def surplus(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Delta(auxiliary(x, 2)[..., 0]))


def unused(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        auxiliary(x, 1, 0.5)
        pyro.sample("z", dist.Normal(x / 2, 0.8))


@pytest.mark.parametrize("guide", [free, surplus, unused])
def test_auxiliary_sites_without_a_counterpart_are_refused(guide: pv.evaluation.problem.Program) -> None:
    for tool in (pv.evaluation.evaluate, pv.evaluation.log_weights, pv.evaluation.rqmc):
        with pytest.raises(ValueError, match="'a' of the guide has no counterpart"):
            tool(normal_model, guide, X, 64, seed=0)
    with pytest.raises(ValueError, match="'a' of the guide has no counterpart"):
        pv.objectives.IWAE(2).loss(normal_model, guide, X)


def test_points_with_too_few_auxiliary_entries_are_refused() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = auxiliary(x)
            pyro.sample("z", dist.Delta(a.expand(*a.shape[:-1], 2), event_dim=1))

    with pytest.raises(ValueError, match="guide, such as 'a', have 3 entries, but 6"):
        pv.evaluation.evaluate(model, guide, X, 10, seed=0)


def test_auxiliary_noise_of_points_is_right() -> None:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(auxiliary(x)[..., 0]))

    check_close(pv.evaluation.evaluate(normal_model, guide, X, 3000, seed=0), exact_normal(X))
