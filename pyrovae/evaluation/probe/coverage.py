"""The support of the guide: a part of the posterior for which the guide has no density, found by draws of the model."""

from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae._waist.densities import log_guide
from pyrovae._waist.draws import run_guide, run_model
from pyrovae._waist.plates import dim_of, plate_names
from pyrovae._waist.scoring import masked_score
from pyrovae._waist.summation import sum_per_datum
from pyrovae._waist.support import is_discrete, is_real
from pyrovae.evaluation.probe.trials import Reference, Trials

FEW = 3  # data by which the guide is checked
WIDE_DRAWS = 64  # draws of model and guide
MISSED = 0.05  # share of the posterior that a guide may miss: 0.05 nats


def missed_part(trials: Trials, one: Reference, *, cuttable: bool, vectorize: bool) -> str:
    """Return what is wrong with a guide that misses a part of the posterior; empty if nothing is.

    Where all of the guide's sites can take any real number, or the guide enumerates sites, nothing is run.
    """
    bounded = [site["name"] for site in one.latents if not (is_real(site["fn"]) or is_discrete(site["fn"]))]
    if one.enumerates or not bounded:
        return ""
    size = trials.few(FEW, cuttable=cuttable)
    runs: list[dict[str, Any]] = [{"draws": 1, "nesting": None}] * (WIDE_DRAWS // 4)
    if vectorize:
        runs = [{"draws": WIDE_DRAWS, "nesting": one.nesting}]
    try:
        inside = torch.cat([trials.run(size, dict(one.weights.chosen), **run).log_weights for run in runs])
        outside = torch.cat([_unreached(trials, one, size, cuttable=cuttable, **run) for run in runs])
    except (RuntimeError, ValueError):  # of a model that does not take draws from its prior
        return ""
    of_both = torch.stack([inside.double().logsumexp(0), outside.double().logsumexp(0)])
    missed = float(of_both.softmax(0)[1].nan_to_num(0.0).max())
    if missed <= MISSED:
        return ""
    return (
        f"the guide has no density for about {missed:.0%} of a datum's posterior, as the support of its latent "
        f"sites {bounded} is smaller than the model's, and estimates of log p(x) would be too low; give these "
        f"sites the support that they have in the model"
    )


def _unreached(trials: Trials, one: Reference, size: int, *, cuttable: bool, draws: int, nesting: int | None) -> Tensor:
    """Return log p(x | z) of draws of the model, shape ``(draws, n)``; -inf if the guide can make the draw."""
    plate, chosen = one.weights.plate, one.weights.chosen
    plate = plate._replace(size=size if cuttable else plate.size)
    options: Any = {"kwargs": trials.options["kwargs"], "nesting": nesting}
    args = trials.args(size)
    with pyro.validation_enabled(False):
        sites = run_model(trials.model, args, dict(chosen), draws, **options)
        values = {site["name"]: site["value"] for site in sites if not site["is_observed"]}
        observed = [site for site in sites if site["is_observed"] and plate.name in plate_names(site)]
        terms = [(site, masked_score(site)) for site in observed]
        draws_dim = None if nesting is None else -nesting - 1
        likelihood = sum_per_datum(terms, draws_dim, dim_of(plate)).expand(draws, plate.size)
        drawn = run_guide(trials.guide, args, draws, values=chosen | values, **options)
        return torch.where(log_guide(drawn, plate) == -torch.inf, likelihood, -torch.inf)
