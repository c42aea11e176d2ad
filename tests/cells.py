"""A cell that fails or is killed a given number of times. It does not import torch, so Ray's workers start fast."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import xarray as xr


def compute(settings: Any, shared: Any) -> xr.Dataset:
    """Return a square, after the failures that the settings request. Every attempt writes a line to a file."""
    log = Path(settings["log"])
    with log.open("a") as file:
        file.write("attempt\n")
    attempts = len(log.read_text().splitlines())
    if attempts <= settings.get("failures", 0):
        raise ValueError(f"no luck with {settings['x']}\nthis time")
    if attempts <= settings.get("kills", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(settings.get("seconds", 0.0))
    return xr.Dataset({"square": ("datum", shared * settings["x"] ** 2)})
