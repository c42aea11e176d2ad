"""Facts about a program, found by one run of guide and model before the first training step.

The loss of a batch of B data is the sum of the losses of these data, multiplied by a scale s. The product is as large
as the loss of B s data, so the loss is said to be scaled to B s data. The scale is 1 unless the data plate is
subsampled or inside a ``poutine.scale``. The history of a run divides each loss by B s, so its bounds are in nats
per datum.

A site outside the data plate counts once in the loss. If there is such a site, the loss of a mini-batch must therefore
be scaled to all training data. Otherwise the posterior of the site would be that of a single mini-batch.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer.autoguide import AutoCallable, AutoGuide
from torch import Tensor

from pyrovae._waist.agreement import check_same_latents
from pyrovae._waist.plates import outermost_plate, site_plates
from pyrovae._waist.scoring import score
from pyrovae._waist.single_runs import trace
from pyrovae._waist.sites import Program, Site, is_deterministic, is_enumerated, is_point
from pyrovae.training.batches import Batch

SMALL = 1e-6  # relative rounding error of a number of data in float32


class Facts(NamedTuple):
    """Facts about a program, found by one run on a batch.

    Attributes:
        plate: Name of the data plate.
        data_count: Number of data to which the loss of the batch is scaled.
        full_size: Number of data that the plate declares, -1 if it declares none.
        outside: Scales, by site name, of two kinds of sites outside the data plate: latent sites, and observed sites
            whose log-probability depends on a parameter.
        local: Name of a latent site that the guide has inside the data plate; ``None`` if there is none.
        is_finite: True if all log-probabilities are finite.
        scales: For each site in the data plate, by name, its scale as text; empty if all scales are equal.
        summed_out: Name of a site that the model enumerates and the guide does not have; ``None`` if there is none.
    """

    plate: str
    data_count: float
    full_size: int
    outside: dict[str, float]
    local: str | None
    is_finite: bool
    scales: dict[str, str]
    summed_out: str | None


def inspect_program(model: Program, guide: Program, batch: Batch) -> Facts:
    """Return facts about a program, found by one run of guide and model with Pyro's validation.

    Point guides, such as AutoDelta, are accepted, because Pyro's ELBO trains them.

    Raises:
        ValueError: If model and guide disagree about their latent sites, no plate holds the observed sites, or a value
            lies outside the support of its distribution.
    """
    with pyro.validation_enabled():
        model_sites, guide_sites = trace(model, guide, batch, {})
        latent = {site["name"] for site in model_sites if not site["is_observed"]}
        points = {site["name"] for site in guide_sites if is_point(site["fn"])} & latent
        check_same_latents(*([s for s in sites if s["name"] not in points] for sites in (model_sites, guide_sites)))
        densities = [(site, score(site, strict=True)) for site in model_sites + guide_sites]
    observed = [site for site in model_sites if site["is_observed"] and not is_deterministic(site)]
    plate = outermost_plate([site for site in observed if site_plates(site)] or observed)
    drawn = {site["name"] for site in guide_sites}
    local = {site["name"] for site in model_sites + guide_sites if _is_inside(site, plate.name)}
    outside = [site for site in model_sites + guide_sites if site["name"] not in local]
    outside = [site for site in outside if not site["is_observed"]] + _of_parameters(outside, model, guide, batch)
    size = plate.size if plate.size > 0 else len(batch[0])  # Pyro sets the size to -1 if none is given
    inside = [site for site in model_sites + guide_sites if site["name"] in local and not is_deterministic(site)]
    is_common = _scaled_alike(inside, plate.name)
    return Facts(
        plate=plate.name,
        data_count=size * _data_scale([site for site in observed if site["name"] in local], plate),
        full_size=-1 if plate.full_size is None else plate.full_size,
        outside={site["name"]: _own_scale(site) or 1.0 for site in outside},
        local=next((site["name"] for site in guide_sites if site["name"] in local & latent), None),
        is_finite=all(_is_number(site, density) for site, density in densities),
        scales={} if is_common else {site["name"]: _in_words(_without_plates(site, plate.name)) for site in inside},
        summed_out=next(
            (site["name"] for site in filter(is_enumerated, model_sites) if site["name"] not in drawn), None
        ),
    )


def check_sizes(facts: Facts, guide: Program, batch: int, total: int, most: int) -> None:
    """Raise ValueError if the loss of a batch has another optimum than the loss of all data.

    Args:
        facts: Facts about the program on the batch.
        guide: Pyro program of q(z | x).
        batch: Number of data in the batch.
        total: Number of data in the set that is checked (training or validation), from which the batch is drawn.
        most: Number of training data.

    Raises:
        ValueError: If a site lies outside the data plate, and the plate declares more data than the training set has;
            if a site lies outside the data plate, and the loss of a mini-batch is scaled to fewer data than ``total``;
            or if an autoguide has parameters for each datum, and the loss is scaled to fewer data than ``total``.
    """
    for name, scale in facts.outside.items():
        declared = facts.data_count / scale if scale and batch < total else float(facts.full_size)
        if declared > most * (1 + SMALL):
            raise ValueError(
                f"site {name!r} lies outside the data plate {facts.plate!r}, which declares {declared:g} data, but "
                f"there are {most} training data. Training would fit the posterior of the site to {declared:g} data. "
                f"Declare the number of training data, pyro.plate({facts.plate!r}, {most}, "
                f"subsample=torch.arange(len(x))), or pass all {declared:g} data."
            )
    if batch >= total:
        return
    if facts.local is not None and _has_local_parameters(guide) and facts.data_count < total * (1 - SMALL):
        raise ValueError(
            f"{type(guide).__name__} has parameters of site {facts.local!r} for each datum, but a mini-batch holds "
            f"{batch} of {total} data. Train on one batch of all data (batch_size={total}), or write a guide that "
            f"computes the parameters from the data."
        )
    for name, scale in facts.outside.items():
        if scale and facts.data_count / scale < total * (1 - SMALL):
            raise ValueError(
                f"site {name!r} lies outside the data plate {facts.plate!r}, and the loss of a mini-batch of {batch} "
                f"data is scaled to {facts.data_count / scale:g} data, not to all {total}. The posterior of the site "
                f"would be that of a mini-batch. Declare the full size of the plate, pyro.plate({facts.plate!r}, "
                f"{total}, subsample=torch.arange(len(x))), or train on one batch of all data, batch_size={total}."
            )


def _of_parameters(sites: list[Site], model: Program, guide: Program, batch: Batch) -> list[Site]:
    """Return the observed sites among ``sites`` whose log-probability depends on a parameter."""
    names = {site["name"] for site in sites if site["is_observed"]}
    if not names:
        return []
    with torch.enable_grad():
        model_sites, guide_sites = trace(model, guide, batch, {})
        return [site for site in model_sites + guide_sites if site["name"] in names and score(site).requires_grad]


def _is_inside(site: Site, plate: str) -> bool:
    return plate in {frame.name for frame in site_plates(site)}


def _own_scale(site: Site, within: str = "") -> float | None:
    """Return the scale of a site (see :func:`_without_plates`), or None if the scale is not a single number."""
    scale = _without_plates(site, within)
    return scale.item() if scale.numel() == 1 else None


def _without_plates(site: Site, within: str) -> Tensor:
    """Return the scale of a site, divided by the subsampling factors of all its plates except the plate ``within``.

    The subsampling factor of a plate is the ratio of its full size to the size of its subsample. The result is
    always on the CPU, so that the scales of different sites can be compared.
    """
    inner = [frame for frame in site["cond_indep_stack"] if frame.name != within and frame.size > 0]
    given = site["scale"]
    scale = given.detach().cpu().double() if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float64)
    return scale / math.prod(frame.full_size / frame.size for frame in inner)


def _scaled_alike(inside: Sequence[Site], plate: str) -> bool:
    """Return whether all sites of the data plate have the same scale."""
    scales = [_without_plates(site, plate) for site in inside]
    pairs = [torch.broadcast_tensors(scale, scales[0]) for scale in scales]
    return all(torch.allclose(scale, first, rtol=SMALL, atol=0.0) for scale, first in pairs)


def _data_scale(observed: Sequence[Site], plate: Any) -> float:
    """Return the weight of a datum in the loss.

    This weight is the scale of the observed sites. If this scale differs between sites or data, the weight is the full
    size of the plate divided by the size of its subsample.
    """
    scale = _own_scale(observed[0], plate.name) if observed and _scaled_alike(observed, plate.name) else None
    return scale or float(plate.full_size / plate.size)


def _in_words(scale: Tensor) -> str:
    return f"{scale.item():g}" if scale.numel() == 1 else f"{scale.min().item():g} to {scale.max().item():g}"


def _is_number(site: Site, log_prob: Tensor) -> bool:
    mask = site["mask"]
    if mask is False:
        return True
    wrong = ~log_prob.isfinite()
    return not bool((wrong & mask if isinstance(mask, Tensor) else wrong).any())


def _has_local_parameters(guide: Any) -> bool:
    parts: Iterable[Any] = guide.modules() if isinstance(guide, AutoGuide) else ()
    return isinstance(guide, AutoGuide) and not any(isinstance(part, AutoCallable) for part in parts)


def materialize(guide: Any, first: Callable[[], Batch]) -> None:
    """Run an autoguide on the first data if it has never run, because its first run creates its parameters."""
    parts = guide.modules() if isinstance(guide, torch.nn.Module) else ()
    if any(isinstance(part, AutoGuide) and part.prototype_trace is None for part in parts):
        with torch.no_grad(), pyro.poutine.block():
            guide(*first())
