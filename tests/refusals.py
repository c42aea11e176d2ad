"""Errors that are an answer: raised by the package itself, of a kind that a user's mistake has, in a sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent
KINDS = (TypeError, ValueError, FloatingPointError)


def check_refusal(error: BaseException) -> None:
    """Checks that the package has raised an error, not torch, numpy or Python somewhere deep inside of it."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = Path(traceback.tb_frame.f_code.co_filename)
    assert where.is_relative_to(PACKAGE), f"{type(error).__name__} from {where}:{traceback.tb_lineno}: {error}"
    assert isinstance(error, KINDS), f"a {type(error).__name__} is no answer: {error}"
    assert len(str(error).split()) > 5, f"no sentence: {error}"


@contextmanager
def refused() -> Iterator[None]:
    """Demands that the package refuses."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # of what kind, is checked below
        yield
    check_refusal(caught.value)


def answer_or_refusal(call: Callable[[], Any]) -> Any:
    """What a call returns; None where the package refuses."""
    try:
        return call()
    except Exception as error:
        check_refusal(error)
        return None
