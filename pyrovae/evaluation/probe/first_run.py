"""The first run: with validation, for one draw of as few data as the program takes."""

from contextlib import suppress

import torch
from torch import Tensor

from pyrovae._waist.errors import OutsideSupportError, ProgramError
from pyrovae.distributions.columns import names_column
from pyrovae.evaluation.probe.trials import Reference, Trials

FEWEST = 4  # data of the run, by which a second run can take three and leave out the first
MOST_TRIALS = 200  # runs to find the data with which a program raises an error


def first_run(trials: Trials, memory: int) -> tuple[Reference, bool]:
    """Run once for some data, or for all if the program takes no fewer.

    Args:
        trials: Runs of the programs.
        memory: Bytes that the tensors of one run may take.

    Returns:
        The run, and whether the program takes fewer data than all, as far as the run shows.

    Raises:
        ValueError: If the program cannot score the data.
    """
    size, num_finite = trials.size, len(trials.finite)
    some = min(size, max(FEWEST, memory // (64 * trials.data.bytes_per_datum)))
    if 1 < num_finite < size:
        some = min(some, num_finite)
    if some < size:
        with suppress(Exception):  # whatever is wrong shows again, and is raised, when it runs on all data
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
            f"cannot score them; remove them, or pass a mask of the others and fill them with zeros "
            f"(pyrovae.likelihoods.Masked)"
        ) from error


def _without_failing(trials: Trials, first: Tensor) -> Tensor:
    """Return those of some indices with whose data the program raises no error."""
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
