"""A check that all data lie in the support of the likelihood.

The check also covers data that the first run of a program (:mod:`pyrovae.evaluation.probe.first_run`) did not score.
"""

from typing import Any

import torch
from torch import Tensor

from pyrovae._waist.errors import OutsideSupportError, outside_support
from pyrovae._waist.plates import dim_of, plate_names
from pyrovae._waist.scoring import is_outside
from pyrovae._waist.sites import Site, is_point
from pyrovae._waist.support import common_support, has_varying_support, is_real, support_of
from pyrovae.evaluation.batches import batches
from pyrovae.evaluation.probe.trials import Reference, Trials

MOST_DRAWS = 64  # if the support depends on latents, a datum must lie inside it for at least one of these draws
WIDTH = 1024  # number of data that are checked together


def check_data_support(trials: Trials, one: Reference, *, cuttable: bool) -> None:
    """Check that all data lie in the support of the likelihood.

    If a site observes an argument of the program, the values of this argument are compared with the support. If a site
    observes another value, the program runs on all data with Pyro's validation.

    Raises:
        ValueError: If a datum lies outside the support.
    """
    plate, is_checked = one.weights.plate, one.size >= trials.size and one.weights.plate.size == trials.size
    args = trials.args(one.size)
    for site in one.weights.model_sites:
        if not site["is_observed"] or plate.name not in plate_names(site) or is_point(site["fn"]):
            continue
        if has_varying_support(site["fn"]):
            _check_draws(trials, one, site["name"], cuttable=cuttable)
        elif not (is_checked or is_real(site["fn"])):
            position = next((i for i, arg in enumerate(args) if _is_same(arg, site["value"])), None)
            support = common_support(support_of(site["fn"]))
            if position is None or support is None:
                for batch in batches(trials.data, trials.device, plate, WIDTH, cuttable=cuttable):
                    trials.score(batch.args, batch.subsample)
                return
            _check_argument(trials, site, position, support)


def _check_draws(trials: Trials, one: Reference, name: str, *, cuttable: bool) -> None:
    """Check the data of the site ``name``, whose support depends on the latents.

    Each datum must lie in the support for at least one of ``MOST_DRAWS`` draws of the latents.
    """
    weights, known = one.weights, set(trials.finite.tolist())
    for batch in batches(trials.data, trials.device, weights.plate, WIDTH, cuttable=cuttable):
        left = torch.tensor([(batch.start + i) % trials.size in known for i in range(batch.size)])
        for _ in range(MOST_DRAWS):
            sites = trials.score(batch.args, dict(batch.subsample)).model_sites
            site = next(site for site in sites if site["name"] == name)
            left = left & is_outside(site, dim_of(weights.plate), weights.nesting).cpu()
            if not left.any():
                break
        else:
            index = int(left.nonzero()[0])
            reason = f"datum {batch.start + index} lies outside the support for each of {MOST_DRAWS} draws"
            raise OutsideSupportError(outside_support(site, reason))


def _check_argument(trials: Trials, site: Site, position: int, support: Any) -> None:
    data, finite = trials.data, trials.finite
    for start in range(0, len(finite), WIDTH):
        inside = support.check(data.select(finite[start : start + WIDTH], data.device)[position])
        if not inside.all():
            bad = int(finite[start + int((~inside.reshape(len(inside), -1).all(1)).nonzero()[0])])
            trials.score(data.batch(bad, bad + 1, trials.device))  # raises the error that explains what is wrong
            raise ValueError(
                f"site {site['name']!r}: datum {bad} lies outside the support of the distribution. Correct or remove "
                f"this datum, or use a distribution with a larger support."
            )


def _is_same(arg: Any, value: Any) -> bool:
    if not (isinstance(arg, Tensor) and isinstance(value, Tensor)):
        return False
    return arg is value or (arg.shape == value.shape and bool(torch.equal(arg, value.to(arg))))
