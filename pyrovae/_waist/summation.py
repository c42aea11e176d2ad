"""The only place where log-probabilities of sites are summed per draw and datum.

Every objective, estimator and diagnostic calls :func:`sum_per_datum`. Pyro's variable elimination sums out discrete
sites that request to be enumerated.
"""

from collections import OrderedDict
from functools import reduce
from typing import Any

import torch
from opt_einsum import get_symbol
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

from pyrovae._waist.sites import Site

Term = tuple[Site, Tensor]


def sum_per_datum(terms: list[Term], draws_dim: int | None, data_dim: int) -> Tensor:
    """Sum log-probabilities over all dimensions except those of the draws and of the data.

    Args:
        terms: Sites with their log-probabilities, in the batch shape of each site, nats.
        draws_dim: Dimension of the draws, counted from the right. ``None`` if the program ran without one.
        data_dim: Dimension of the data plate, counted from the right.

    Returns:
        Tensor, shape ``(num_draws or 1, N or 1)``, nats.
    """
    if any("_enumerate_dim" in site["infer"] for site, _ in terms):
        return _sum_out(terms, draws_dim, data_dim)
    per_datum = [_reduce(term, draws_dim, data_dim) for _, term in terms]
    return sum(per_datum[1:], start=per_datum[0]) if per_datum else torch.zeros((1, 1))


def _reduce(log_prob: Tensor, draws_dim: int | None, data_dim: int) -> Tensor:
    kept = [data_dim] if draws_dim is None else [draws_dim, data_dim]
    padded = log_prob.reshape((1,) * (-min(kept) - log_prob.ndim) + log_prob.shape)
    summed = [dim for dim in range(-padded.ndim, 0) if dim not in kept]
    per_datum = padded.sum(summed) if summed else padded
    return per_datum.reshape(-1, per_datum.shape[-1])


def _sum_out(terms: list[Term], draws_dim: int | None, data_dim: int) -> Tensor:
    kept = [dim for dim in (draws_dim, data_dim) if dim is not None]
    plates = {frame.dim: frame for site, _ in terms for frame in site["cond_indep_stack"] if frame.vectorized}
    sizes = {dim: frame.size for dim, frame in plates.items()}
    symbols: Any = {dim: get_symbol(i) for i, dim in enumerate(plates)}
    tree: Any = OrderedDict()
    sum_dims = set()
    dtype = reduce(torch.promote_types, (term.dtype for _, term in terms))  # einsum does not promote types itself
    for site, term in terms:
        ids = site["infer"].get("_dim_to_id", {})  # missing in a run without enumeration
        enumerated = {dim: get_symbol(len(plates) + ids[dim]) for dim in ids}
        sum_dims |= set(enumerated.values())
        ordinal = frozenset(symbols[frame.dim] for frame in site["cond_indep_stack"] if frame.vectorized)
        for dim in (dim for dim in sizes if sizes[dim] < 1 and term.ndim >= -dim):
            sizes[dim] = max(sizes[dim], term.shape[dim])  # Pyro gives the size -1 to a plate without a size
        tree.setdefault(ordinal, []).append(packed.pack(term.to(dtype), symbols | enumerated))
    total: Any = contract_to_tensor(
        tree,
        sum_dims,
        target_ordinal=frozenset(symbols[dim] for dim in kept),
        ring=LogRing(dim_to_size={symbols[dim]: sizes[dim] for dim in kept}),
    )
    order = [total._pyro_dims.index(symbols[dim]) for dim in kept]
    return total.permute(order).reshape(-1, total.shape[order[-1]])
