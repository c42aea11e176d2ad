"""Sums of the log-probabilities of a program's sites, for each draw and datum.

Every objective, estimator and diagnostic calls :func:`sum_per_datum`. Discrete sites that request enumeration are
summed out by Pyro's variable elimination.
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


def sum_per_datum(
    terms: list[Term], draws_dim: int | None, data_dim: int, device: torch.device | None = None
) -> Tensor:
    """Sum log-probabilities over all dimensions except those of the draws and of the data.

    Args:
        terms: Sites with their log-probabilities, in the batch shape of each site, nats.
        draws_dim: Dimension of the draws, counted from the right. ``None`` if the program ran without a dimension of
            draws.
        data_dim: Dimension of the data plate, counted from the right.
        device: Device of the result if there are no terms; by default the CPU.

    Returns:
        Log-probabilities, shape ``(num_draws or 1, N or 1)``, nats.
    """
    if any("_enumerate_dim" in site["infer"] for site, _ in terms):
        return _sum_out(terms, draws_dim, data_dim)
    per_datum = [_reduce(term, draws_dim, data_dim) for _, term in terms]
    return sum(per_datum[1:], start=per_datum[0]) if per_datum else torch.zeros((1, 1), device=device)


def _reduce(log_prob: Tensor, draws_dim: int | None, data_dim: int) -> Tensor:
    kept = [data_dim] if draws_dim is None else [draws_dim, data_dim]
    padded = log_prob.reshape((1,) * (-min(kept) - log_prob.ndim) + log_prob.shape)
    summed = [dim for dim in range(-padded.ndim, 0) if dim not in kept]
    per_datum = padded.sum(summed) if summed else padded
    return per_datum.reshape(-1, per_datum.shape[-1])


def log_table(terms: list[Term], site: Site) -> Tensor:
    """Return log p(x, y) for each value y of an enumerated site, up to a constant; x are the data.

    All other enumerated sites are summed out. The site must not depend on another enumerated site.

    Args:
        terms: Sites with their log-probabilities, in the batch shape of each site, nats.
        site: Enumerated site, one of the sites in ``terms``.

    Returns:
        Log-probabilities, shape ``(num_values, *plates)``, nats. ``plates`` are the sizes of the site's plates. If a
        dimension between these plates has no plate of the site, its size is one.
    """
    plates = _Plates(terms)
    own = plates.enumerated(site)[site["infer"]["_enumerate_dim"]]
    dims = sorted(frame.dim for frame in site["cond_indep_stack"] if frame.vectorized)
    total = plates.contract([plates.symbols[dim] for dim in dims], own)
    order = [total._pyro_dims.index(symbol) for symbol in (own, *(plates.symbols[dim] for dim in dims))]
    shape = [plates.sizes[dim] if dim in dims else 1 for dim in range(min(dims, default=0), 0)]
    return total.permute(order).reshape(-1, *shape)


def _sum_out(terms: list[Term], draws_dim: int | None, data_dim: int) -> Tensor:
    plates = _Plates(terms)
    kept = [plates.symbols[dim] for dim in (draws_dim, data_dim) if dim is not None]
    total = plates.contract(kept)
    order = [total._pyro_dims.index(symbol) for symbol in kept]
    return total.permute(order).reshape(-1, total.shape[order[-1]])


def device_of(terms: list[Term]) -> torch.device | None:
    """Return the device of the log-probabilities in ``terms``, or ``None`` if ``terms`` is empty."""
    return next((term.device for _, term in terms), None)


class _Plates:
    """Log-probabilities of sites, grouped by the plates around the sites, for Pyro's variable elimination.

    Args:
        terms: Sites with their log-probabilities.

    Attributes:
        symbols: Symbol of each plate in Pyro's tensor contraction, by dimension of the plate.
        sizes: Size of each plate, by dimension of the plate.
    """

    def __init__(self, terms: list[Term]) -> None:
        plates = {frame.dim: frame for site, _ in terms for frame in site["cond_indep_stack"] if frame.vectorized}
        self.sizes = {dim: frame.size for dim, frame in plates.items()}
        self.symbols: Any = {dim: get_symbol(i) for i, dim in enumerate(plates)}
        self._tree: Any = OrderedDict()
        self._sum_dims: set[str] = set()
        dtype = reduce(torch.promote_types, (term.dtype for _, term in terms))  # einsum does not promote types itself
        for site, term in terms:
            enumerated = self.enumerated(site)
            self._sum_dims |= set(enumerated.values())
            ordinal = frozenset(self.symbols[frame.dim] for frame in site["cond_indep_stack"] if frame.vectorized)
            for dim in (dim for dim in self.sizes if self.sizes[dim] < 1 and term.ndim >= -dim):
                self.sizes[dim] = max(
                    self.sizes[dim], term.shape[dim]
                )  # Pyro gives the size -1 to a plate without a size
            self._tree.setdefault(ordinal, []).append(packed.pack(term.to(dtype), self.symbols | enumerated))

    def enumerated(self, site: Site) -> dict[int, str]:
        """Return a dictionary of the enumerated sites on which the log-probability of ``site`` depends.

        A value is the symbol of an enumerated site in Pyro's tensor contraction. Its key is the dimension along which
        the log-probability has one entry for each value of the enumerated site.
        """
        ids = site["infer"].get("_dim_to_id", {})  # missing in a run without enumeration
        return {dim: get_symbol(len(self.symbols) + ids[dim]) for dim in ids}

    def contract(self, kept: list[str], value: str | None = None) -> Any:
        """Sum the log-probabilities over plates, sum out enumerated sites, and return the result as one tensor.

        Args:
            kept: Plates that are not summed, given by their symbols in Pyro's tensor contraction. Each of these plates
                is a dimension of the result.
            value: Symbol of an enumerated site that is not summed out. The result has one entry for each value of this
                site. By default, all enumerated sites are summed out.
        """
        sizes = {symbol: self.sizes[dim] for dim, symbol in self.symbols.items() if symbol in kept}
        return contract_to_tensor(
            self._tree,
            self._sum_dims,
            target_ordinal=frozenset(kept),
            target_dims=None if value is None else {value},
            ring=LogRing(dim_to_size=sizes),
        )
