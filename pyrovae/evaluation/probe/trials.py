"""Runs of a model and its guide on a few data, and the reference run with which later runs are compared."""

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from pyrovae._waist.noise import NoiseOutsideSites, depends_on_noise, draws_outside_sites
from pyrovae._waist.plates import plate_names
from pyrovae._waist.sites import Program, Site, is_deterministic, is_enumerated
from pyrovae._waist.support import support_of
from pyrovae._waist.weights import Weights, importance_weights
from pyrovae.evaluation.options import Options
from pyrovae.evaluation.probe.facts import BaseMeasure
from pyrovae.evaluation.program_data import ProgramData


@dataclass(frozen=True)
class Reference:
    """A run with one draw for each datum, with which other runs are compared.

    Attributes:
        weights: Log-weights of the run, with the sites of both programs.
        size: Number of data in the arguments of the run.
    """

    weights: Weights
    size: int

    @property
    def nesting(self) -> int:
        """Nesting depth of the program's plates, without the plate of draws."""
        return self.weights.nesting

    @property
    def latents(self) -> list[Site]:
        """List of the guide's latent sites."""
        return [site for site in self.weights.guide_sites if not site["is_observed"]]

    @property
    def values(self) -> dict[str, Tensor]:
        """Values of the guide's latent sites, by name."""
        return {site["name"]: site["value"] for site in self.latents}

    @property
    def event_dims(self) -> dict[str, int]:
        """Number of event dimensions of each latent site of the guide, by name."""
        return {site["name"]: site["fn"].event_dim for site in self.latents}

    @property
    def enumerates(self) -> bool:
        """True if a site of the guide is enumerated."""
        return any(map(is_enumerated, self.weights.guide_sites))

    @property
    def depth(self) -> int | None:
        """The argument ``depth`` of later runs: the nesting depth if the guide enumerates sites, otherwise ``None``."""
        return self.nesting if self.enumerates else None

    @property
    def base_measures(self) -> dict[str, BaseMeasure]:
        """Base measure, such as ``"counting"``, of each observed site in the data plate, by name of the site."""
        plate, sites = self.weights.plate.name, self.weights.model_sites
        observed = [site for site in sites if site["is_observed"] and not is_deterministic(site)]
        observed = [site for site in observed if plate in plate_names(site)]
        return {site["name"]: _base_measure(site["fn"]) for site in observed}


class Trials:
    """Runs of a model and its guide on some of the data.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        data: Data of the evaluation.
        device: Device of the computation.
        options: Options of the evaluation.

    Attributes:
        finite: Indices of the data without NaN or infinite values. :meth:`leave_out_failing` removes the indices of
            data for which a program raised an error.
        noise: Handler around the model, which records random numbers that the model draws outside sample sites.
    """

    def __init__(
        self, model: Program, guide: Program, data: ProgramData, device: torch.device, options: Options
    ) -> None:
        self.noise = NoiseOutsideSites()
        self.model = self.noise(model)
        self.guide, self.data, self.device, self.options = guide, data, device, options
        self.finite = data.finite()
        self._read: tuple[int, tuple[Any, ...]] | None = None
        self._noise_is_idle = False

    @property
    def size(self) -> int:
        """Number of data."""
        return len(self.data)

    def few(self, count: int, *, cuttable: bool) -> int:
        """Return ``count``, or the number of all data if that number is smaller.

        If the program must score all data at once, the result is always the number of all data.

        Args:
            count: Wanted number of data.
            cuttable: True if the program runs on any number of data.
        """
        return min(count, self.size) if cuttable else self.size

    def args(self, size: int, start: int = 0) -> tuple[Any, ...]:
        """Return the arguments for a run on ``size`` data, beginning with the datum at position ``start``.

        If some data are not in ``finite``, but at least ``start + size`` data are, the run uses only the data in
        ``finite``, and ``start`` is a position among them.
        """
        stop = start + size
        if stop < self.size and stop <= len(self.finite) < self.size:
            return self.data.select(self.finite[start:stop], self.device)
        if self._read is not None and stop <= self._read[0]:  # reading a data set again may give other values
            return tuple(arg[start:stop] if isinstance(arg, Tensor) else arg for arg in self._read[1])
        args = self.data.batch(start, stop, self.device)
        if start == 0:
            self._read = stop, args
        return args

    def run(
        self,
        size: int,
        values: dict[str, Tensor] | None = None,
        *,
        draws: int = 1,
        nesting: int | None = None,
        depth: int | None = None,
        start: int = 0,
        validate: bool = False,
    ) -> Weights:
        """Run guide and model on some data, for one draw or for many draws at once.

        Args:
            size: Number of data.
            values: Values by name. The value of a latent site replaces its draw. The value of a subsampling plate
                holds the indices of its data.
            draws: Number of draws.
            nesting: Nesting depth of the program's plates, for a run with a dimension of draws to the left of these
                plates. ``None`` means a run without a dimension of draws.
            depth: Nesting depth of the program's plates, for a run without a dimension of draws. It is needed only if
                ``values`` have dimensions of enumerated sites.
            start: Index of the first datum.
            validate: If true, Pyro validates the run.
        """
        return self._weights(self.args(size, start), values, draws, nesting, depth, validate=validate)

    def reference(self, size: int) -> Reference:
        """Return a run of guide and model on ``size`` data, with one draw for each datum and with Pyro's validation."""
        return Reference(self.run(size, validate=True), size)

    def score(
        self,
        args: tuple[Any, ...],
        values: dict[str, Tensor] | None = None,
        *,
        depth: int | None = None,
        validate: bool = True,
    ) -> Weights:
        """Run guide and model on given arguments with one draw for each datum, and return the log-weights."""
        return self._weights(args, values, 1, None, depth, validate=validate)

    def check_noise(self, size: int) -> None:
        """Check that the model's density does not depend on random numbers drawn outside sample sites.

        Args:
            size: Number of data in the arguments of a run.

        Raises:
            ValueError: If the density depends on such random numbers.
        """
        if not self.noise.sources or self._noise_is_idle:
            return
        if depends_on_noise(self.noise, lambda: self.run(size).of_model):
            raise ValueError(draws_outside_sites(self.noise))
        self._noise_is_idle = True

    def leave_out_failing(self, passing: Tensor) -> None:
        """Leave data out of later runs if the program raised an error for them.

        Data after the largest index in ``passing`` are kept, because they may not have been tried. Of the data
        up to this index, only those in ``passing`` are kept.

        Args:
            passing: Indices, in ascending order, of the data that the program has scored without an error.
        """
        self.finite = torch.cat([passing, self.finite[self.finite > passing.max()]])

    def _weights(
        self,
        args: tuple[Any, ...],
        values: dict[str, Tensor] | None,
        draws: int,
        nesting: int | None,
        depth: int | None,
        *,
        validate: bool,
    ) -> Weights:
        options: Any = {"kwargs": self.options["kwargs"], "plate": self.options["plate"]}
        options |= {"nesting": nesting, "depth": depth}
        with pyro.validation_enabled(validate):
            return importance_weights(self.model, self.guide, args, draws, values=values, **options)


def _base_measure(distribution: Any) -> BaseMeasure:
    support = support_of(distribution)
    if support is None:
        return "unknown"
    return "counting" if support.is_discrete else "Lebesgue"
