"""Run a cell of the matrix, and classify it as right, refused, wrong or an error."""

import traceback
import warnings
from dataclasses import dataclass
from typing import Literal

from tests.programs.case import Case
from tests.programs.tools import CHECKS
from tests.refusals import check_refusal


@dataclass(frozen=True)
class Outcome:
    """Outcome of a cell.

    Attributes:
        kind: ``"right"``, ``"refused"`` by the package with a sentence, ``"wrong"`` if a number disagrees, ``"error"``
            if the program fails in any other way.
        message: Message of the refusal, the disagreement or the error.
        where: Traceback of an error.
    """

    kind: Literal["right", "refused", "wrong", "error"]
    message: str = ""
    where: str = ""


def outcome(case: Case, tool: str) -> Outcome:
    """Run a tool on a program and check its result.

    Warnings are not raised: a program that takes one draw a run, or runs without compilation, is right if its numbers
    are.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            CHECKS[tool](case)
        except AssertionError as error:
            return Outcome("wrong", str(error), traceback.format_exc())
        except Exception as error:
            return _of_exception(error)
    return Outcome("right")


def _of_exception(error: Exception) -> Outcome:
    try:
        check_refusal(error)
    except AssertionError as reason:
        return Outcome("error", str(reason), "".join(traceback.format_exception(error)))
    return Outcome("refused", str(error), "".join(traceback.format_exception(error)))
