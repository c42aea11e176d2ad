"""The problem that every estimator solves: a model, a guide and data, read in batches that fit a memory bound.

An estimator is a function from a batch to columns. :class:`Problem` owns all that estimators share: data and device,
batches, the checks of the program, its draws and densities, seeds, compilation and precision.
:func:`pyrovae.evaluation.report` turns the columns into a result.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, Unpack, runtime_checkable

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from pyrovae import parallel
from pyrovae._compilation.precision import Precision, check_precision, products
from pyrovae._waist.densities import log_guide, log_joint
from pyrovae._waist.draws import Draws, run_guide
from pyrovae._waist.sites import Program, Site
from pyrovae._waist.weights import Weights, importance_weights
from pyrovae.arguments import as_digest, check_whole
from pyrovae.evaluation.probe import Probe
from pyrovae.evaluation.program_data import ProgramData
from pyrovae.evaluation.sampler import Sampler
from pyrovae.isolation import Isolation, fresh_seed, isolated, program_device

# On a CPU larger tensors are given back to the system after every run, and to fetch their pages anew costs a third of
# the time. With so little a GPU waits for Python: on an H200 an evaluation took more than four times as long.
MEMORY = {"cpu": 2**25, "cuda": 2**31}


class SharedOptions(TypedDict, total=False):
    """Options of :class:`Options` without ``precision``."""

    seed: int | None
    plate: str | None
    binarization: str
    vectorize: bool | None
    memory: int | None
    compile: bool
    progress: bool
    checkpoint: str | Path | None
    kwargs: Mapping[str, Any] | None


class Options(SharedOptions, total=False):
    """Options that every estimator and diagnostic takes.

    Attributes:
        seed: Seed of the draws; by default a new one from the operating system. The result names it.
        plate: Name of the data plate; by default the outermost plate that all latent sites share.
        binarization: How the data were binarized, kept as an attribute; results that differ in it are not compared.
        vectorize: Whether many draws are made in one run, along a dimension to the left of the program's plates. By
            default this is decided by a check of the program.
        memory: Bytes that the tensors of one run may take, which sets the size of batches and chunks; by default 2^25
            on a CPU and 2^31 on a CUDA device. The draws depend on it.
        compile: Whether to compile the densities, for which torch's inductor takes some seconds. A program that cannot
            be compiled runs without compilation, after a warning with the reason.
        precision: Precision of the products in linear and convolutional layers: ``"bfloat16"``, or on CUDA ``"tf32"``.
            Its error is in no ``mcse``. By default torch's own setting.
        progress: Whether to show a progress bar; it is quiet where the output is not a terminal.
        checkpoint: Folder in which to keep the rows that are done. The same call goes on from there after whatever
            ended it, and has the result of a call that was never interrupted.
        kwargs: Keyword arguments of model and guide.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> options: pv.evaluation.Options = {"seed": 3, "binarization": "none", "progress": False}
        >>> results = pv.evaluation.evaluate(vae.model, vae.guide, torch.zeros(10, 4), num_samples=200, **options)
        >>> results.attrs["seed"], results.attrs["binarization"]
        (3, 'none')
    """

    precision: Precision | None


DEFAULTS: Options = {
    "seed": None,
    "plate": None,
    "binarization": "not stated",
    "vectorize": None,
    "memory": None,
    "compile": False,
    "precision": None,
    "progress": True,
    "checkpoint": None,
    "kwargs": None,
}


@dataclass(frozen=True)
class Batch:
    """Some consecutive data.

    Attributes:
        args: Arguments of the programs.
        start: Index of the first datum.
        kept: Number of data that are new in this batch. A program whose plate has a fixed size gets data again to fill
            its last batch.
        size: Number of data that the program scores in a run.
        subsample: Indices that subsampling plates take, by plate.
    """

    args: tuple[Any, ...]
    start: int
    kept: int
    size: int
    subsample: dict[str, Tensor]


@dataclass(frozen=True)
class Drawn:
    """Draws of a guide, with the draws in the first of the dimensions of the program's plates.

    Attributes:
        values: Values by latent site, with the indices of subsampling plates.
        log_q: Log-density of the guide, shape ``(num_draws, n)``, nats.
        dims: Dimension of the draws by latent site, counted from the right.
        log_joint: log p(x, z), shape ``(num_draws, n)``, nats, if it is known.
    """

    values: dict[str, Tensor]
    log_q: Tensor
    dims: dict[str, int]
    log_joint: Tensor | None = None

    def part(self, start: int, stop: int) -> dict[str, Tensor]:
        """Return the values of the draws from ``start`` to ``stop``."""
        return {
            name: value.narrow(self.dims[name], start, stop - start) if name in self.dims else value
            for name, value in self.values.items()
        }


@runtime_checkable
class Proposal(Protocol):
    """A guide that is made for each datum from another guide, such as :class:`pyrovae.guides.Refined`.

    Attributes:
        guide: The guide that it is made from.
    """

    guide: Program

    def open(self, problem: "Problem") -> None:
        """Get ready for the batches of an opened problem."""

    def width(self, problem: "Problem") -> int:
        """Return the number of data for a batch."""

    def draw(self, problem: "Problem", batch: Batch, num_draws: int) -> Drawn:
        """Draw for each datum of a batch."""

    def log_density(self, problem: "Problem", batch: Batch, values: dict[str, Tensor]) -> Tensor:
        """Return the log-density at given values, shape ``(num_draws, n)``, nats."""


class Problem:
    """A model, a guide and data, with the options that all estimators share.

    Methods that run the programs are for use inside of the context, ``with problem:``, which keeps modules, buffers,
    generators and Pyro's handlers as they were. :func:`pyrovae.evaluation.report` opens it. When it is opened, the
    programs run at most three times on a few data: log-weights of the same draws are compared alone and together, data
    are checked against the support of the likelihood, and the memory of a draw is measured.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called likewise.
        x: Data of any kind that :mod:`pyrovae.data.sources` lists, shape ``(N, *event)``, or a tuple of arguments.
            Arrays share the first dimension; other arguments are passed as they are. Batches are read when they are
            needed, in the order of the data set, and moved to the device of the programs' parameters. A stream is read
            into memory.
        **options: See :class:`Options`.

    Attributes:
        size: Number of data, N.
        device: Device of the computation.
        seed: Seed of the draws.
        plate: The data plate, once opened.
        nesting: Depth of the program's own plates, once opened.
        vectorize: Whether many draws are made in one run, once opened.
        affordable: Number of log-weights that a run can make within the memory, once opened.

    Raises:
        TypeError: If an option has another name, or a count or the seed is not an integer.
        ValueError: If ``x`` is empty; once opened, if data lie outside the likelihood's support, model and guide
            disagree about their latent sites, there is no data plate, a latent site lies outside of it, or a log-weight
            depends on other data.

    Example:
        >>> import torch, pyrovae as pv
        >>> vae = pv.VAE(
        ...     pv.priors.StandardNormal(2),
        ...     pv.likelihoods.Normal(pv.networks.mlp(2, 4)),
        ...     pv.posteriors.DiagonalNormal(pv.networks.mlp(4, 2 * 2)),
        ... )
        >>> problem = pv.evaluation.Problem(vae.model, vae.guide, torch.zeros(10, 4), seed=0)
        >>> with problem:
        ...     batch = next(problem.batches(10))
        ...     problem.log_weights(batch, 7).shape
        torch.Size([7, 10])
    """

    def __init__(self, model: Program, guide: Program, x: Any, **options: Unpack[Options]) -> None:
        if unknown := set(options) - set(DEFAULTS):
            raise TypeError(f"there is no option {min(unknown)!r}; choose from {', '.join(DEFAULTS)}")
        self.options: Options = {**DEFAULTS, **options}
        inner: Any = poutine.unwrap(guide)
        self.proposal: Proposal | None = inner if isinstance(inner, Proposal) else None
        self.model, self.guide = model, guide if self.proposal is None else self.proposal.guide
        self.data = ProgramData("x", x)
        self.device = program_device(model, self.guide, default=self.data.device)
        memory = self.options["memory"]
        self.memory = MEMORY.get(self.device.type, MEMORY["cpu"]) if memory is None else memory
        check_whole(memory=self.memory)
        if self.memory < 1:
            raise ValueError(f"memory must be a positive number of bytes, got {self.memory}")
        check_precision(self.options["precision"], self.device)
        seed = self.options["seed"]
        self.seed: int = parallel.in_first(fresh_seed) if seed is None else seed
        self.size, self.started = len(self.data), time.perf_counter()
        self._context: ExitStack | None = None
        self._samplers: dict[int, Sampler] = {}

    def __enter__(self) -> "Problem":
        """Isolate the programs and check them."""
        self.started = time.perf_counter()
        context = ExitStack()
        self.isolation: Isolation = context.enter_context(
            isolated(self.model, self.guide, seed=self.seed, forget_parameters=True)
        )
        try:
            self._probe()
            if parallel.size() > 1:
                own = as_digest(self.data.fingerprint()), *self.parameters()
                parallel.check_same("data or parameters of an evaluation", own)
            context.enter_context(pyro.validation_enabled(False))
            context.enter_context(products(self.options["precision"]))
            if self.proposal is not None:
                self.proposal.open(self)
        except BaseException:
            context.close()
            raise
        self._context = context
        return self

    def __exit__(self, *error: object) -> None:
        """Put everything back."""
        assert self._context is not None
        self._context.close()
        self._context = None
        self._samplers = {}

    def _probe(self) -> None:
        guide: Any = poutine.unwrap(self.guide)
        if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
            raise ValueError(
                "the autoguide has not seen data yet; train it, or run guide(x) once, before evaluating it"
            )
        try:
            with self.isolation.adopting(), torch.autocast(self.device.type, enabled=False):
                self.probe = Probe(self)
        except (ValueError, RuntimeError) as error:
            if self.data.dtype.is_floating_point or isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"{error}. x holds integers, {self.data.dtype}, and an evaluation has no transform; if the programs "
                f"take floats, pass x.float() or x / 255, or a Dataset that does so for each datum"
            ) from error
        self.plate, self.nesting, self.vectorize = self.probe.plate, self.probe.nesting, self.probe.vectorize
        self.affordable = max(1, self.memory // self.probe.bytes_per_weight)

    def parameters(self) -> list[Tensor]:
        """Return all parameters and buffers of the programs, those of Pyro's store among them."""
        modules = self.isolation.modules
        own = [t for module in modules for t in (*module.parameters(recurse=False), *module.buffers(recurse=False))]
        known = {tensor.data_ptr() for tensor in own}
        return own + [tensor for tensor in self.probe.parameters if tensor.data_ptr() not in known]

    # --- batches ------------------------------------------------------------------------------------------------------

    def batches(self, width: int) -> Iterator[Batch]:
        """Yield all data in batches.

        Args:
            width: Number of data in a batch. A program whose data plate has a fixed size gets that many.
        """
        if self.probe.cuttable:
            for start in range(0, self.size, width):
                stop = min(start + width, self.size)
                yield self.batch(start, stop)
        elif self.plate.size == self.size:
            yield self.batch(0, self.size)
        else:
            indices = torch.arange(self.plate.size, device=self.device)
            for start in range(0, self.size, self.plate.size):
                taken = {self.plate.name: (start + indices) % self.size}  # the last batch is filled up from the first
                args, kept = self.data.batch(0, self.size, self.device), min(self.plate.size, self.size - start)
                yield Batch(args, start, kept, self.plate.size, taken)

    def batch(self, start: int, stop: int) -> Batch:
        """Return the data from ``start`` to ``stop``."""
        return Batch(self.data.batch(start, stop, self.device), start, stop - start, stop - start, {})

    def select(self, batch: Batch, indices: Tensor) -> Batch:
        """Return some data of a batch, by their indices in it."""
        args = tuple(arg[indices] if isinstance(arg, Tensor) else arg for arg in batch.args)
        return Batch(args, batch.start, len(indices), len(indices), {})

    def few(self) -> Batch:
        """Return a batch of two data that the program can score, or the first batch if it takes no fewer."""
        if not self.probe.cuttable:
            return next(self.batches(2))
        indices = self.probe.finite[:2]
        return Batch(self.data.select(indices, self.device), 0, len(indices), len(indices), {})

    def width(self, num_draws: int) -> int:
        """Return how many data a batch can have within the memory, by so many draws for each."""
        if self.proposal is not None:
            return self.proposal.width(self)
        return max(1, self.affordable // num_draws)

    def plate_of(self, batch: Batch) -> Any:
        """Return the data plate with the number of data in a batch as its size."""
        return self.plate._replace(size=batch.size)

    @property
    def data_dim(self) -> int:
        """Index of the data among the dimensions of a draw, the first of which is that of draws."""
        assert self.plate.dim is not None
        return self.nesting + 1 + self.plate.dim

    def check_repeats(self) -> None:
        """Check that the guide has the same density in every run, for estimators that score draws of another run.

        Raises:
            ValueError: If the density differs at the same draws.
        """
        batch = self.few()
        drawn = self.draw(batch, 2, amortized=True)
        again = self.log_guide(batch, drawn.values, 2, amortized=True)
        if not torch.allclose(again, drawn.log_q, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the guide has another density in every run, by {float((again - drawn.log_q).abs().max()):.3g} nats "
                f"at the same draws, as it draws random numbers outside of sample sites; use a guide that does not "
                f"(vae.posterior.amortized in place of pyrovae.posteriors.SemiAmortized)"
            )

    def check_whole(self) -> None:
        """Check that a run takes all data, for diagnostics that simulate them.

        Raises:
            ValueError: If the plate takes a part of the data in a run.
        """
        if self.plate.size != self.plate.full_size:
            raise ValueError(
                f"the data plate {self.plate.name!r} takes {self.plate.size} of {self.plate.full_size} data a run, so "
                f"they cannot all be simulated; give a program that takes all of its data"
            )

    # --- the route ----------------------------------------------------------------------------------------------------

    def run(
        self,
        batch: Batch,
        num_draws: int = 1,
        values: Mapping[str, Tensor] | None = None,
        *,
        amortized: bool = False,
    ) -> Weights:
        """Run guide and model together, once or once for each draw, and return their weights.

        Raises:
            ValueError: If the guide is a proposal that has no sites of its own, unless ``amortized``.
        """
        if self.proposal is not None and not amortized:
            raise ValueError(
                f"{self.proposal!r} is one density of all latent sites, and this function needs the guide site by "
                f"site; pass the guide that it refines, refined.guide"
            )
        with self._explained():
            return importance_weights(
                self.model,
                self.guide,
                batch.args,
                num_draws,
                kwargs=self.options["kwargs"],
                nesting=self.nesting if self.vectorize else None,
                plate=self.options["plate"],
                values={**(values or {}), **batch.subsample},
            )

    def draw(self, batch: Batch, num_draws: int, *, amortized: bool = False) -> Drawn:
        """Run the guide alone, for many draws; ``amortized`` is the guide that a proposal refines."""
        if self.proposal is not None and not amortized:
            return self.proposal.draw(self, batch, num_draws)
        if self.vectorize:
            draws = self._run_guide(batch, num_draws, self.nesting)
            return self._joined([draws], batch, stacked=False)
        runs = [self._run_guide(batch, 1, None)]
        chosen = runs[0].chosen  # a plate that takes part of the data takes the same in every run
        runs += [self._run_guide(batch, 1, None, chosen) for _ in range(num_draws - 1)]
        return self._joined(runs, batch, stacked=True)

    def log_guide(
        self, batch: Batch, values: Mapping[str, Tensor], num_draws: int, *, amortized: bool = False
    ) -> Tensor:
        """Return log q(z | x) at given values, shape ``(num_draws, n)``, nats."""
        if self.proposal is not None and not amortized:
            return self.proposal.log_density(self, batch, dict(values))
        return torch.cat([self.log_density(batch, draws) for draws in self.run_guide(batch, values, num_draws)])

    def run_guide(self, batch: Batch, values: Mapping[str, Tensor], num_draws: int) -> Iterator[Draws]:
        """Run the guide at given values of its sites, once or once for each draw."""
        if self.vectorize:
            yield self._run_guide(batch, num_draws, self.nesting, values)
        else:
            yield from (self._run_guide(batch, 1, None, self._one(values, i)) for i in range(num_draws))

    def log_density(self, batch: Batch, draws: Draws) -> Tensor:
        """Return log q(z | x) of a run of the guide, shape ``(num_draws, n)``, nats."""
        return log_guide(draws, self.plate_of(batch))

    def log_joint(self, batch: Batch, values: Mapping[str, Tensor], num_draws: int) -> Tensor:
        """Return log p(x, z) at given values, shape ``(num_draws, n)``, nats."""
        options: Any = {"plate": self.plate_of(batch), "kwargs": self.options["kwargs"]}
        with self._explained():
            if self.vectorize:
                given = {**values, **batch.subsample}
                return log_joint(self.model, batch.args, given, num_draws, nesting=self.nesting, **options)
            runs = ({**self._one(values, i), **batch.subsample} for i in range(num_draws))
            parts = [log_joint(self.model, batch.args, given, 1, nesting=None, **options) for given in runs]
            return torch.cat(parts)

    def log_weights(self, batch: Batch, num_draws: int) -> Tensor:
        """Return log-weights of draws from the guide, shape ``(num_draws, n)``, nats."""
        if num_draws not in self._samplers:
            self._samplers[num_draws] = Sampler(self, num_draws)
        return self._samplers[num_draws](batch)[:, : batch.kept]

    def _run_guide(
        self, batch: Batch, num_draws: int, nesting: int | None, values: Mapping[str, Tensor] | None = None
    ) -> Draws:
        given = {**(values or {}), **batch.subsample}
        with self._explained():
            return run_guide(
                self.guide, batch.args, num_draws, kwargs=self.options["kwargs"], nesting=nesting, values=given
            )

    def _joined(self, runs: list[Draws], batch: Batch, *, stacked: bool) -> Drawn:
        values: dict[str, Tensor] = dict(runs[0].chosen)
        dims = {name: -self.nesting - 1 - site["fn"].event_dim for name, site in runs[0].latents.items()}
        for name in dims:
            parts = [self._full(draws.latents[name], draws.num_draws) for draws in runs]
            values[name] = torch.cat(parts, dims[name]) if stacked else parts[0]
        log_q = torch.cat([log_guide(draws, self.plate_of(batch)) for draws in runs])
        return Drawn(values, log_q, dims)

    def _full(self, site: Site, num_draws: int) -> Tensor:
        """Return a value with all dimensions of the program's plates and that of the draws."""
        value, event = site["value"], site["fn"].event_dim
        batch, rest = value.shape[: value.ndim - event], value.shape[value.ndim - event :]
        padded = value.reshape((1,) * (self.nesting + 1 - len(batch)) + batch + rest)
        return padded.expand(num_draws, *padded.shape[1:])

    def _one(self, values: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
        """Return one of many draws, without the dimension of draws."""
        is_drawn = self.probe.event_dims
        return {
            name: value.select(-self.nesting - 1 - is_drawn[name], index) if name in is_drawn else value
            for name, value in values.items()
        }

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Add to the errors of a run with many draws what such a run asks of a program."""
        try:
            yield
        except Exception as error:
            if self._context is not None and (isinstance(error, RuntimeError) or "shape" in str(error).lower()):
                error.add_note(
                    "The program ran on a few data, but not on this batch with a plate of draws to the left of its own "
                    "plates; let its networks keep leading dimensions (pyrovae.networks.Batched), or pass "
                    "vectorize=False."
                )
            raise
