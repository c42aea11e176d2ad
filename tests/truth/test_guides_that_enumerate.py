"""Programs whose guide enumerates a site pass the same comparisons as others, and keep their plates apart from it."""

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

import pyrovae as pv
from tests.truth.programs import Program, check_close

E = pv.evaluation
IWAE = pv.objectives.IWAE
X = torch.randn(16, 2, generator=torch.Generator().manual_seed(0))
WEIGHTS, MEANS = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([-1.5, 0.0, 1.0])


def program(decode: Callable[[Tensor], Tensor]) -> Program:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(WEIGHTS))
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z) + MEANS[y].unsqueeze(-1), 1.0).to_event(1), obs=x)

    return model


def label_last(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, 0.9).to_event(1))
        pyro.sample("y", dist.Categorical(logits=z[..., :1] * torch.arange(3)), infer={"enumerate": "parallel"})


def label_first(x: Tensor) -> None:
    """The guide of z given y. A dimension of z runs over the values of y."""
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal((x - MEANS[y].unsqueeze(-1)) / 2, 0.9).to_event(1))


def exact(x: Tensor, decoder: np.ndarray) -> np.ndarray:
    """Return log p(x) of a linear decoder, a mixture of normal densities."""
    noise = stats.multivariate_normal(np.zeros(2), decoder @ decoder.T + np.eye(2))
    return np.log(sum(w * noise.pdf(x.numpy() - m) for w, m in zip(WEIGHTS.numpy(), MEANS.numpy(), strict=True)))


def centred(z: Tensor) -> Tensor:
    """Subtract the mean of an event; with several draws, dimension 1 is that of the data."""
    return z - z.mean(1, keepdim=True)


def one_draw(z: Tensor) -> Tensor:
    """Return the dimension of the data, and one of the values of y, without a dimension of draws."""
    if z.ndim > 3 or (z.ndim == 3 and len(z) != 3):
        raise RuntimeError("running_mean should contain 2 elements")
    return z


@pytest.mark.parametrize(
    ("decode", "guide", "decoder"),
    [(centred, label_last, np.eye(2) - 0.5), (one_draw, label_last, np.eye(2)), (one_draw, label_first, np.eye(2))],
)
def test_a_program_that_takes_one_draw_at_a_time(
    decode: Callable[[Tensor], Tensor], guide: Program, decoder: np.ndarray
) -> None:
    model = program(decode)
    with pytest.warns(UserWarning, match="other log-weights when many draws are scored in one run"):
        check_close(E.evaluate(model, guide, X, 40, seed=0), exact(X, decoder), 0.1)
    with pytest.raises(ValueError, match="other log-weights when many draws are scored in one run"):
        E.evaluate(model, guide, X, 40, seed=0, vectorize=True)
    with pytest.raises(ValueError, match="other log-weights when many draws are scored in one run"):
        IWAE(3).loss(model, guide, X)


@pytest.mark.parametrize("guide", [label_last, label_first])
@pytest.mark.parametrize("size", [5, 16])
@pytest.mark.parametrize("decode", [lambda z: z - z.mean(-2, keepdim=True), lambda z: z + z[..., -1:, :]])
def test_statistics_of_the_batch_are_refused(decode: Callable[[Tensor], Tensor], size: int, guide: Program) -> None:
    for call in (lambda: E.evaluate(program(decode), guide, X[:size], 20, seed=0),
                 lambda: IWAE(2).loss(program(decode), guide, X[:size])):  # fmt: skip
        with pytest.raises(ValueError, match="depends on the other data of its batch"):
            call()


def test_noise_of_the_guide_is_accepted() -> None:
    def noisy(x: Tensor) -> None:
        label_first(x + 0.1 * torch.rand_like(x))

    check_close(E.evaluate(program(lambda z: z), noisy, X, 1000, seed=0), exact(X, np.eye(2)))


def entries(x: Tensor) -> None:
    """The model has a plate to the left of the data plate, and the guide lacks it."""
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Categorical(WEIGHTS))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("entries", x.shape[1], dim=-2):
            pyro.sample("x", dist.Normal(z + MEANS[y], 1.0), obs=x.T)


def of_entries(x: Tensor) -> None:
    with pyro.plate("data", len(x), dim=-1):
        y = pyro.sample("y", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        pyro.sample("z", dist.Normal((x - MEANS[y].unsqueeze(-1)).sum(-1) / 4, 0.6))


@pytest.mark.parametrize("size", [2, 3])
def test_plates_of_the_model_alone_stay_apart_from_the_values_of_the_guide(size: int) -> None:
    x = torch.randn(6, size, generator=torch.Generator().manual_seed(0))
    density = stats.multivariate_normal(np.zeros(size), np.ones((size, size)) + np.eye(size))
    values = np.log(sum(w * density.pdf(x.numpy() - m) for w, m in zip(WEIGHTS.numpy(), MEANS.numpy(), strict=True)))
    check_close(E.evaluate(entries, of_entries, x, 500, seed=0, vectorize=True), values)
    check_close(E.evaluate(entries, of_entries, x, 40, seed=0, vectorize=False), values, 0.1)
    loss = IWAE(20, vectorize_particles=False).loss(entries, of_entries, x)
    assert loss == pytest.approx(-values.sum(), abs=1)


@pytest.mark.parametrize("guide", [label_last, label_first])
def test_quasi_random_draws(guide: Program) -> None:
    found = E.rqmc(program(lambda z: z), guide, X, 1024, seed=0)
    check_close(found, exact(X, np.eye(2)))
    assert float(found.mcse.mean()) < 0.5 * float(E.evaluate(program(lambda z: z), guide, X, 1024, seed=0).mcse.mean())
