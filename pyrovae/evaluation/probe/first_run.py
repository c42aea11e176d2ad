"""The first run of guide and model: one draw for some of the data, with Pyro's validation."""

from contextlib import suppress

import torch
from torch import Tensor

from pyrovae._waist.errors import OutsideSupportError, ProgramError
from pyrovae.distributions.columns import names_column
from pyrovae.evaluation.probe.trials import Reference, Trials

FEWEST = 4  # number of data, so that the second run can score three data and leave out the first
MOST_TRIALS = 200  # largest number of runs that search for the data with which a program raises an error


def first_run(trials: Trials, memory: int) -> tuple[Reference, bool]:
    """Run guide and model once on some of the data. If that fails, use all data, or only data that raise no error.

    Args:
        trials: Object that runs the programs.
        memory: Bytes that the tensors of one run may occupy.

    Returns:
        The run, and true if it has more than one datum. A second run can then try to score fewer data than this run.

    Raises:
        ValueError: If the program cannot score the data.
    """
    size, num_finite = trials.size, len(trials.finite)
    some = min(size, max(FEWEST, memory // (64 * trials.data.bytes_per_datum)))
    if 1 < num_finite < size:
        some = min(some, num_finite)
    if some < size:
        with suppress(Exception):  # the run on all data raises the error again
            one = trials.reference(some)
            if one.weights.plate.size == some:
                return one, True
    try:
        return trials.reference(size), size > 1
    except ProgramError:
        raise
    except Exception as error:
        missing = size - num_finite
        if not missing and isinstance(error, OutsideSupportError):
            raise
        passing = _without_failing(trials, trials.finite[:some])
        if 1 < len(passing) < min(some, num_finite):
            trials.leave_out_failing(passing)
            return trials.reference(len(passing)), True
        if not missing or names_column(error):
            raise
        known = set(trials.finite.tolist())
        first = next(i for i in range(size) if i not in known)
        raise ValueError(
            f"{missing} of {size} data in x hold NaN or infinite values, the first at index {first}, and the program "
            f"cannot score them. Remove them, or replace the values by zeros and pass a mask "
            f"(pyrovae.likelihoods.Masked)."
        ) from error


def _without_failing(trials: Trials, first: Tensor) -> Tensor:
    """Return the indices in ``first`` of the data that the program scores without an error.

    Three data are tried before all others: the first, the middle one and the last. If the program fails for all three,
    no index is returned. The search ends after ``MOST_TRIALS`` runs. Untested indices are left out.
    """
    runs = 0

    def passing(indices: Tensor) -> list[Tensor]:
        nonlocal runs
        runs += 1
        if runs > MOST_TRIALS:
            return []
        try:
            trials.score(trials.data.select(indices, trials.device))
            return [indices]
        except Exception:
            half = len(indices) // 2
            return passing(indices[:half]) + passing(indices[half:]) if half else []

    if not len(first):
        return first
    if not any(passing(index) for index in first[torch.tensor([0, len(first) // 2, -1])].unsqueeze(1)):
        return first[:0]
    return torch.cat([first[:0], *passing(first)])
