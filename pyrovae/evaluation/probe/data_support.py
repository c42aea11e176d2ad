"""The support of the likelihood: a check of the data that the first run did not score."""

from typing import Any

import torch
from torch import Tensor

from pyrovae._waist.sites import Site, is_point
from pyrovae._waist.support import common_support, is_real, support_of
from pyrovae.evaluation.batches import batches
from pyrovae.evaluation.probe.trials import Reference, Trials

WIDTH = 1024  # data that are looked at together


def check_data_support(trials: Trials, one: Reference, *, cuttable: bool) -> None:
    """Check that all data lie in the support of the likelihood.

    The support is compared with the argument that a site observes, or, if there is none, the program runs on all data.

    Raises:
        ValueError: If a datum lies outside.
    """
    plate = one.weights.plate
    if one.size >= trials.size and plate.size == trials.size:
        return
    args = trials.args(one.size)
    for site in one.weights.model_sites:
        if not site["is_observed"] or is_real(site["fn"]) or is_point(site["fn"]):
            continue
        position = next((i for i, arg in enumerate(args) if _is_same(arg, site["value"])), None)
        support = common_support(support_of(site["fn"]))
        if position is None or support is None:
            for batch in batches(trials.data, trials.device, plate, WIDTH, cuttable=cuttable):
                trials.score(batch.args, batch.subsample)
            return
        _check_argument(trials, site, position, support)


def _check_argument(trials: Trials, site: Site, position: int, support: Any) -> None:
    data, finite = trials.data, trials.finite
    for start in range(0, len(finite), WIDTH):
        inside = support.check(data.select(finite[start : start + WIDTH], data.device)[position])
        if not inside.all():
            bad = int(finite[start + int((~inside.reshape(len(inside), -1).all(1)).nonzero()[0])])
            trials.score(data.batch(bad, bad + 1, trials.device))  # for the error that says what is wrong with it
            raise ValueError(f"site {site['name']!r}: datum {bad} lies outside of the support of its distribution")


def _is_same(arg: Any, value: Any) -> bool:
    if not (isinstance(arg, Tensor) and isinstance(value, Tensor)):
        return False
    return arg is value or (arg.shape == value.shape and bool(torch.equal(arg, value.to(arg))))
