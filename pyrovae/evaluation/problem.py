"""The problem that every estimator solves: a model, a guide, and data, in batches that fit into memory.

An estimator is a function that maps a batch to columns of a table with one row per datum. A column may hold estimates
of log p(x), for example. :class:`Problem` provides everything that estimators share: data and device, batches, checks
of the programs, draws and densities, seeds, compilation and precision. :func:`pyrovae.evaluation.report` calls the
function for every batch, and returns the table as a result.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Unpack

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor

from pyrovae import parallel
from pyrovae._compilation.precision import check_precision, products
from pyrovae._waist.draws import Draws
from pyrovae._waist.errors import OutsideSupportError
from pyrovae._waist.plates import dim_of
from pyrovae._waist.sites import Program
from pyrovae._waist.weights import Weights
from pyrovae.arguments import as_digest
from pyrovae.data.column_names import check_column_names
from pyrovae.evaluation.batches import Batch, batches, consecutive
from pyrovae.evaluation.checkpoint import seed_in
from pyrovae.evaluation.identity import LARGE, contents, unchanged
from pyrovae.evaluation.options import DEFAULTS, Options, memory_of
from pyrovae.evaluation.probe.facts import Probe
from pyrovae.evaluation.probe.three_runs import probe
from pyrovae.evaluation.probe.trials import Trials
from pyrovae.evaluation.program_data import ProgramData
from pyrovae.evaluation.proposal import Proposal
from pyrovae.evaluation.reach import check_reach
from pyrovae.evaluation.route import Drawn, Route
from pyrovae.evaluation.sampler import Sampler
from pyrovae.isolation import Isolation, fresh_seed, isolated, modules_of, program_device, seeded


class Problem:
    """A model, a guide and data, with the options that all estimators accept.

    Methods that run the programs must be called inside the context ``with problem:``, which restores modules, buffers,
    random generators and Pyro's handlers on exit. :func:`pyrovae.evaluation.report` opens the context. On entry, the
    programs usually run three times on a few data. These runs check that the log-weight of a draw does not depend on
    other draws or other data, check the data against the support of the likelihood, and measure the memory of a draw.
    Further runs follow if a check fails, if there are few data, or if most bytes do not grow with the number of draws.

    Args:
        model: Pyro program of p(x, z), called as ``model(x)``, or ``model(*x)`` if ``x`` is a tuple.
        guide: Pyro program of q(z | x), called with the same arguments.
        x: Data of any kind that :mod:`pyrovae.data.sources` lists, shape ``(N, *event)``, or a tuple of arguments.
            In a tuple, the first dimension of every array has size N, and elements that are not arrays are passed to
            the programs unchanged. Batches are read when they are needed, in the order of the data set, and moved to
            the device of the programs' parameters. A stream is read into memory.
        **options: Keyword arguments of :class:`Options`.

    Attributes:
        size: Number of data, N.
        device: Device of the computation.
        seed: Seed of the draws.
        contents: Code and constants of the programs, which determine the densities for given parameters. The keys are
            paths such as ``model.network.scale``. Available inside ``with problem:``.

    Raises:
        TypeError: If an option is unknown, or if ``memory`` or ``seed`` is not an integer.
        ValueError: If ``x`` is empty. On entry, if data lie outside the likelihood's support; if model and guide
            disagree about their latent sites; if the program has no data plate, or a latent site lies outside it; or if
            the log-weight of a datum depends on other data.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, pyrovae as pv
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):  # the exact posterior, so that all log-weights equal log p(x)
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> x = torch.linspace(-1.0, 1.0, 10)
        >>> problem = pv.evaluation.Problem(model, guide, x, seed=0)
        >>> with problem:
        ...     batch = next(problem.batches(10))
        ...     log_weights = problem.log_weights(batch, 7)
        >>> log_weights.shape, torch.allclose(log_weights, dist.Normal(0.0, 2**0.5).log_prob(x), atol=1e-4)
        (torch.Size([7, 10]), True)
    """

    def __init__(self, model: Program, guide: Program, x: Any, **options: Unpack[Options]) -> None:
        if unknown := set(options) - set(DEFAULTS):
            raise TypeError(f"there is no option {min(unknown)!r}. Choose from {', '.join(DEFAULTS)}")
        self.options: Options = {**DEFAULTS, **options}
        inner: Any = poutine.unwrap(guide)
        self.proposal: Proposal | None = inner if isinstance(inner, Proposal) else None
        self.model, self.guide = model, guide if self.proposal is None else self.proposal.guide
        self.data = ProgramData("x", x)
        check_column_names(self.data.source, modules_of(self.model, self.guide))
        self.device = program_device(model, self.guide, default=self.data.device)
        self.memory = memory_of(self.options, self.device)
        check_precision(self.options["precision"], self.device)
        seed = self.options["seed"]
        self.seed: int = parallel.in_first(self._new_seed) if seed is None else seed
        self.size, self.started = len(self.data), time.perf_counter()
        self._context: ExitStack | None = None
        self._samplers: dict[int, Sampler] = {}
        self._reaches = False

    def _new_seed(self) -> int:
        folder = self.options["checkpoint"]
        return fresh_seed() if folder is None else seed_in(folder)

    def __enter__(self) -> "Problem":
        """Store the state of modules and random generators, and check the programs."""
        self.started = time.perf_counter()
        context = ExitStack()
        self.isolation: Isolation = context.enter_context(
            isolated(self.model, self.guide, seed=self.seed, forget_parameters=True)
        )
        programs = {"model": self.model, "guide": self.guide}
        try:
            before = contents(programs, self.isolation.training, most_bytes=LARGE)
            self.probe = self._probe()
            self.contents = unchanged(before, contents(programs, self.isolation.training))
            if self.probe.makes_modules:
                context.enter_context(self.isolation.adopting(keep=False))
            self.route = Route(self.model, self.guide, self.probe, self.options)
            if parallel.size() > 1:
                own = as_digest(self.data.fingerprint()), *self.parameters()
                parallel.check_same("the data or parameters of an evaluation", own)
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
        """Restore modules, buffers, random generators and Pyro's handlers to their state before ``with problem:``."""
        assert self._context is not None
        self._context.close()
        self._context = None
        self._samplers = {}

    def _probe(self) -> Probe:
        guide: Any = poutine.unwrap(self.guide)
        if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
            raise ValueError(
                "the autoguide has not been initialized. Train it, or call guide(x) once, before you evaluate it."
            )
        try:
            with self.isolation.adopting(), torch.autocast(self.device.type, enabled=False):
                trials = Trials(self.model, self.guide, self.data, self.device, self.options)
                return probe(trials, self.isolation, self.memory)
        except (ValueError, RuntimeError) as error:
            is_of_dtype = isinstance(error, RuntimeError | OutsideSupportError) or "dtype" in str(error)
            if self.data.dtype.is_floating_point or isinstance(error, torch.OutOfMemoryError) or not is_of_dtype:
                raise
            raise ValueError(
                f"{str(error).rstrip('.')}. x holds integers, {self.data.dtype}, which an evaluation does not convert. "
                f"If the programs expect floats, pass x.float() or x / 255, or a Dataset that converts each datum."
            ) from error

    @property
    def plate(self) -> CondIndepStackFrame:
        """The data plate of the programs. Available inside ``with problem:``."""
        return self.probe.plate

    @property
    def nesting(self) -> int:
        """Nesting depth of the programs' plates, without the plate of draws. Available inside ``with problem:``."""
        return self.probe.nesting

    @property
    def vectorize(self) -> bool:
        """True if many draws are made in one run. Available inside ``with problem:``."""
        return self.probe.vectorize

    @property
    def affordable(self) -> int:
        """Number of log-weights that a run can compute within ``memory`` bytes. Available inside ``with problem:``."""
        return max(1, self.memory // self.probe.memory.per_weight)

    @property
    def data_dim(self) -> int:
        """Index of the data dimension in a tensor of draws, counted from the left; dimension 0 counts the draws."""
        return self.nesting + 1 + dim_of(self.plate)

    def parameters(self) -> list[Tensor]:
        """Return all parameters and buffers of the programs, including those in Pyro's parameter store."""
        own = self.isolation.tensors
        known = {tensor.data_ptr() for tensor in own}
        return own + [tensor for tensor in self.probe.parameters if tensor.data_ptr() not in known]

    # --- batches ------------------------------------------------------------------------------------------------------

    def batches(self, width: int) -> Iterator[Batch]:
        """Yield all data in batches.

        Args:
            width: Number of data in a batch. A program whose data plate has a fixed size gets batches of that size
                instead.
        """
        yield from batches(self.data, self.device, self.plate, width, cuttable=self.probe.cuttable)

    def batch(self, start: int, stop: int) -> Batch:
        """Return the data ``start`` to ``stop - 1`` as a batch."""
        return consecutive(self.data, self.device, start, stop)

    def select(self, batch: Batch, indices: Tensor) -> Batch:
        """Return a batch that holds only the data of ``batch`` with the given indices."""
        args = tuple(arg[indices] if isinstance(arg, Tensor) else arg for arg in batch.args)
        return Batch(args, batch.start, len(indices), len(indices), {})

    def few(self) -> Batch:
        """Return a batch of two data, or the first batch if all batches must have a fixed size.

        The two data are free of NaN if there are such data. Otherwise the programs accept NaN.
        """
        if not self.probe.cuttable:
            return next(self.batches(2))
        indices = self.probe.finite[:2]
        if not len(indices):
            indices = torch.arange(min(2, len(self.data)))
        return Batch(self.data.select(indices, self.device), 0, len(indices), len(indices), {})

    def width(self, num_draws: int) -> int:
        """Return a batch size for which a run with ``num_draws`` draws per datum fits into memory."""
        if self.proposal is not None:
            return self.proposal.width(self)
        return max(1, self.affordable // num_draws)

    # --- runs of the programs -----------------------------------------------------------------------------------------

    def run(
        self,
        batch: Batch,
        num_draws: int = 1,
        values: Mapping[str, Tensor] | None = None,
        *,
        amortized: bool = False,
    ) -> Weights:
        """Run the guide, then the model at the draws of the guide, and return the importance weights of the draws.

        Raises:
            ValueError: If the guide is a proposal that is fitted to each datum, unless ``amortized`` is true. Such a
                proposal has one density of all latent sites together, but the weights need a density for each site.
                With ``amortized``, the guide that the proposal refines runs instead.
        """
        if self.proposal is not None and not amortized:
            raise ValueError(
                f"{self.proposal!r} is a single density of all latent sites, but this function needs a density for "
                f"each site. Pass the guide that the proposal refines, refined.guide."
            )
        return self.route.run(batch, num_draws, values)

    def draw(self, batch: Batch, num_draws: int, *, amortized: bool = False) -> Drawn:
        """Return draws of the guide, without a run of the model.

        If the guide is a proposal that is fitted to each datum, the draws come from this proposal by default. If
        ``amortized`` is true, the draws come from the amortized guide that the proposal refines.
        """
        if self.proposal is not None and not amortized:
            return self.proposal.draw(self, batch, num_draws)
        return self.route.draw(batch, num_draws)

    def log_guide(
        self, batch: Batch, values: Mapping[str, Tensor], num_draws: int, *, amortized: bool = False
    ) -> Tensor:
        """Return log q(z | x) at given values of the latents, shape ``(num_draws, n)``, nats."""
        if self.proposal is not None and not amortized:
            return self.proposal.log_density(self, batch, dict(values))
        return torch.cat([self.log_density(batch, draws) for draws in self.run_guide(batch, values, num_draws)])

    def run_guide(self, batch: Batch, values: Mapping[str, Tensor], num_draws: int) -> Iterator[Draws]:
        """Yield runs of the guide at given values of its latents: one run if ``vectorize``, else one for each draw."""
        return self.route.run_guide(batch, values, num_draws)

    def log_density(self, batch: Batch, draws: Draws) -> Tensor:
        """Return log q(z | x) of the draws in a run of the guide, shape ``(num_draws, n)``, nats."""
        return self.route.log_density(batch, draws)

    def log_joint(
        self,
        batch: Batch,
        values: Mapping[str, Tensor],
        num_draws: int,
        masks: Sequence[Mapping[str, Any]] | None = None,
    ) -> Tensor:
        """Return log p(x, z) at given values of the latents, shape ``(num_draws, n)``, nats.

        If given, ``masks`` lists the masks of the guide: for each run of the model, a mapping from site names to masks.

        Raises:
            ProgramError: If the mask of a latent site in the model differs from the site's mask in ``masks``.
        """
        return self.route.log_joint(batch, values, num_draws, masks)

    def log_weights(self, batch: Batch, num_draws: int) -> Tensor:
        """Return log-weights of draws from the guide, shape ``(num_draws, n)``, nats."""
        if num_draws not in self._samplers:
            self._samplers[num_draws] = Sampler(self, num_draws)
        return self._samplers[num_draws](batch)[:, : batch.kept]

    # --- checks -------------------------------------------------------------------------------------------------------

    def check_reach(self) -> None:
        """Check that the support of the guide covers the posterior, as importance sampling requires.

        Only the first call runs the programs.

        Raises:
            ProgramError: If a part of the posterior of a datum lies outside the support of the guide.
        """
        if not self._reaches:
            with seeded(self.seed):  # the draws of a batch must not depend on whether it is the first
                check_reach(self)
            self._reaches = True

    def check_repeats(self) -> None:
        """Check that two runs of the guide give the same density at the same draws.

        Estimators that score the draws of an earlier run of the guide need this check.

        Raises:
            ValueError: If the densities of the two runs differ.
        """
        batch = self.few()
        drawn = self.draw(batch, 2, amortized=True)
        again = self.log_guide(batch, drawn.values, 2, amortized=True)
        if not torch.allclose(again, drawn.log_q, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ValueError(
                f"the density of the guide differs by {float((again - drawn.log_q).abs().max()):.3g} nats between two "
                f"runs at the same draws, because the guide draws random numbers outside sample sites. Use a guide "
                f"with a fixed density, such as vae.posterior.amortized instead of pyrovae.posteriors.SemiAmortized."
            )

    def check_whole(self) -> None:
        """Check that the data plate does not subsample the data, so that a run can simulate all of them.

        Raises:
            ValueError: If the data plate subsamples the data.
        """
        if self.plate.size != self.plate.full_size:
            raise ValueError(
                f"the data plate {self.plate.name!r} subsamples {self.plate.size} of {self.plate.full_size} data in "
                f"each run, so the data cannot all be simulated. Pass a program that scores all of its data."
            )
