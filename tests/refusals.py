"""Checks that the package itself raises an error for invalid input, of the right type and with a sentence."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pyrovae

PACKAGE = Path(pyrovae.__file__).parent
KINDS = (TypeError, ValueError, FloatingPointError)


def check_refusal(error: BaseException) -> None:
    """Check that the package raised an error, and not torch, numpy or Python in a nested call."""
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    where = Path(traceback.tb_frame.f_code.co_filename)
    assert where.is_relative_to(PACKAGE), f"{type(error).__name__} from {where}:{traceback.tb_lineno}: {error}"
    assert isinstance(error, KINDS), f"a {type(error).__name__} is no answer: {error}"
    assert len(str(error).split()) > 5, f"no sentence: {error}"


@contextmanager
def refused() -> Iterator[None]:
    """Assert that the package refuses a call."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the type is checked below
        yield
    check_refusal(caught.value)


def answer_or_refusal(call: Callable[[], Any]) -> Any:
    """Return the result of a call, or None if the package refuses it."""
    try:
        return call()
    except Exception as error:
        check_refusal(error)
        return None
