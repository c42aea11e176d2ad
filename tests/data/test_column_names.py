"""Columns are matched by position, so a table with the same columns in another order is refused."""

from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import pyrovae as pv

NAMES = ["height", "smokes", "visits"]
REORDERED = ["visits", "smokes", "height"]


def table(names: list[str], rows: int = 12) -> pd.DataFrame:
    """Return a table whose columns all have the same support, so that only their names distinguish them."""
    values = torch.arange(3.0 * rows).reshape(rows, 3) % 2
    return pd.DataFrame(values.numpy(), columns=NAMES)[names]


def vae() -> pv.VAE:
    pyro.set_rng_seed(0)
    mlp, lik = pv.networks.mlp, pv.likelihoods
    parts: Any = {"height": lik.Normal(mlp(2, 1)), "smokes": lik.Bernoulli(mlp(2, 1)), "visits": lik.Poisson(mlp(2, 1))}
    return pv.VAE(pv.priors.StandardNormal(2), lik.Joint(parts), pv.posteriors.DiagonalNormal(mlp(3, 8, 4)))


TOOLS = {
    "fit": lambda vae, x: pv.fit(vae, x, epochs=1, progress=False),
    "fit, valid": lambda vae, x: pv.fit(vae, table(NAMES), x, epochs=1, progress=False),
    "evaluate": lambda vae, x: pv.evaluation.evaluate(vae, x, 10, seed=0),
    "log_likelihood": lambda vae, x: pv.evaluation.log_likelihood(vae, x, seed=0),
    "to_inference_data": lambda vae, x: pv.evaluation.to_inference_data(vae, x, num_samples=10, seed=0),
    "elbo_surgery": lambda vae, x: pv.evaluation.elbo_surgery(vae, x, seed=0),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_columns_in_another_order_than_in_joint_are_refused(tool: str) -> None:
    with pytest.raises(
        ValueError, match=r"Columns are matched by position.* table\[\['height', 'smokes', 'visits'\]\]"
    ):
        TOOLS[tool](vae(), table(REORDERED))


def test_a_function_that_uses_the_likelihood_checks_its_columns() -> None:
    module = vae()

    def model(x: Tensor) -> None:
        module.model(x)

    with pytest.raises(ValueError, match="Joint has them in the order"):
        pv.evaluation.evaluate(model, module.guide, table(REORDERED), 10, seed=0)


@pytest.mark.parametrize("names", [NAMES, ["a", "b", "c"]])
def test_the_order_of_joint_and_other_names_are_accepted(names: list[str]) -> None:
    x = table(NAMES).set_axis(names, axis=1)
    same = pv.evaluation.evaluate(vae(), torch.tensor(table(NAMES).to_numpy()), 10, seed=0)
    assert (pv.evaluation.evaluate(vae(), x, 10, seed=0).log_likelihood == same.log_likelihood).all()


def test_held_out_columns_must_have_the_order_of_the_training_data_for_every_likelihood() -> None:
    mlp = pv.networks.mlp
    plain = pv.VAE(
        pv.priors.StandardNormal(2), pv.likelihoods.Normal(mlp(2, 3)), pv.posteriors.DiagonalNormal(mlp(3, 8, 4))
    )
    with pytest.raises(ValueError, match=r"valid is a table with the columns .* but train has them in the order"):
        pv.fit(plain, table(NAMES), table(REORDERED), epochs=1, progress=False)


def test_a_module_without_names_states_no_order() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 1.0).expand((*z.shape, 3)).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))

    assert pv.evaluation.evaluate(model, guide, table(REORDERED), 10, seed=0).log_likelihood.notnull().all()
