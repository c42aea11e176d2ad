"""Checks of observed sites outside the data plate, whose log-probabilities belong to no single datum.

A log-weight belongs to one datum, so it cannot contain the log-probability of a site outside the data plate. Such a
site may be left out if p(x) is conditional on its value. This is the case if :func:`pyro.condition` fixes the value of
a latent site, and the log-probability of this value depends neither on the data nor on the latent sites of the plate.
Any other observed site outside the plate raises an error.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.errors import ProgramError
from pyrovae._waist.independence import largest_difference, with_other_data
from pyrovae._waist.plates import plate_names, shared_plates
from pyrovae._waist.scoring import mask_of, masked_score
from pyrovae._waist.sites import CONDITIONED, Site, is_factor

NUM_DRAWS = 8  # number of runs with new draws; draws of discrete latent sites may repeat earlier values


class OutsidePlateError(ProgramError):
    """Error for an observed site that lies outside the data plate and cannot be left out of the log-weights."""


def outside_terms(sites: Iterable[Site], plate: CondIndepStackFrame) -> list[Site]:
    """Return the observed sites outside the data plate, except sites whose entries are all masked.

    Deterministic sites are not returned either, because Pyro masks them.
    """
    outside = [site for site in sites if site["is_observed"] and plate.name not in plate_names(site)]
    return [site for site in outside if _is_counted(mask_of(site))]


def _is_counted(mask: Any) -> bool:
    return bool(mask.any()) if isinstance(mask, Tensor) else bool(mask)


def check_outside(sites: list[Site], plate: CondIndepStackFrame) -> None:
    """Check observed sites outside the data plate: their values must come from a handler like :func:`pyro.condition`.

    Sites whose entries are all masked are not checked.

    Raises:
        OutsidePlateError: If an observed site outside the data plate is a ``pyro.factor``, or its value comes from
            ``obs=``.
    """
    for site in outside_terms(sites, plate):
        if site["infer"].get(CONDITIONED):
            continue
        name = site["name"]
        latents = [other for other in sites if not other["is_observed"]]
        others = [frame.name for frame in shared_plates([*latents, site])] if latents else []
        remedy = f"move the site into this plate{f', or pass plate={others[0]!r}' if others else ''}"
        if is_factor(site):
            raise OutsidePlateError(
                f"the factor {name!r} lies outside the data plate {plate.name!r}, so it belongs to no datum and to no "
                f"log-weight. To score the factor, {remedy}. To leave the factor out, pass pyro.poutine.block(program, "
                f"hide=[{name!r}])."
            )
        raise OutsidePlateError(
            f"observed site {name!r} lies outside the data plate {plate.name!r}, so its log-probability belongs to no "
            f"datum and to no log-weight. To score the site, {remedy}. If p(x) is meant to be conditional on the site, "
            f"sample the site without obs= and pass pyro.condition(model, data={{{name!r}: value}})."
        )


def check_given(one: Any, score: Callable[[Sequence[Any]], Any], args: Sequence[Any]) -> None:
    """Check that the log-probability of a conditioned site outside the data plate is a constant.

    Programs without a conditioned site outside the plate are not run again.

    Args:
        one: Weights of a run with one draw. They contain the sites and the data plate of the run.
        score: Function that runs the programs on given arguments, with new draws, and returns the weights.
        args: Arguments of the programs in the run of ``one``.

    Raises:
        OutsidePlateError: If the log-probability of such a site changes with the draws or with the data.
    """
    known = _log_probabilities(one)
    if not known:
        return
    mixed = next(with_other_data(args, one.guide_sites, one.nesting, one.plate), None)  # None if there is one datum
    other_data = None if mixed is None else mixed[0]
    for given in (*([] if other_data is None else [other_data]), *[args] * NUM_DRAWS):
        try:
            found = _log_probabilities(score(given))
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
            if given is other_data:  # not every program accepts other data
                continue
            raise
        for name, term in found.items():
            if difference := largest_difference(term, known[name]):
                raise OutsidePlateError(
                    f"site {name!r} is given a value by a handler such as pyro.condition, and lies outside the data "
                    f"plate {one.plate.name!r}. Its log-probability depends on the data or on latent sites of the "
                    f"plate: it changed by {difference:.3g} nats in a run with other draws or other data. The "
                    f"log-probability is therefore a part of log p(x). Move the site into the plate."
                )


def _log_probabilities(weights: Any) -> dict[str, Tensor]:
    """Return the log-probabilities of the model's observed sites outside the data plate, nats, by name of the site."""
    terms = outside_terms(weights.model_sites, weights.plate)
    return {site["name"]: masked_score(site).detach().sum() for site in terms}
