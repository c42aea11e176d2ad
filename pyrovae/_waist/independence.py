"""A check, by two runs of model and guide, that each log-weight depends only on its own datum and draw.

A program that counts dimensions from the left (``h.softmax(1)``, ``h / h.sum(1)``) is right for one draw but wrong for
many, because the dimension of draws lies to the left of the data. A program that uses a statistic of the batch gives a
datum different log-weights in different batches. Neither program raises an error by itself. The same draws are
therefore scored twice: first alone, and then together with other draws or with other data in the batch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook

from pyrovae._waist.plates import site_plates
from pyrovae._waist.sites import Site, is_enumerated

FEW_DATA = 12  # with fewer data, each datum is scored without each of the others


def with_second_draw(
    sites: list[Site], nesting: int, plate: CondIndepStackFrame, data: range | None = None
) -> dict[str, Tensor]:
    """Return the value of each latent site with two draws for each datum, by name of the site.

    The values come from a run with one draw for each datum. Datum n keeps its draw of this run as its first draw. Its
    second draw is the draw of datum n + 1, or of the first datum if n is the last datum. Any value of the latents can
    be scored for any datum, so the second draw need not come from the guide for datum n.

    Dimensions of enumerated sites stay to the left of the dimension of draws.

    Args:
        sites: The guide's sites in a run without a dimension of draws.
        nesting: Nesting depth of the program's own plates.
        plate: The data plate.
        data: Indices of the data to keep; by default all data are kept.
    """
    assert plate.dim is not None
    values = {}
    for name, (value, event) in _drawn_values(sites, nesting).items():
        dim = plate.dim - event
        pair = torch.stack([value, value.roll(-1, dim)], dim=-nesting - 1 - event)
        values[name] = pair if data is None or pair.shape[dim] == 1 else pair.narrow(dim, data.start, len(data))
    return values


def _drawn_values(sites: list[Site], nesting: int) -> dict[str, tuple[Tensor, int]]:
    """Return a pair for each latent site, by name: its value, and the number of event dimensions of this value.

    The values have a batch dimension for every plate of the program. Enumerated sites are left out.
    """
    drawn = {}
    for site in sites:
        if site["is_observed"] or is_enumerated(site):
            continue
        event, value = site["fn"].event_dim, site["value"]
        batch = (1,) * (nesting - (value.ndim - event)) + value.shape[: value.ndim - event]
        drawn[site["name"]] = value.reshape(batch + value.shape[value.ndim - event :]), event
    return drawn


def kept_sets(size: int) -> list[Tensor]:
    """Return sets of data indices. For each set, a check keeps the data of the set and replaces all others by copies.

    If there are fewer than :data:`FEW_DATA` data, then for any two data i and j, at least one set contains i but not j.
    The sets therefore reveal every dependence of one datum on another. With more data, there are three sets. They
    reveal the usual dependences: of a datum on the first, middle or last datum, on its neighbour, or on the datum at
    the same place in reverse order.
    """
    index = torch.arange(size)
    if size >= FEW_DATA:
        golden, other = ((index * number) % 1 < 0.5 for number in (0.6180339887, 0.4142135624))
        return [index[golden], index[~golden], index[other]]
    number = next(n for n in range(1, FEW_DATA) if math.comb(n, n // 2) >= size)
    codes = list(combinations(range(number), number // 2))[:size]  # none of them is a subset of another
    sets = [[i for i, code in enumerate(codes) if place in code] for place in range(number)]
    return [torch.tensor(kept) for kept in sets if kept]


def with_other_data(
    args: Sequence[Any], sites: list[Site], nesting: int, plate: CondIndepStackFrame
) -> Iterator[tuple[tuple[Any, ...], dict[str, Tensor], Tensor]]:
    """Yield batches in which some data are kept, and copies of the kept data replace all other data.

    The draws are kept and replaced in the same way. The function :func:`kept_sets` chooses the kept data.

    Args:
        args: Arguments of the program. Tensors whose first dimension has the size of the plate are taken as data.
        sites: The guide's sites in a run without a dimension of draws.
        nesting: Nesting depth of the program's own plates.
        plate: The data plate.

    Yields:
        Arguments of the program, values of the latent sites, and indices of the kept data.
    """
    assert plate.dim is not None
    drawn = _drawn_values(sites, nesting)
    for kept in kept_sets(plate.size):
        index = kept[torch.arange(plate.size) % len(kept)]
        index[kept] = kept
        mixed = tuple(
            arg[index.to(arg.device)] if isinstance(arg, Tensor) and arg.shape[:1] == (plate.size,) else arg
            for arg in args
        )
        values = {}
        for name, (value, event) in drawn.items():
            dim = plate.dim - event
            values[name] = value if value.shape[dim] == 1 else value.index_select(dim, index.to(value.device))
        yield mixed, values, kept


def difference_by_data(one: Any, other: Any, kept: Tensor, *, with_guide: bool = False) -> float:
    """Return the largest difference between two runs in the log-probabilities of the kept data, nats.

    Args:
        one: Weights of a run.
        other: Weights of a run in which all data except the kept data were replaced.
        kept: Indices of the data that are the same in both runs.
        with_guide: If true, the guide's log-probabilities are compared in addition to the model's.
    """
    parts = 3 if with_guide else 2
    if one.densities is None or other.densities is None:
        pairs = [(other.log_weights, one.log_weights)]
    else:
        pairs = list(zip(other.densities[:parts], one.densities[:parts], strict=True))
    index = kept.to(one.log_weights.device)
    return max(largest_difference(second[:, index], first[:, index]) for second, first in pairs)


def depends_on_other_data(reason: str, weights: Any) -> str:
    """Return the message for a program in which the log-weight of a datum depends on other data.

    Args:
        reason: Text that states by how much a log-weight differs.
        weights: Weights of a run of the program.
    """
    plate = weights.plate
    others = {frame.name for site in weights.model_sites for frame in site_plates(site)} - {plate.name}
    guessed = (
        f"The data plate is assumed to be {plate.name!r}; if this is wrong, pass plate={min(others)!r}. "
        if others
        else ""
    )
    return (
        f"the log-weight of a datum depends on the other data of its batch, {reason}. {guessed}Pass quantities that "
        f"the program computes from all data (a mean, a batch statistic) as constants, and put batch normalization in "
        f"evaluation mode, with track_running_stats=True"
    )


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Return the largest difference between two tensors of log-weights, nats; 0 if they agree up to rounding errors."""
    first, second = first.double(), second.double()
    difference = (first - second).abs()
    difference = torch.where((first == second) | (first.isnan() & second.isnan()), 0.0, difference).nan_to_num(
        nan=torch.inf
    )
    allowed = 1e-3 + 1e-4 * torch.where(second.isfinite(), second.abs(), 0.0)
    return float(torch.where(difference > allowed, difference, 0.0).max()) if difference.numel() else 0.0


class BatchNormInputs:
    """Context manager that records, for each batch-normalization layer, the number of dimensions of its input.

    Attributes:
        ndims: Number of dimensions of the input, by layer.
    """

    def __init__(self) -> None:
        self.ndims: dict[nn.Module, int] = {}
        self._hook: Any = None

    def __enter__(self) -> "BatchNormInputs":
        self._hook = register_module_forward_pre_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _note(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(module, _BatchNorm) and inputs and isinstance(inputs[0], Tensor):
            self.ndims[module] = inputs[0].ndim

    def differing(self, other: "BatchNormInputs") -> nn.Module | None:
        """Return the first layer whose inputs in ``self`` and ``other`` differ in their number of dimensions, or None.

        A layer that ``other`` did not record is skipped.
        """
        known: Mapping[nn.Module, int] = other.ndims
        return next((layer for layer, ndim in self.ndims.items() if known.get(layer, ndim) != ndim), None)


def needs_one_draw_a_run(reason: str) -> str:
    """Return the message for a program that cannot score many draws in one run."""
    return (
        f"the program gives other log-weights when many draws are scored in one run ({reason}). The draws lie along a "
        f"dimension to the left of its plates. The program must therefore count dimensions from the right, softmax(-1) "
        f"instead of softmax(1), and its networks must keep leading dimensions"
    )
