"""Sites' log-probabilities added up per draw and datum, enumerated sites summed out by Pyro's variable elimination."""

from collections import OrderedDict
from typing import Any

import torch
from opt_einsum import get_symbol
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from torch import Tensor

from pyrovae._waist.sites import Site


def add_up(terms: list[tuple[Site, Tensor]], draws_dim: int | None, data_dim: int) -> Tensor:
    """Adds sites' terms per datum, enumerated sites summed out, to shape ``(num_samples or 1, N or 1)``."""
    if not any("_enumerate_dim" in site["infer"] for site, _ in terms):
        per_datum = [_per_datum(term, draws_dim, data_dim) for _, term in terms]
        return sum(per_datum[1:], start=per_datum[0]) if per_datum else torch.zeros(())
    kept = [dim for dim in (draws_dim, data_dim) if dim is not None]
    plates = {frame.dim: frame for site, _ in terms for frame in site["cond_indep_stack"] if frame.vectorized}
    symbols: Any = {dim: get_symbol(i) for i, dim in enumerate(plates)}
    tree: Any = OrderedDict()
    sum_dims = set()
    for site, term in terms:
        ids = site["infer"]["_dim_to_id"]
        enumerated = {dim: get_symbol(len(plates) + ids[dim]) for dim in ids}
        sum_dims |= set(enumerated.values())
        ordinal = frozenset(symbols[frame.dim] for frame in site["cond_indep_stack"] if frame.vectorized)
        tree.setdefault(ordinal, []).append(packed.pack(term, symbols | enumerated))
    total: Any = contract_to_tensor(
        tree,
        sum_dims,
        target_ordinal=frozenset(symbols[dim] for dim in kept),
        ring=LogRing(dim_to_size={symbols[dim]: plates[dim].size for dim in kept}),
    )
    order = [total._pyro_dims.index(symbols[dim]) for dim in kept]
    return total.permute(order).reshape(-1, total.shape[order[-1]])


def _per_datum(log_prob: Tensor, draws_dim: int | None, data_dim: int) -> Tensor:
    """Sums over all dimensions but the draws and the data, to shape ``(num_samples or 1, N or 1)``."""
    kept = [data_dim] if draws_dim is None else [draws_dim, data_dim]
    padded = log_prob.reshape((1,) * (-min(kept) - log_prob.ndim) + log_prob.shape)
    summed = [dim for dim in range(-padded.ndim, 0) if dim not in kept]
    per_datum = padded.sum(summed) if summed else padded
    return per_datum.reshape(-1, per_datum.shape[-1])
