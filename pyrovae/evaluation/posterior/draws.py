"""Draws from the posterior of each datum, by sampling importance resampling.

Draws of the guide are chosen with their Pareto-smoothed weights as probabilities. If the model sums out
latent variables, these variables are drawn afterwards, given the chosen draws.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae._waist.draws import Given, with_draws
from pyrovae._waist.plates import plate_names
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
