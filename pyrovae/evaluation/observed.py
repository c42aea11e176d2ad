"""The entries of the arguments that the sites of a model observe."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae._waist.errors import ProgramError
from pyrovae._waist.plates import DRAWS
from pyrovae._waist.sites import Site
from pyrovae.evaluation.batches import Batch


def arranged(site: Site, value: Tensor, plate: str, event_shape: torch.Size | None = None) -> tuple[Tensor, list[str]]:
    """Return a site's value, reshaped to ``(draws, n, *rest)``, and the names of the dimensions in ``rest``.

    A dimension of a plate inside the data plate has the name of the plate. All other dimensions, which are event
    dimensions and batch dimensions without a plate, are named ``<site>_dim_0``, ``<site>_dim_1``, and so on.

    Args:
        site: Site of a run of the model.
        value: Value of the site, or another tensor with the batch shape of the site.
        plate: Name of the data plate.
        event_shape: Event shape of ``value``; by default the event shape of the site.
    """
    batch_shape, event_shape = (
        site["fn"].batch_shape,
        site["fn"].event_shape if event_shape is None else event_shape,
    )
    surplus = value.ndim - len(batch_shape) - len(event_shape)  # dimensions of size one for the plates of other sites
    value = value.reshape(value.shape[max(0, surplus) :]).expand(*batch_shape, *event_shape)
    plates = {frame.dim: frame.name for frame in site["cond_indep_stack"] if frame.vectorized}
    names = [plates.get(dim) for dim in range(-len(batch_shape), 0)]
    if DRAWS not in names:
        value, names = value.unsqueeze(0), [DRAWS, *names]
    front = [names.index(DRAWS), names.index(plate)]
    value = value.movedim(front, [0, 1])
    inner = [name for i, name in enumerate(names) if i not in front]
    kept = [(size, name) for size, name in zip(value.shape[2:], inner, strict=False) if name or size > 1]
    value = value.reshape(*value.shape[:2], *(size for size, _ in kept), *event_shape)
    numbers = itertools.count()
    labels = [name for _, name in kept] + [None] * len(event_shape)
    return value, [name or f"{site['name']}_dim_{next(numbers)}" for name in labels]


def values_per_datum(site: Site, value: Tensor, plate: str) -> Tensor:
    """Return a site's value in the order of :func:`arranged`, shape ``(draws, n, m)`` for m values of each datum."""
    value, _ = arranged(site, value, plate)
    return value.reshape(*value.shape[:2], -1)


def unshared(batch: Batch) -> Batch:
    """Return a batch with copies of the arguments, so that a view shows which argument a site observes.

    Without the copies, arguments could share memory, or entries of an expanded argument could.
    """
    return replace(batch, args=tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in batch.args))


def own_rows(batch: Batch, plate: str) -> list[Any]:
    """Return the arguments of a batch, restricted to the data that the data plate chooses if it subsamples."""
    if plate not in batch.subsample:
        return list(batch.args)
    return [arg[batch.subsample[plate]] if isinstance(arg, Tensor) else arg for arg in batch.args]


@dataclass(frozen=True)
class ObservedEntries:
    """The entries of an argument that a site of the model observes.

    Attributes:
        argument: Index of the argument.
        indices: Indices of the entries in the flattened argument, shape ``(n, m)`` for m entries of each datum. The
            entries are in the order of :func:`arranged`.
    """

    argument: int
    indices: Tensor


def entries_of(site: Site, observed: Tensor, args: Sequence[Any], plate: str) -> ObservedEntries:
    """Find the argument that a site observes, and the entries of this argument.

    The observed tensor is either a view of an argument, such as ``x[:, t]`` or ``x.T``, or a copy of an argument. The
    scored entries of a copy must equal those of the argument. The other entries of a copy may differ, as in
    ``x.nan_to_num()``. The dimensions of a copy may be permuted if only one permutation fits.

    Args:
        site: Site of a run of the model.
        observed: Value that the model observes at the site.
        args: Arguments of the model, restricted to the data of the run. They must not share memory.
        plate: Name of the data plate.

    Raises:
        ValueError: If the observed tensor is neither a view nor a copy of an argument, if it may be a copy of several
            arguments, or if the site has several values for an observed entry.
    """
    observed = torch.as_tensor(observed)
    value = arranged(site, observed, plate)[0][0]
    what = f"the value that the model observes at site {site['name']!r}, shape {tuple(observed.shape)},"
    if value.numel() != observed.numel():
        raise ProgramError(
            f"{what} is expanded to shape {tuple(value.shape)}, so an observed entry has several values at the site. "
            f"Expand the data before the call, and observe the expanded data."
        )
    tensors = {i: arg for i, arg in enumerate(args) if isinstance(arg, Tensor)}
    for i, arg in tensors.items():
        if (view := observed_entries(observed, arg)) is not None:
            return ObservedEntries(i, values_per_datum(site, view, plate)[0].to(arg.device))
    compared = scored_values(site, observed, plate).any(0)
    found = [
        ObservedEntries(i, indices)
        for i, arg in tensors.items()
        for indices in _orders(value, compared, arg, ordered=_starts_with_data(site, observed, plate))
    ]
    if len(found) > 1:  # entries that are not scored may decide
        values = values_per_datum(site, observed, plate)[0]
        found = [entries for entries in found if _equal(values, tensors[entries.argument], entries.indices)]
        if len(found) != 1:
            raise ProgramError(
                f"{what} equals several arguments of the model, or one argument in several orders. Observe an argument "
                f"itself or a view of it, obs=x. If the model converts or fills the argument, do so before the call."
            )
    if not found:
        raise ProgramError(
            f"{what} is neither a view nor a copy of an argument of the model. The arguments have shapes "
            f"{[tuple(arg.shape) for arg in tensors.values()]}. Compute the observed tensor before the call, pass it "
            f"as an argument, and observe this argument unchanged, obs=x."
        )
    return found[0]


def scored_values(site: Site, observed: Tensor, plate: str) -> Tensor:
    """Return whether each value of a site is scored, shape ``(draws, n, m)`` for m values of each datum.

    Values that a mask leaves out of the log-probability are not scored. An observed NaN is a missing entry, so it is
    not scored either.
    """
    return values_per_datum(site, scored_entries(site) & ~observed.isnan(), plate)


def scored_entries(site: Site) -> Tensor:
    """Return a boolean tensor in the shape of a site's value, which is false for entries that a mask leaves out."""
    value, distribution = site["value"], site["fn"]
    scored = torch.ones(value.shape, dtype=torch.bool, device=value.device)
    masks = [(site["mask"], distribution)]
    while hasattr(distribution, "base_dist"):
        if isinstance(distribution, dist.MaskedDistribution):
            masks.append((distribution._mask, distribution))
        distribution = distribution.base_dist
    for mask, of in masks:
        if isinstance(mask, Tensor):
            mask = mask.reshape(mask.shape + (1,) * len(of.event_shape))
        scored = scored if mask is None else scored & mask
    return scored


def observed_entries(observed: Tensor, arg: Tensor) -> Tensor | None:
    """Find the entries of ``arg`` that ``observed`` holds, if ``observed`` is a view of ``arg`` such as ``x[:, t]``.

    Returns:
        Indices in the flattened argument, in the shape of ``observed``. ``None`` if ``observed`` is not a view of the
        argument, if ``observed`` holds an entry of the argument more than once, or if the argument is an expanded
        tensor.
    """
    is_view = observed.dtype == arg.dtype and observed.untyped_storage().data_ptr() == arg.untyped_storage().data_ptr()
    if not is_view or 0 in arg.stride():  # entries of an expanded argument share their memory
        return None
    indices = torch.full((arg.untyped_storage().nbytes() // arg.element_size(),), -1)
    layout = (arg.shape, arg.stride(), arg.storage_offset())
    indices.as_strided(*layout).copy_(torch.arange(arg.numel()).reshape(arg.shape))
    found = indices.as_strided(observed.shape, observed.stride(), observed.storage_offset())
    return found if (found >= 0).all() and len(found.unique()) == found.numel() else None


def _orders(value: Tensor, compared: Tensor, arg: Tensor, *, ordered: bool) -> Iterator[Tensor]:
    """Yield the indices of entries of an argument that equal an observed value, one tensor for each order that fits.

    Args:
        value: Observed value, shape ``(n, *rest)``.
        compared: Entries that must be equal, shape ``(n, m)``.
        arg: Argument, shape ``(n, *event)``.
        ordered: True if the entries of the observed tensor itself are in the order of ``value``. Other orders are then
            tried only if this order does not fit.
    """
    if arg.shape[:1] != value.shape[:1] or arg.numel() != value.numel():
        return
    sizes, event = ([size for size in shape[1:] if size > 1] for shape in (value.shape, arg.shape))
    numbers = torch.arange(arg.numel(), device=arg.device)
    for order in itertools.permutations(range(len(sizes))):
        unchanged, permuted = order == tuple(range(len(sizes))), [sizes[i] for i in order]
        if unchanged or permuted == event:
            dims = [order.index(i) + 1 for i in range(len(sizes))]
            indices = numbers.reshape(len(value), *permuted).permute(0, *dims).reshape(len(value), -1)
            if _equal(value.reshape(len(value), -1), arg, indices, compared):
                yield indices
                if unchanged and ordered:
                    return


def _equal(value: Tensor, arg: Tensor, indices: Tensor, compared: Tensor | None = None) -> bool:
    """Return whether an observed value equals the entries of an argument with given indices, up to rounding of dtypes.

    Args:
        value: Observed value, shape ``(n, m)``.
        arg: Argument.
        indices: Indices in the flattened argument, shape ``(n, m)``.
        compared: Entries that are compared, shape ``(n, m)``; by default all.
    """
    dtype = value.dtype if value.is_floating_point() else torch.promote_types(value.dtype, arg.dtype)
    value, own = value.to(dtype), arg.flatten()[indices].to(dtype)
    equal = (value == own) | (value.isnan() & own.isnan())
    return bool((equal if compared is None else equal | ~compared).all())


def _starts_with_data(site: Site, observed: Tensor, plate: str) -> bool:
    """Return whether the first dimension of an observed tensor, apart from dimensions of size 1, runs over the data."""
    dim = next(frame.dim for frame in site["cond_indep_stack"] if frame.name == plate) - site["fn"].event_dim
    return all(size == 1 for size in observed.shape[:dim])
