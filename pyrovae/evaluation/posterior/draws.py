"""Draws from the posterior of each datum, by sampling importance resampling.

Draws of the guide are chosen with their Pareto-smoothed weights as probabilities. If the model sums out
latent variables, these variables are drawn afterwards, given the chosen draws.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import Given, with_draws
from pyrovae._waist.errors import ProgramError
from pyrovae._waist.plates import DRAWS, plate_names
from pyrovae._waist.sites import Program, Site
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.posterior.summed_out import GuideDraws, draw_summed_out
from pyrovae.evaluation.problem import Problem
from pyrovae.evaluation.simulation import observed_entries, scored_entries


@dataclass(frozen=True)
class PosteriorDraws:
    """Weighted draws of the guide for the data of a batch.

    Attributes:
        batch: Batch of the data.
        values: Values of the guide's latent sites by name, with the draws along the first dimension.
        data_dims: For each site, the dimension of its ``values`` that runs over the data, counted from the right.
        log_weights: Log-weights of the draws, shape ``(num_samples, n)``, nats.
        smoothed: Pareto-smoothed and normalized log-weights, shape ``(num_samples, n)``, nats.
        pareto_k: k-hat of the weights, shape ``(n,)``.
    """

    batch: Batch
    values: dict[str, Tensor]
    data_dims: dict[str, int]
    log_weights: Tensor
    smoothed: Tensor
    pareto_k: Tensor

    @property
    def ess(self) -> Tensor:
        """Kish's effective sample size of the weights, shape ``(n,)``."""
        return bounds.effective_sample_size(self.log_weights.double())

    def resample(self, num_draws: int) -> Tensor:
        """Return indices of resampled draws, ``(num_draws, n)``, chosen with the smoothed weights as probabilities."""
        return torch.multinomial(self.smoothed.exp().T, num_draws, replacement=True).T.to(self.log_weights.device)

    def take(self, chosen: Tensor) -> dict[str, Tensor]:
        """Return a dictionary of the latent sites' values at chosen draws, with these draws along the first dimension.

        Args:
            chosen: Indices of the chosen draws of each of the n data, shape ``(num_draws, n)``.
        """
        taken = {}
        for name, value in self.values.items():
            shape = [1] * value.ndim
            shape[0], shape[self.data_dims[name]] = chosen.shape
            taken[name] = torch.take_along_dim(value, chosen.reshape(shape), dim=0)
        return taken


class Posterior:
    """Posterior draws for each datum, and runs of the model at these draws.

    The guide samples its sites at random, including sites that it would otherwise enumerate. A site that only the model
    enumerates is summed out of the weights, and is then sampled given the data and the other latents.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Data, shape ``(N, *event)``, or a tuple of arguments of the programs.
        num_samples: Draws of the guide per datum.
        num_draws: Draws from the posterior per datum.
        options: Keyword arguments of :class:`pyrovae.evaluation.Problem`.

    Raises:
        ValueError: If ``num_samples`` or ``num_draws`` is less than 1.
    """

    def __init__(
        self, model: Program, guide: Program, x: Any, num_samples: int, num_draws: int, options: Options
    ) -> None:
        if num_samples < 1 or num_draws < 1:
            raise ValueError(
                f"num_samples (draws of the guide) and num_draws (draws from the posterior) must be at least 1, got "
                f"num_samples={num_samples} and num_draws={num_draws}"
            )
        self.drawn = GuideDraws()
        self.problem = Problem(*self.drawn.around(model, guide), x, **options)
        self.num_samples, self.num_draws = num_samples, num_draws

    def width(self) -> int:
        """Return a batch size for which all draws fit into memory. Call this method inside ``with self.problem:``."""
        return self.problem.width(max(self.num_samples, self.num_draws))

    def draw(self, batch: Batch) -> PosteriorDraws:
        """Return draws of the guide for the data of a batch, with their importance weights."""
        problem = self.problem
        chunk = max(1, min(self.num_samples, problem.affordable // batch.size))
        runs, log_weights = [], []
        for done in range(0, self.num_samples, chunk):
            count = min(chunk, self.num_samples - done)
            drawn = problem.draw(batch, count)
            log_weights.append(problem.log_joint(batch, drawn.values, count, drawn.masks) - drawn.log_q)
            runs.append(drawn)
        values = {name: torch.cat([self._first(run.values[name], name) for run in runs]) for name in runs[0].dims}
        together = torch.cat(log_weights)
        if torch.isneginf(together).all(0).any():
            raise FloatingPointError(
                "all draws of a datum have weight zero, so its posterior cannot be sampled. Make more draws, or use a "
                "guide that covers the posterior."
            )
        assert problem.plate.dim is not None
        data_dims = {name: problem.plate.dim - problem.probe.event_dims[name] for name in values}
        return PosteriorDraws(batch, values, data_dims, together, *psis(together))

    def runs(
        self, batch: Batch, num_draws: int, handler: type[Given], values: Mapping[str, Tensor] | None = None
    ) -> Iterator[tuple[slice, list[Site]]]:
        """Run the model for one chunk of draws at a time, and yield a pair ``(chunk, sites)`` for each run.

        ``chunk`` is the slice of the draws. ``sites`` lists the sample sites of the run inside the data plate. An
        instance of ``handler`` sets the latent sites to the given ``values``. Latent sites without a given value are
        drawn from the model.
        """
        problem = self.problem
        for part, given in self._parts(batch, num_draws, values or {}):
            program = handler(given)(problem.model)
            program = with_draws(program, part.stop - part.start, problem.nesting if problem.vectorize else None)
            trace: Any = poutine.trace(program).get_trace(*batch.args, **(problem.options["kwargs"] or {}))
            sites = [n for n in trace.nodes.values() if n["type"] == "sample" and not site_is_subsample(n)]
            yield part, [site for site in sites if problem.plate.name in plate_names(site)]

    def sites(self, batch: Batch) -> list[Site]:
        """Return the sample sites inside the data plate, of a run of the model at one draw of the guide."""
        drawn = self.problem.draw(batch, 1, amortized=True)
        values = {name: self._first(drawn.values[name], name) for name in drawn.dims}
        [(_, sites)] = self.runs(batch, 1, Given, self.complete(batch, 1, values))
        return sites

    def complete(self, batch: Batch, num_draws: int, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a dictionary of the given ``values`` and of draws of the sites that only the model enumerates."""
        if not self.drawn.summed_out:
            return dict(values)
        problem, made = self.problem, dict[str, list[Tensor]]()
        options: Any = {"plate": problem.plate.name, "kwargs": problem.options["kwargs"]}
        options["nesting"] = problem.nesting if problem.vectorize else None
        for part, given in self._parts(batch, num_draws, values):
            drawn = draw_summed_out(problem.model, batch.args, given, part.stop - part.start, **options)
            for name, value in drawn.items():
                made.setdefault(name, []).append(value if problem.vectorize else value.unsqueeze(0))
        return {**values, **{name: torch.cat(parts) for name, parts in made.items()}}

    def _parts(
        self, batch: Batch, num_draws: int, values: Mapping[str, Tensor]
    ) -> Iterator[tuple[slice, dict[str, Tensor]]]:
        """Yield a pair for each run of the model: the slice of its draws, and the values of sites at these draws."""
        problem = self.problem
        chunk = max(1, min(num_draws, problem.affordable // batch.size)) if problem.vectorize else 1
        for start in range(0, num_draws, chunk):
            part = slice(start, min(start + chunk, num_draws))
            given = {name: value[part if problem.vectorize else start] for name, value in values.items()}
            yield part, {**given, **batch.subsample}

    def _first(self, value: Tensor, name: str) -> Tensor:
        """Return ``value`` without the dimensions of size one that lie to the left of the dimension of draws."""
        return value.reshape(value.shape[self.problem.probe.draws_dim(name) :])


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


def values_per_datum(site: Site, value: Tensor, plate: str) -> Tensor:
    """Return a site's value in the order of :func:`arranged`, shape ``(draws, n, m)`` for m values of each datum."""
    value, _ = arranged(site, value, plate)
    return value.reshape(*value.shape[:2], -1)


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
