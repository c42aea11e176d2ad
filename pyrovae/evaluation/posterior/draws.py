"""Draws from the posterior of each datum, by sampling importance resampling.

Draws of the guide are chosen with their Pareto-smoothed weights as probabilities. If the model sums out
latent variables, these variables are drawn afterwards, given the chosen draws.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import Given, with_draws
from pyrovae._waist.plates import DRAWS, plate_names
from pyrovae._waist.sites import Program, Site
from pyrovae.evaluation import bounds
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.diagnostics.psis import psis
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.posterior.summed_out import GuideDraws, draw_summed_out
from pyrovae.evaluation.problem import Problem


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
