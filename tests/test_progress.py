"""The progress bar is a widget only if widgets can be shown, and its import gives no warning."""

import importlib
import importlib.util
import warnings
from typing import Any

import pytest
import tqdm.auto
import tqdm.std

from pyrovae import _progress


@pytest.mark.parametrize("has_widgets", [False, True])
def test_widgets_are_used_where_they_are_installed(has_widgets: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = object() if has_widgets else None
    with monkeypatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        patch.setattr(importlib.util, "find_spec", lambda name: spec)
        found = importlib.reload(_progress).tqdm
    importlib.reload(_progress)
    assert found is (tqdm.auto.tqdm if has_widgets else tqdm.std.tqdm)
