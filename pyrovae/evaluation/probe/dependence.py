"""The second run of a program, which checks that a log-weight depends only on its own draw and its own datum.

The first run has one draw for each datum. The second run takes three of the data, each with two draws. The first draw
is the draw of the first run. If the second run fails, or if the log-weight of a first draw differs between the two
runs, further runs find the cause. An evaluation can adapt to two causes. If the program cannot have a dimension of
draws, the evaluation runs the program once for each draw. If the data plate has a fixed size, every run gets all data
of the plate. Any other cause raises an error.
"""

from typing import NamedTuple

from torch import Tensor

from pyrovae._waist.errors import ProgramError
from pyrovae._waist.independence import (
    FEW_DATA,
    BatchNormInputs,
    depends_on_other_data,
    difference_by_data,
    largest_difference,
    with_other_data,
    with_second_draw,
)
from pyrovae._waist.noise import differs_again, keeps_a_state
from pyrovae._waist.weights import Weights
from pyrovae.evaluation.probe.trials import Reference, Trials

FEW = 3  # number of data in the second run


class Outcome(NamedTuple):
    """Numbers of data and draws that a program can score in one run; the result of :meth:`Dependence.second_run`.

    Attributes:
        any_data: True if a run may have any number of data.
        many_draws: True if a run may have many draws.
        reason: Reason why a run may not have many draws. It is empty if a run may have many draws, or if this was not
            tested.
    """

    any_data: bool
    many_draws: bool
    reason: str


class Dependence:
    """Comparison of the first run of a program with further runs.

    A further run scores the draws of the first run together with other draws or other data.

    Args:
        trials: Object that runs the programs.
        alone: Number of dimensions of the input of each batch-normalization layer in the first run.

    Attributes:
        repeats: False as soon as two runs of the guide have given different densities for the same draws.
    """

    def __init__(self, trials: Trials, alone: BatchNormInputs) -> None:
        self.trials, self.alone, self.repeats = trials, alone, True
        self.vectorize = trials.options["vectorize"] is not False

    def second_run(self, one: Reference) -> Outcome:
        """Score the first run's draws again, and return whether one run can have fewer data and more draws.

        Raises:
            ValueError: If the log-weight of a datum depends on other data, or if the model draws random numbers
                outside sample sites.
        """
        few = min(FEW, max(one.size - 2, 1))
        if one.size < 2 or one.weights.plate.size != one.size:
            return self.all_data(one)
        reason = ""
        if self.vectorize:
            agrees, reason = self._agrees(one, few, draws=2)
            if agrees and few == 1 and one.size == self.trials.size:  # a single datum broadcasts in any place
                agrees, reason = self._agrees(one, None, draws=2)
            if agrees:
                self._check_few_data(one)
                return Outcome(True, True, "")
        if not self._takes_fewer(one, few):
            return self.all_data(one)
        self._check_few_data(one)
        if self.vectorize and not self.repeats:
            agrees, reason = self._agrees(one, few, draws=2)
            if agrees:
                return Outcome(True, True, "")
        return Outcome(True, False, reason)

    def all_data(self, one: Reference) -> Outcome:
        """Return the :class:`Outcome` for a program that needs all data in each run.

        A run with two draws for each datum tests whether one run may have many draws. The option ``vectorize=False``
        skips this test.

        Raises:
            ValueError: If the model draws random numbers outside sample sites.
        """
        if not self.vectorize:
            self.repeats = self._has_same_guide(one)
            return Outcome(False, False, "")
        agrees, reason = self._agrees(one, None, draws=2)
        if not agrees and reason.startswith("by ") and self.repeats:
            self.repeats = self._has_same_guide(one)
            if not self.repeats:
                agrees, reason = self._agrees(one, None, draws=2)
        return Outcome(False, agrees, reason)

    def _check_few_data(self, one: Reference) -> None:
        """Call :meth:`check_other_data` if the first run has fewer than ``FEW_DATA`` data.

        With so few data, the second run alone may not detect that a log-weight depends on another datum.
        """
        if one.size < FEW_DATA:
            self.check_other_data(one, with_guide=self.repeats)

    def check_other_data(self, one: Reference, *, with_guide: bool = False) -> None:
        """Check that the log-weight of a datum does not change if other data in the batch are replaced.

        Each further run keeps some data with their draws. It replaces all other data and draws by copies of the kept
        data and draws. The kept data must have the same log-weights as in the first run.

        Args:
            one: The first run.
            with_guide: If true, the guide's log-densities are compared in addition to the model's.

        Raises:
            ValueError: If a log-weight depends on other data.
        """
        trials, weights = self.trials, one.weights
        mixtures = with_other_data(trials.args(one.size), weights.guide_sites, weights.nesting, weights.plate)
        for mixed, values, kept in mixtures:
            try:
                other = trials.score(mixed, weights.chosen | values, depth=one.depth, validate=False)
            except Exception:  # the program cannot score these data
                continue
            if difference := difference_by_data(weights, other, kept, with_guide=with_guide):
                trials.check_noise(one.size)
                repeats = self._has_same_guide(one)
                if not repeats and (weights.densities is None or not difference_by_data(weights, other, kept)):
                    continue
                raise ValueError(depends_on_other_data(f"by {difference:.3g} nats for a datum", weights))

    def _agrees(self, one: Reference, few: int | None, *, draws: int | None) -> tuple[bool, str]:
        """Score the draws of the first run again in a second run, and compare the log-weights of the two runs.

        The first run has one draw for each datum. The second run has a second draw for each datum, fewer data, or both.
        If the second run has fewer data, :meth:`_start` chooses them. A program may use one datum, for example ``x[0]``
        or ``x[-1]``, to score all data. Where possible, the second run leaves out such a datum. If it were in both
        runs, the log-weights that depend on it could be equal in both, and the dependence would not be found.

        Args:
            one: The first run.
            few: Number of data in the second run; ``None`` for all data.
            draws: Number of draws for each datum in the second run, along a dimension of draws. If ``None``, the second
                run has no dimension of draws, and each datum has only its draw of the first run.

        Returns:
            True and an empty text if the log-weights agree; otherwise false and the reason.
        """
        size, start = (self.trials.size, 0) if few is None else (few, self._start(one, few))
        some = None if few is None else range(start, start + few)
        weights, nesting = one.weights, one.nesting
        values = with_second_draw(weights.guide_sites, nesting, weights.plate, some)
        if draws is None:
            values = {name: value.select(-nesting - 1 - one.event_dims[name], 0) for name, value in values.items()}
        given = {**(weights.chosen if few is None else {}), **values}
        with BatchNormInputs() as together:
            try:
                if draws is None:
                    two = self.trials.run(size, given, start=start, depth=one.depth)
                else:
                    two = self.trials.run(size, given, draws=draws, nesting=nesting, start=start)
            except ProgramError:
                raise
            except (RuntimeError, ValueError, IndexError, AssertionError, TypeError) as error:
                return False, str(error).split("\n")[0][:150]
        if two.plate.size != (weights.plate.size if few is None else few):
            return False, f"its data plate keeps the size {two.plate.size}"
        if difference := self._difference(weights, two, some):
            self.trials.check_noise(one.size)
            return False, f"by {difference:.3g} nats for a datum"
        if draws is not None and (layer := together.differing(self.alone)):
            return False, f"{type(layer).__name__} takes the data for its channels"
        return True, ""

    def _start(self, one: Reference, few: int) -> int:
        """Choose ``few`` consecutive data for the second run, and return the index of the first of them.

        Some programs refer to a certain datum, such as the first, the middle or the last one, or the one with the
        largest or the smallest mean. If possible, the chosen data contain no such datum. Otherwise, the result is 1, so
        that at least the first datum is excluded.
        """
        references = {0, one.size - 1, one.size // 2}
        x = next((arg for arg in self.trials.args(one.size) if isinstance(arg, Tensor) and len(arg.shape)), None)
        if x is not None and len(x) == one.size:
            means = x.reshape(one.size, -1).double().mean(-1)
            references |= {int(means.argmax()), int(means.argmin())}
        starts = range(1, one.size - few)
        return next((start for start in starts if not references & set(range(start, start + few))), 1)

    def _difference(self, one: Weights, two: Weights, some: range | None) -> float:
        """Return the largest difference between two runs in the log-density of likelihood, prior or guide, nats.

        If a run does not have these log-densities separately, the log-weights are compared instead. A difference within
        rounding errors counts as 0. If :attr:`repeats` is false, the guide's density changes from run to run, so
        neither this density nor the log-weights are compared.
        """
        data = slice(None) if some is None else slice(some.start, some.stop)
        if one.densities is None or two.densities is None:  # the guide's density is not known separately
            return largest_difference(two.log_weights[:1], one.log_weights[:, data]) if self.repeats else 0.0
        parts = ["likelihood", "prior"] + (["guide"] if self.repeats else [])
        pairs = [(getattr(two.densities, part)[:1], getattr(one.densities, part)[:, data]) for part in parts]
        return max(largest_difference(second, first) for second, first in pairs)

    def _takes_fewer(self, one: Reference, few: int) -> bool:
        """Return whether the program can score ``few`` of the data in a run without the other data.

        The result is false if such a run fails, or if its data plate does not have the size ``few``.

        Raises:
            ValueError: If the run succeeds, but its log-weights differ from those of the same data in the first run.
        """
        agrees, reason = self._agrees(one, few, draws=None)
        if agrees or not reason.startswith("by "):
            return agrees
        self.repeats = self._has_same_guide(one)
        if not self.repeats and self._agrees(one, few, draws=None)[0]:
            return True
        raise ValueError(depends_on_other_data(reason, one.weights))

    def _has_same_guide(self, one: Reference) -> bool:
        """Score the draws of the first run again, and return true if the guide's density has not changed.

        Raises:
            ValueError: If the density of the model differs from that in the first run.
        """
        first = one.weights
        again = self.trials.run(one.size, {**first.chosen, **one.values}, depth=one.depth)
        if first.densities is None or again.densities is None:
            self._check_state(one)
            return not largest_difference(again.log_weights, first.log_weights)
        if max(
            largest_difference(getattr(again.densities, part), getattr(first.densities, part))
            for part in ("likelihood", "prior")
        ):
            self.trials.check_noise(one.size)
            raise ValueError(keeps_a_state())
        return not largest_difference(again.densities.guide, first.densities.guide)

    def _check_state(self, one: Reference) -> None:
        """Check that a program with enumerated sites keeps no state: two runs with the same seed have equal densities.

        Raises:
            ValueError: If the densities of the two runs differ.
        """
        if differs_again(lambda: self.trials.run(one.size).of_model):
            self.trials.check_noise(one.size)
            raise ValueError(keeps_a_state())
