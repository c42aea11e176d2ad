"""Facts about a program, found by at most three runs on a few data before the first draw of an estimate.

1. Guide and model run with validation for one draw of some data. The run shows the plates, checks model and guide
   against each other, and data against the support of the likelihood.
2. They run for two draws of three of these data. One draw is that of the first run, so that its log-weights
   must be the same: they may depend neither on other draws nor on other data.
3. They run for eleven draws, and the bytes of all tensors are counted, which sets the size of batches.

If the second run fails or differs, further runs find the cause. A program that takes no dimension of draws is run once
for each draw, a program whose plate has a fixed size gets all data at once, and the rest is an error.
"""

import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyrovae._waist.densities import log_guide, log_joint
from pyrovae._waist.draws import run_guide, run_model
from pyrovae._waist.errors import OutsideSupportError
from pyrovae._waist.independence import (
    BatchNormInputs,
    depends_on_other_data,
    difference_by_data,
    largest_difference,
    needs_one_draw_a_run,
    with_other_data,
    with_second_draw,
)
from pyrovae._waist.plates import plate_names
from pyrovae._waist.scoring import masked_score
from pyrovae._waist.sites import Site, is_enumerated, is_point
from pyrovae._waist.summation import sum_per_datum
from pyrovae._waist.support import common_support, is_discrete, is_real, support_of
from pyrovae._waist.weights import Weights, importance_weights, weigh
from pyrovae._warnings import find_stack_level
from pyrovae.evaluation.program_data import HALF

if TYPE_CHECKING:
    from pyrovae.evaluation.problem import Problem

FEW = 3  # data of the second run
MOST_TRIALS = 200  # runs to find the data with which a program raises an error
WIDE_DRAWS = 64  # draws of model and guide by which the support of the guide is checked
MISSED = 0.05  # share of the posterior that a guide may miss: 0.05 nats
COUNTED = 11  # draws of the third run; few programs have a dimension of this size


class Probe:
    """Properties of a program on its data.

    Args:
        problem: The problem, within its isolation.

    Attributes:
        plate: The data plate of a run.
        nesting: Depth of the program's own plates.
        cuttable: Whether the program runs on any number of data.
        vectorize: Whether many draws are made in one run.
        enumerates: Whether sites of the guide are enumerated, so that guide and model run together.
        repeats: Whether the guide has the same density in every run.
        parameters: Values of the parameters that the programs announce to Pyro.
        event_dims: Number of event dimensions of each latent site of the guide.
        base_measures: ``"counting"`` or ``"Lebesgue"`` for each observed site.
        unreached: What is wrong with a guide that misses a part of the posterior; empty if nothing is.
        bytes_per_weight: Bytes of all tensors in a run, for a draw and datum.
        guide_bytes: The same of the guide: for a datum, and for each draw more.
        model_bytes: The same of the model, for a draw and datum.

    Raises:
        ValueError: If the program breaks what the module docstring says.
    """

    def __init__(self, problem: "Problem") -> None:
        self.problem = problem
        self._check_half_precision()
        self.repeats = True
        self.unreached = ""
        self._read: tuple[int, tuple[Any, ...]] | None = None
        self.finite = problem.data.finite()
        self.alone = BatchNormInputs()
        half = HalfPrecision()
        with self.alone, poutine.trace(param_only=True) as capture, half:
            self.cuttable, one, data = self._first_run()
        if half.found is not None:
            raise ValueError(
                f"the program computes in half precision, {half.found}, in which log-weights are rounded by more than "
                f"their Monte Carlo error; leave out casts and torch.autocast in it, and pass precision='bfloat16' for "
                f"fast products"
            )
        announced: list[Any] = [site["value"] for site in capture.trace.nodes.values() if site["type"] == "param"]
        self.parameters: list[Tensor] = [value.detach() for value in announced]
        self._settle(one)
        self.cuttable, self.vectorize, reason = self._second_run(one, data)
        if not self.cuttable and data < problem.size:
            one = self._run(problem.size, validate=True)
            self._settle(one)
            self.vectorize, reason = self._takes_draws(one)
        if not self.cuttable:
            self._check_independent(one)
        self._check_size()
        self._choose_vectorize(reason)
        self._check_support(one, data)
        self._check_coverage(one)
        self._count_bytes()

    # --- the first run ------------------------------------------------------------------------------------------------

    def _first_run(self) -> tuple[bool, Weights, int]:
        """Run once for some data, or for all if the program takes no fewer."""
        problem = self.problem
        some = min(problem.size, max(FEW + 1, problem.memory // (64 * problem.data.bytes_per_datum)))
        if 1 < len(self.finite) < problem.size:
            some = min(some, len(self.finite))
        if some < problem.size:
            with suppress(Exception):  # whatever is wrong shows again, and is raised, when it runs on all data
                one = self._run(some, validate=True)
                if one.plate.size == some:
                    return True, one, some
        try:
            return problem.size > 1, self._run(problem.size, validate=True), problem.size
        except Exception as error:
            missing = problem.size - len(self.finite)
            if not missing and isinstance(error, OutsideSupportError):
                raise
            good = self._without_failing(some)
            if 1 < len(good) < min(some, len(self.finite)):
                self.finite = torch.cat([good, self.finite[self.finite > good.max()]])
                return True, self._run(len(good), validate=True), len(good)
            if not missing:
                raise
            known = set(self.finite.tolist())
            first = next(i for i in range(problem.size) if i not in known)
            raise ValueError(
                f"{missing} of {problem.size} data in x hold NaN or infinite values, the first at index {first}, and "
                f"the program cannot score them; remove them, or pass a mask of the others and fill them with zeros "
                f"(pyrovae.likelihoods.Masked)"
            ) from error

    def _without_failing(self, some: int) -> Tensor:
        """Return the indices of those data, of the first, with which the program raises no error."""
        runs = 0

        def passing(indices: Tensor) -> list[Tensor]:
            nonlocal runs
            runs += 1
            if runs > MOST_TRIALS:
                return []
            try:
                self._score(self.problem.data.select(indices, self.problem.device))
                return [indices]
            except Exception:
                half = len(indices) // 2
                return passing(indices[:half]) + passing(indices[half:]) if half else []

        first = self.finite[:some]
        if not len(first):
            return first
        if not any(passing(index) for index in first[torch.tensor([0, len(first) // 2, -1])].unsqueeze(1)):
            return first[:0]
        return torch.cat([first[:0], *passing(first)])

    def _score(self, args: tuple[Any, ...]) -> None:
        problem = self.problem
        options: Any = {"kwargs": problem.options["kwargs"], "plate": problem.options["plate"]}
        with pyro.validation_enabled():
            importance_weights(problem.model, problem.guide, args, **options)

    def _args(self, size: int, start: int = 0) -> tuple[Any, ...]:
        """Return the arguments for a run on some data, those without NaN first."""
        data, device, stop = self.problem.data, self.problem.device, start + size
        if stop < len(data) and stop <= len(self.finite) < len(data):
            return data.select(self.finite[start:stop], device)
        if self._read is not None and stop <= self._read[0]:  # a data set may give other values when it is read again
            return tuple(arg[start:stop] if isinstance(arg, Tensor) else arg for arg in self._read[1])
        args = data.batch(start, stop, device)
        if start == 0:
            self._read = stop, args
        return args

    def _settle(self, one: Weights) -> None:
        self.plate, self.nesting = one.plate, one.nesting
        latents = [site for site in one.guide_sites if not site["is_observed"]]
        self.event_dims = {site["name"]: site["fn"].event_dim for site in latents}
        self.enumerates = any(map(is_enumerated, one.guide_sites))
        observed = [s for s in one.model_sites if s["is_observed"] and one.plate.name in plate_names(s)]
        self.base_measures = {site["name"]: _base_measure(site["fn"]) for site in observed}

    def _run(
        self,
        size: int,
        draws: int | None = None,
        values: dict[str, Tensor] | None = None,
        *,
        start: int = 0,
        validate: bool = False,
    ) -> Weights:
        """Run guide and model on some data, for one draw, or for many at once."""
        problem = self.problem
        with pyro.validation_enabled(validate):
            return importance_weights(
                problem.model,
                problem.guide,
                self._args(size, start),
                draws or 1,
                kwargs=problem.options["kwargs"],
                nesting=None if draws is None else self.nesting,
                plate=problem.options["plate"],
                values=values,
            )

    # --- the second run -----------------------------------------------------------------------------------------------

    def _second_run(self, one: Weights, data: int) -> tuple[bool, bool, str]:
        """Return whether the program takes any number of data and of draws, and if not of draws, why."""
        few = min(FEW, max(data - 2, 1))
        if not self.cuttable or data < 2 or one.plate.size != data:
            takes, reason = self._takes_draws(one)
            return False, takes, reason
        if self.problem.options["vectorize"] is not False and not self.enumerates:
            agrees, reason = self._agrees(one, few, draws=2)
            if agrees:
                return True, True, ""
        elif self.enumerates:
            reason = ""
        if not self._follows(one, few):
            takes, reason = self._takes_draws(one)
            return False, takes, reason
        if self.enumerates:  # the draws of such a guide have dimensions of their own
            return True, True, ""
        if not self.repeats and self.problem.options["vectorize"] is not False:
            agrees, reason = self._agrees(one, few, draws=2)
            if agrees:
                return True, True, ""
        return True, False, "" if self.problem.options["vectorize"] is False else reason

    def _check_independent(self, one: Weights) -> None:
        """Check a program that takes no fewer data: put others in the place of the second half."""
        problem = self.problem
        args = problem.data.batch(0, problem.size, problem.device)
        mixed, values, kept = with_other_data(args, one.guide_sites, one.nesting, one.plate)
        options: Any = {"kwargs": problem.options["kwargs"], "plate": problem.options["plate"]}
        with pyro.validation_enabled(False):
            try:
                other = importance_weights(problem.model, problem.guide, mixed, values=one.chosen | values, **options)
            except Exception:  # of a program that does not take these data, or that enumerates sites of the guide
                return
        if difference := difference_by_data(one, other, kept):
            if not self._has_same_guide(one) and one.densities is None:
                return
            raise ValueError(depends_on_other_data(f"by {difference:.3g} nats for a datum"))

    def _agrees(self, one: Weights, few: int | None, *, draws: int | None) -> tuple[bool, str]:
        """Score the draws of the first run again, beside others and without the other data.

        Of fewer data, neither the first nor the last is taken, since programs may take them for a reference.
        """
        size, start = (self.problem.size, 0) if few is None else (few, 1)
        some = None if few is None else range(start, start + few)
        values = with_second_draw(one.guide_sites, self.nesting, one.plate, some)
        if draws is None:
            dims = {name: -self.nesting - 1 - self.event_dims[name] for name in values}
            values = {name: value.select(dims[name], 0) for name, value in values.items()}
        with BatchNormInputs() as together:
            try:
                two = self._run(size, draws, {**(one.chosen if few is None else {}), **values}, start=start)
            except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
                return False, str(error).split("\n")[0][:150]
        if two.plate.size != (one.plate.size if few is None else few):
            return False, f"its data plate keeps the size {two.plate.size}"
        difference = self._difference(one, two, some)
        if difference:
            return False, f"by {difference:.3g} nats for a datum"
        if draws is not None and (layer := together.differing(self.alone)):
            return False, f"{type(layer).__name__} takes the data for its channels"
        return True, ""

    def _difference(self, one: Weights, two: Weights, some: range | None) -> float:
        """Return the largest difference of the terms of the log-weights beyond rounding, nats."""
        data = slice(None) if some is None else slice(some.start, some.stop)
        if one.densities is None or two.densities is None:
            return largest_difference(two.log_weights[:1], one.log_weights[:, data])
        parts = ["likelihood", "prior"] + (["guide"] if self.repeats else [])
        pairs = [(getattr(two.densities, part)[:1], getattr(one.densities, part)[:, data]) for part in parts]
        return max(largest_difference(second, first) for second, first in pairs)

    def _follows(self, one: Weights, few: int) -> bool:
        """Return whether the program runs on fewer data, and check that their log-weights stay what they were."""
        if self.enumerates:
            try:
                return self._run(few).plate.size == few
            except Exception:
                return False
        agrees, reason = self._agrees(one, few, draws=None)
        if agrees or not reason.startswith("by "):
            return agrees
        self.repeats = self._has_same_guide(one)
        if not self.repeats and self._agrees(one, few, draws=None)[0]:
            return True
        raise ValueError(depends_on_other_data(reason))

    def _has_same_guide(self, one: Weights) -> bool:
        """Score the draws of the first run once more, and return whether the guide has the same density.

        Raises:
            ValueError: If the model has another density then.
        """
        again = self._run(self._first_size(one), None, {**one.chosen, **self._values_of(one)})
        if one.densities is None or again.densities is None:
            return True
        if max(
            largest_difference(getattr(again.densities, part), getattr(one.densities, part))
            for part in ("likelihood", "prior")
        ):
            raise ValueError(
                "the model has another density in every run, as it draws random numbers outside of sample sites; make "
                "them sample sites, or switch them off (dropout: torch.nn.Dropout in evaluation mode)"
            )
        return not largest_difference(again.densities.guide, one.densities.guide)

    def _first_size(self, one: Weights) -> int:
        return one.plate.size if one.plate.size <= self.problem.size and self.cuttable else self.problem.size

    def _values_of(self, one: Weights) -> dict[str, Tensor]:
        return {site["name"]: site["value"] for site in one.guide_sites if not site["is_observed"]}

    def _takes_draws(self, one: Weights) -> tuple[bool, str]:
        """Return whether the program takes a dimension of draws with all its data, and if not, why."""
        if self.problem.options["vectorize"] is False or self.enumerates:
            return self.enumerates and self.problem.options["vectorize"] is not False, ""
        agrees, reason = self._agrees(one, None, draws=2)
        if not agrees and reason.startswith("by ") and self.repeats:
            self.repeats = self._has_same_guide(one)
            if not self.repeats:
                agrees, reason = self._agrees(one, None, draws=2)
        return agrees, reason

    def _choose_vectorize(self, reason: str) -> None:
        wanted = self.problem.options["vectorize"]
        if wanted is False:
            self.vectorize = False
        elif not self.vectorize and wanted:
            raise ValueError(f"{needs_one_draw_a_run(reason)}. Or pass vectorize=False, which runs it once a draw")
        elif not self.vectorize:
            warnings.warn(
                f"{needs_one_draw_a_run(reason)}. It runs once for each draw instead", stacklevel=find_stack_level()
            )

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_half_precision(self) -> None:
        for module in self.problem.isolation.modules:
            for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                if tensor.dtype in HALF:
                    raise ValueError(
                        f"parameter {name!r} of {type(module).__name__} is in half precision, {tensor.dtype}, in which "
                        f"log-weights are rounded by more than their Monte Carlo error; evaluate module.float(), and "
                        f"pass precision='bfloat16' for fast products"
                    )

    def _check_size(self) -> None:
        if not self.cuttable and self.problem.size not in (self.plate.size, self.plate.full_size):
            raise ValueError(
                f"the data plate {self.plate.name!r} has size {self.plate.size} but x has {self.problem.size} data; "
                f"make the plate's size that of the data, or name another plate with plate="
            )

    def _check_support(self, one: Weights, data: int) -> None:
        """Check the data that the first run did not see against the support of the likelihood."""
        if data >= self.problem.size and one.plate.size == self.problem.size:
            return
        args = self._args(data)
        for site in one.model_sites:
            if not site["is_observed"] or is_real(site["fn"]) or is_point(site["fn"]):
                continue
            position = next((i for i, arg in enumerate(args) if _is_same(arg, site["value"])), None)
            support = common_support(support_of(site["fn"]))
            if position is None or support is None:
                self._run_all()
                return
            self._check_argument(site, position, support)

    def _check_coverage(self, one: Weights) -> None:
        """Find a part of the posterior for which the guide has no density, by draws of the model.

        Where all of the guide's sites can take any real number, or the guide enumerates sites, nothing is run.
        """
        latents = [site for site in one.guide_sites if not site["is_observed"]]
        bounded = [site["name"] for site in latents if not (is_real(site["fn"]) or is_discrete(site["fn"]))]
        if self.enumerates or not bounded:
            return
        size = min(FEW, self.problem.size) if self.cuttable else self.problem.size
        runs = [WIDE_DRAWS] if self.vectorize else [None] * (WIDE_DRAWS // 4)
        try:
            inside = torch.cat([self._run(size, draws, dict(one.chosen)).log_weights for draws in runs])
            outside = torch.cat([self._unreached(one, size, draws) for draws in runs])
        except (RuntimeError, ValueError):  # of a model that does not take draws from its prior
            return
        of_both = torch.stack([inside.double().logsumexp(0), outside.double().logsumexp(0)])
        missed = float(of_both.softmax(0)[1].nan_to_num(0.0).max())
        if missed > MISSED:
            self.unreached = (
                f"the guide has no density for about {missed:.0%} of a datum's posterior, as the support of its latent "
                f"sites {bounded} is smaller than the model's, and estimates of log p(x) would be too low; give these "
                f"sites the support that they have in the model"
            )

    def check_reach(self) -> None:
        """Refuse a guide that misses a part of the posterior, for estimators by importance weights of its draws."""
        if self.unreached:
            raise ValueError(self.unreached)

    def _unreached(self, one: Weights, size: int, draws: int | None) -> Tensor:
        """Return log p(x | z) of draws of the model, shape ``(draws, n)``; -inf if the guide can make the draw."""
        problem, count = self.problem, draws or 1
        nesting = None if draws is None else self.nesting
        options: Any = {"kwargs": problem.options["kwargs"], "nesting": nesting}
        plate = one.plate._replace(size=size if self.cuttable else one.plate.size)
        args = self._args(size)
        with pyro.validation_enabled(False):
            sites = run_model(problem.model, args, dict(one.chosen), count, **options)
            values = {site["name"]: site["value"] for site in sites if not site["is_observed"]}
            observed = [site for site in sites if site["is_observed"] and plate.name in plate_names(site)]
            terms = [(site, masked_score(site)) for site in observed]
            dims = None if nesting is None else -nesting - 1, plate.dim or -1
            likelihood = sum_per_datum(terms, *dims).expand(count, plate.size)
            drawn = run_guide(problem.guide, args, count, values=one.chosen | values, **options)
            return torch.where(log_guide(drawn, plate) == -torch.inf, likelihood, -torch.inf)

    def _check_argument(self, site: Site, position: int, support: Any) -> None:
        data = self.problem.data
        for start in range(0, len(self.finite), 1024):
            inside = support.check(data.select(self.finite[start : start + 1024], data.device)[position])
            if not inside.all():
                bad = int(self.finite[start + int((~inside.reshape(len(inside), -1).all(1)).nonzero()[0])])
                self._run_one(bad)
                raise ValueError(f"site {site['name']!r}: datum {bad} lies outside of the support of its distribution")

    def _run_one(self, index: int) -> None:
        """Run with validation on a datum, for the error that says what is wrong with it."""
        self._score(self.problem.data.batch(index, index + 1, self.problem.device))

    def _run_all(self) -> None:
        """Run with validation on all data, in batches."""
        problem = self.problem
        problem.plate, problem.nesting = self.plate, self.nesting
        problem.probe = self
        with pyro.validation_enabled():
            for batch in problem.batches(1024):
                importance_weights(
                    problem.model,
                    problem.guide,
                    batch.args,
                    kwargs=problem.options["kwargs"],
                    plate=problem.options["plate"],
                    values=batch.subsample,
                )

    # --- the third run ------------------------------------------------------------------------------------------------

    def _count_bytes(self) -> None:
        """Count the bytes of a run with several draws."""
        problem = self.problem
        size = min(FEW, problem.size) if self.cuttable else problem.size
        plate = self.plate._replace(size=size if self.cuttable else self.plate.size)
        args = self._args(size)
        nesting, draws = (self.nesting, COUNTED) if self.vectorize else (None, 1)
        kwargs = problem.options["kwargs"]
        with pyro.validation_enabled(False):
            with CountBytes(draws) as of_guide:
                drawn = run_guide(problem.guide, args, draws, kwargs=kwargs, nesting=nesting)
                if not self.enumerates:
                    log_guide(drawn, plate)
            with CountBytes(draws) as of_model:
                if self.enumerates:
                    options: Any = {"kwargs": kwargs, "nesting": nesting, "drawn_with": drawn}
                    weigh(run_model(problem.model, args, drawn.values, draws, **options), drawn, plate=plate.name)
                else:
                    log_joint(problem.model, args, drawn.values, draws, plate=plate, nesting=nesting, kwargs=kwargs)
        self.guide_bytes = of_guide.fixed / plate.size, max(1.0, of_guide.drawn / draws / plate.size)
        self.model_bytes = max(1.0, of_model.total / draws / plate.size)
        self.bytes_per_weight = max(1, int((of_guide.total + of_model.total) / draws / plate.size))


class HalfPrecision(TorchFunctionMode):
    """Note whether a tensor in half precision is made.

    Attributes:
        found: The first such type.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: torch.dtype | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in HALF:
            self.found = self.found or result.dtype
        return result


class CountBytes(TorchFunctionMode):
    """Add up the sizes of all tensors made, an upper bound on what is held at a time.

    Args:
        draws: Number of draws; a tensor with a dimension of this size is taken to hold draws.

    Attributes:
        drawn: Bytes of tensors that hold draws.
        fixed: Bytes of all others.
    """

    def __init__(self, draws: int) -> None:
        super().__init__()
        self.draws, self.drawn, self.fixed = draws, 0, 0

    @property
    def total(self) -> int:
        """Bytes of all tensors."""
        return self.drawn + self.fixed

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not torch.is_grad_enabled():  # gradient steps of a guide hold on to nothing
            shared = any(isinstance(arg, Tensor) and arg.data_ptr() == result.data_ptr() for arg in args)
            size = 0 if shared else result.nbytes  # a view costs nothing
            if self.draws in result.shape:
                self.drawn += size
            else:
                self.fixed += size
        return result


def _base_measure(distribution: Any) -> str:
    support = support_of(distribution)
    if support is None:
        return "unknown"
    return "counting" if support.is_discrete else "Lebesgue"


def _is_same(arg: Any, value: Any) -> bool:
    if not (isinstance(arg, Tensor) and isinstance(value, Tensor)):
        return False
    return arg is value or (arg.shape == value.shape and bool(torch.equal(arg, value.to(arg))))
