"""The benchmark of programs with a known log p(x): the exact values, and the table."""

import json
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

from experiments.benchmarks import known_posteriors
from experiments.benchmarks.known_posteriors import PROGRAMS, Options, main


@pytest.mark.parametrize("name", ["2 curved modes", "curved ridge", "4 modes", "heavy tails"])
def test_exact_values_agree_with_many_draws_from_the_prior(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        known = PROGRAMS[name](3)
        prior = pyro.poutine.uncondition(known.model)
        logs = []
        for _ in range(20):
            with pyro.plate("draws", 5000, dim=-2):
                values = pyro.poutine.trace(prior).get_trace(known.x)
                latents = {site: values.nodes[site]["value"] for site in values.stochastic_nodes if site != "x"}
                trace = pyro.poutine.trace(pyro.poutine.condition(known.model, latents)).get_trace(known.x)
                logs.append(trace.nodes["x"]["fn"].log_prob(known.x).double())
    weights = torch.cat(logs).exp()
    error = weights.std(0) / len(weights) ** 0.5
    assert ((weights.mean(0) - known.exact.exp()).abs() < 5 * error).all()


SCALES = {
    "funnel with a positive scale": (dist.HalfCauchy(torch.tensor(1.0).double()), lambda tau: (tau**2 + 1).sqrt()),
    "scale of the noise": (dist.Normal(torch.tensor(-1.0).double(), 1.5), lambda v: ((2 * v).exp() + 1).sqrt()),
    "funnel, 9 latents": (dist.Normal(torch.tensor(0.0).double(), 1.5), lambda v: ((2 * v).exp() + 0.25).sqrt()),
}


@pytest.mark.parametrize("name", SCALES)
def test_exact_values_agree_with_draws_of_the_scale_given_which_the_data_are_normal(name: str) -> None:
    prior, deviation = SCALES[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        known = PROGRAMS[name](3)
        scales = deviation(prior.sample((300_000, 1)))[..., None]
    weights = dist.Normal(0.0, scales).log_prob(known.x.double()).sum(-1).exp()
    error = weights.std(0) / len(weights) ** 0.5
    assert ((weights.mean(0) - known.exact.exp()).abs() < 5 * error).all()


def test_the_table_has_a_row_for_each_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_posteriors, "PROGRAMS", {name: PROGRAMS[name] for name in ("counts", "heavy tails")})
    table = main(Options(num_data=6, num_samples=200, out=tmp_path))
    assert list(table.index) == ["counts", "heavy tails"]
    assert table.loc["counts", "reliable"] == "100%"
    kept = json.loads((tmp_path / "known_posteriors.json").read_text())
    assert kept["table"]["counts"]["evaluations"] == table.loc["counts", "evaluations"]
