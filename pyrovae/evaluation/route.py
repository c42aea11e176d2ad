"""Runs of a model and its guide on a batch of data, with all draws in one run or with one run for each draw."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae._waist.agreement import latent_masks
from pyrovae._waist.densities import log_guide, log_joint
from pyrovae._waist.draws import Draws, run_guide, run_until
from pyrovae._waist.plates import dim_of, plate_names
from pyrovae._waist.scoring import masked_score
from pyrovae._waist.sites import Program, Site
from pyrovae._waist.summation import sum_per_datum
from pyrovae._waist.weights import Weights, importance_weights
from pyrovae.evaluation.batches import Batch
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.probe.facts import Probe


@dataclass(frozen=True)
class Drawn:
    """Draws of a guide for the data of a batch. The dimension of draws is to the left of the program's plates.

    Attributes:
        values: Values of the latent sites by name, and the indices of subsampling plates.
        log_q: Log-density of the guide, shape ``(num_draws, n)``, nats.
        dims: For each latent site, by name, the dimension of draws in the site's value, counted from the right.
        masks: One dictionary for each run of the guide, with the masks of the masked latent sites by name. ``None`` if
            the guide is fitted to each datum, because such a guide has no masked sites.
        log_joint: log p(x, z) at the draws, shape ``(num_draws, n)``, nats, or ``None`` if it was not computed.
    """

    values: dict[str, Tensor]
    log_q: Tensor
    dims: dict[str, int]
    masks: Sequence[Mapping[str, Any]] | None = None
    log_joint: Tensor | None = None

    def part(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return a copy of the dictionary ``values``, restricted to draws ``start`` to ``stop - 1``."""
        return {
            name: value.narrow(self.dims[name], start, stop - start) if name in self.dims else value
            for name, value in self.values.items()
        }

    def masks_of(self, start: int, stop: int) -> Sequence[Mapping[str, Any]] | None:
        """Return the guide's masks at draws ``start`` to ``stop - 1``: None, or a mapping for each run of the model."""
        if self.masks is None or len(self.masks) > 1:
            return None if self.masks is None else self.masks[start:stop]
        return [{name: self._narrowed(mask, self.dims[name], start, stop) for name, mask in self.masks[0].items()}]

    def _narrowed(self, mask: Any, dim: int, start: int, stop: int) -> Any:
        varies = isinstance(mask, Tensor) and mask.ndim >= -dim and mask.shape[dim] > 1
        return mask.narrow(dim, start, stop - start) if varies else mask


class Route:
    """Runs of a model and its guide on batches of data.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        probe: Facts about the programs, such as their data plate.
        options: Options of the evaluation.
    """

    def __init__(self, model: Program, guide: Program, probe: Probe, options: Options) -> None:
        self.model, self.guide, self.probe = model, guide, probe
        self.kwargs, self.plate = options["kwargs"], options["plate"]
        self.nesting = probe.nesting if probe.vectorize else None

    def plate_of(self, batch: Batch) -> CondIndepStackFrame:
        """Return the data plate, with its size set to the number of data in the batch."""
        return self.probe.plate._replace(size=batch.size)

    def run(self, batch: Batch, num_draws: int, values: Mapping[str, Tensor] | None = None) -> Weights:
        """Run the guide, then the model at the draws of the guide, and return the importance weights of the draws."""
        options: Any = {"kwargs": self.kwargs, "nesting": self.nesting, "plate": self.plate}
        options["depth"] = self.probe.nesting if self.probe.enumerates else None
        given = {**(values or {}), **batch.subsample}
        with _explained():
            return importance_weights(self.model, self.guide, batch.args, num_draws, values=given, **options)

    def draw(self, batch: Batch, num_draws: int) -> Drawn:
        """Return draws of the guide, without a run of the model."""
        runs = [self._run_guide(batch, num_draws if self.probe.vectorize else 1)]
        if not self.probe.vectorize:
            chosen = runs[0].chosen  # a plate that subsamples chooses the same data in every run
            runs += [self._run_guide(batch, 1, chosen) for _ in range(num_draws - 1)]
        values: dict[str, Tensor] = dict(runs[0].chosen)
        dims = {name: self.probe.draws_dim(name) for name in runs[0].latents}
        for name, dim in dims.items():
            parts = [self._full(draws.latents[name], draws.num_draws) for draws in runs]
            values[name] = parts[0] if self.probe.vectorize else torch.cat(parts, dim)
        log_q = torch.cat([self.log_density(batch, draws) for draws in runs])
        return Drawn(values, log_q, dims, [latent_masks(draws.sites) for draws in runs])

    def run_guide(self, batch: Batch, values: Mapping[str, Tensor], num_draws: int) -> Iterator[Draws]:
        """Yield runs of the guide at given values of its latents: one run for all draws, or one run for each draw."""
        for count, given in self._given(values, num_draws):
            yield self._run_guide(batch, count, given)

    def run_once(self, batch: Batch, num_draws: int, values: Mapping[str, Tensor]) -> Draws:
        """Run the guide once at given values of its latents.

        If the program can have a dimension of draws, the values hold ``num_draws`` draws along this dimension.
        Otherwise they hold a single draw and have no such dimension.
        """
        return self._run_guide(batch, num_draws, values)

    def log_density(self, batch: Batch, draws: Draws) -> Tensor:
        """Return log q(z | x) of the draws in a run of the guide, shape ``(num_draws, n)``, nats."""
        device = next(arg.device for arg in batch.args if isinstance(arg, Tensor))
        return log_guide(draws, self.plate_of(batch), device)

    def log_joint(
        self,
        batch: Batch,
        values: Mapping[str, Tensor],
        num_draws: int,
        masks: Sequence[Mapping[str, Any]] | None = None,
    ) -> Tensor:
        """Return log p(x, z) at given values of the latents, shape ``(num_draws, n)``, nats.

        If ``masks`` is given, it holds one dictionary for each run of the model. The dictionary maps the names of
        latent sites to the guide's masks.

        Raises:
            ProgramError: If the mask of a latent site in the model differs from the site's mask in ``masks``.
        """
        options: Any = {"plate": self.plate_of(batch), "nesting": self.nesting, "kwargs": self.kwargs}
        with _explained():
            parts = [
                log_joint(
                    self.model,
                    batch.args,
                    {**given, **batch.subsample},
                    count,
                    masks=None if masks is None else masks[index],
                    **options,
                )
                for index, (count, given) in enumerate(self._given(values, num_draws))
            ]
        return parts[0] if self.probe.vectorize else torch.cat(parts)

    def priors(
        self, batch: Batch, values: Mapping[str, Tensor], num_draws: int, names: Collection[str]
    ) -> list[dict[str, Site]]:
        """Run the model at given values of its latents until it has sampled the given sites.

        Returns:
            These sites by name, in a dictionary for each run of the model.
        """
        return [self._run_until(batch, given, count, names) for count, given in self._given(values, num_draws)]

    def draw_prior(self, batch: Batch, num_draws: int, names: Collection[str]) -> tuple[dict[str, Tensor], Tensor]:
        """Draw the latents ``names`` from their prior.

        Returns:
            Their values by name, with the draws along the dimension to the left of the program's plates, and log p(z),
            shape ``(num_draws, n)``, nats.
        """
        runs, values = self.priors(batch, {}, num_draws, names), dict[str, Tensor]()
        for name in names:
            parts = [self._full(run[name], num_draws if self.probe.vectorize else 1) for run in runs]
            values[name] = parts[0] if self.probe.vectorize else torch.cat(parts, self.probe.draws_dim(name))
        return values, self._prior_density(batch, runs, num_draws)

    def log_prior(self, batch: Batch, values: Mapping[str, Tensor], num_draws: int, names: Collection[str]) -> Tensor:
        """Return log p(z) at given values of the latents ``names``, shape ``(num_draws, n)``, nats."""
        return self._prior_density(batch, self.priors(batch, values, num_draws, names), num_draws)

    def _prior_density(self, batch: Batch, runs: Sequence[Mapping[str, Site]], num_draws: int) -> Tensor:
        plate, draws_dim = self.plate_of(batch), None if self.nesting is None else -self.nesting - 1
        parts = []
        for run in runs:
            terms = [(site, masked_score(site)) for site in run.values() if plate.name in plate_names(site)]
            parts.append(sum_per_datum(terms, draws_dim, dim_of(plate)).expand(num_draws // len(runs), plate.size))
        return torch.cat(parts)

    def _run_until(
        self, batch: Batch, values: Mapping[str, Tensor], num_draws: int, names: Collection[str]
    ) -> dict[str, Site]:
        given = {**values, **batch.subsample}
        options: Any = {"kwargs": self.kwargs, "nesting": self.nesting}
        with _explained():
            return run_until(self.model, batch.args, given, names, num_draws, **options)

    def _given(self, values: Mapping[str, Tensor], num_draws: int) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
        """Yield a pair for each run of a program: the number of draws, and the values of the latents at these draws."""
        if self.probe.vectorize:
            yield num_draws, values
            return
        dims = {name: self.probe.draws_dim(name) for name in values if name in self.probe.event_dims}
        for index in range(num_draws):
            yield 1, {**values, **{name: values[name].select(dim, index) for name, dim in dims.items()}}

    def _run_guide(self, batch: Batch, num_draws: int, values: Mapping[str, Tensor] | None = None) -> Draws:
        options: Any = {"kwargs": self.kwargs, "nesting": self.nesting}
        with _explained():
            return run_guide(self.guide, batch.args, num_draws, values={**(values or {}), **batch.subsample}, **options)

    def _full(self, site: Site, num_draws: int) -> Tensor:
        """Return a site's value with a dimension of draws and one dimension for each nesting level of the plates."""
        value, event = site["value"], site["fn"].event_dim
        batch, rest = value.shape[: value.ndim - event], value.shape[value.ndim - event :]
        padded = value.reshape((1,) * (self.probe.nesting + 1 - len(batch)) + batch + rest)
        return padded.expand(num_draws, *padded.shape[1:])


@contextmanager
def _explained() -> Iterator[None]:
    """Context manager that adds a note to an error that the plate of draws may cause.

    The note is added to every RuntimeError, and to other errors whose message contains "shape".
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) or "shape" in str(error).lower():
            error.add_note(
                "The program ran on a few data, but not on this batch with a plate of draws to the left of its own "
                "plates. Let its networks keep leading dimensions (pyrovae.networks.Batched), or pass vectorize=False."
            )
        raise
