r"""A race: several programs that are timed in turns, each in a process of its own.

A contender is a process that prepares itself, reports that it is ready, and then does one unit of work at each request.
In every round each contender works once while the others wait, in a new random order. A temporary slowdown of the
machine therefore affects all contenders, and two contenders are compared within rounds:

.. math:: \text{ratio} = \operatorname{median}_i \frac{t_i}{b_i}

for the seconds :math:`t_i` of a contender and :math:`b_i` of a baseline in round i. The quartiles are reported too.

The processes exchange lines of JSON. The contender starts with ``{"name": ..., "facts": {...}}``, answers every ``go``
with ``{"seconds": ...}`` and answers ``stop`` with ``{"peak_mb": ...}``.
"""

import json
import math
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # contenders import this file too, and do not need the imports of the parent process
    import pandas as pd

OURS = "pyrovae"
PACKAGES = ("pyrovae", "torch", "pyro-ppl", "numpyro", "jax", "pythae")


class Channel:
    """The contender's end of the connection to the parent process.

    Work that cannot be called as a function, such as an epoch inside a library's training loop, calls :meth:`turn`
    itself.

    Args:
        name: Name of the contender.
        **facts: Numbers and strings that are reported to the parent before the first turn.
    """

    def __init__(self, name: str, **facts: Any) -> None:
        sys.stdout.flush()
        self.start: float | None = None
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # from here on, output of libraries goes to stderr, so that it does not disturb the messages
        self._say(name=name, facts=facts)

    def turn(self, seconds: float | None = None) -> bool:
        """End the current turn, if there is one, and wait for the next.

        Args:
            seconds: Seconds of the turn [default: the time since its start].

        Returns:
            Whether there is another turn.
        """
        if self.start is not None:
            self._say(seconds=time.perf_counter() - self.start if seconds is None else seconds)
        more = sys.stdin.readline().strip() == "go"
        self.start = time.perf_counter()
        return more

    def close(self) -> None:
        """Close the connection, and report the peak memory."""
        self._say(peak_mb=peak_mb())
        self.out.close()

    def _say(self, **message: Any) -> None:
        self.out.write(json.dumps(message) + "\n")


def serve(name: str, work: Callable[[], float | None], **facts: Any) -> None:
    """Make this process a contender that works once per turn, until the parent has no more turns.

    Args:
        name: Name of the contender.
        work: Function that does the work once and waits for its end (on a GPU: synchronized). It is timed unless it
            returns its own seconds.
        **facts: Numbers and strings that are reported to the parent before the first turn.
    """
    channel = Channel(name, **facts)
    more = channel.turn()
    while more:
        more = channel.turn(work())
    channel.close()


def peak_mb() -> float:
    """Return the peak memory of this process in MiB: on the GPU if torch or JAX use one, else on the host."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    if jax is not None and (of_device := jax.local_devices()[0].memory_stats()):
        return of_device["peak_bytes_in_use"] / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss includes the memory of the parent process at the start
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@dataclass
class Race:
    """Results of a race.

    Attributes:
        seconds: One row for each round, and one column for each contender that finished the race.
        ready: Seconds from each contender's start until it was ready.
        first: Seconds of each contender's first turn, a warm-up that includes compilation.
        facts: Values that each contender has reported.
        peaks: Peak memory of each contender in MiB.
        missing: Contenders that failed, with the last line of their error.
    """

    seconds: "pd.DataFrame"
    ready: dict[str, float]
    first: dict[str, float]
    facts: dict[str, dict[str, Any]]
    peaks: dict[str, float]
    missing: dict[str, str]

    def table(self, baseline: str, unit_work: float = 1.0) -> "pd.DataFrame":
        """Return medians and quartiles over the rounds.

        Args:
            baseline: Contender whose time in the same round is the denominator of the ratios. If it is missing, the
                ratios are NaN.
            unit_work: Number of units of work (steps, data) in a turn.

        Returns:
            One row for each contender: milliseconds per unit of work (``ms``, ``ms_low``, ``ms_high``: median and
            quartiles), the ratio to the baseline (``ratio``, ``ratio_low``, ``ratio_high``), ``ready_seconds``,
            ``first_seconds`` and ``peak_mb``.
        """
        import pandas as pd

        times = 1000 * self.seconds / unit_work
        ratios = times.div(times[baseline] if baseline in times else float("nan"), axis=0)
        columns = {
            f"{name}{suffix}": values.quantile(q)
            for name, values in (("ms", times), ("ratio", ratios))
            for suffix, q in (("", 0.5), ("_low", 0.25), ("_high", 0.75))
        }
        once = {"ready_seconds": self.ready, "first_seconds": self.first, "peak_mb": self.peaks}
        return pd.DataFrame({**columns, **once}, index=self.seconds.columns)


def spread(median: float, low: float, high: float) -> str:
    """Return a median with its quartiles, to three digits. NaN becomes an empty string."""
    return "" if math.isnan(median) else f"{median:.3g} [{low:.3g}, {high:.3g}]"


def race(commands: Mapping[str, Sequence[str]], rounds: int, warmup: int = 1) -> Race:
    """Let the contenders work in turns.

    The contenders start one after another, and only one works at a time.

    Args:
        commands: Commands that start the contenders, by name. A name that begins with "pyrovae" marks a contender of
            this project.
        rounds: Number of rounds that are counted.
        warmup: Number of warm-up rounds, at least 1.

    Raises:
        RuntimeError: If a contender of this project fails. Other contenders that fail are listed as missing.
    """
    import pandas as pd

    field = _Field()
    with ExitStack() as stack:
        for name, command in commands.items():
            start = time.perf_counter()
            field.add(name, stack.enter_context(closing(_Contender(command))), start)
        table = [field.round() for _ in range(warmup + rounds)]
        peaks = field.ask("stop", "peak_mb", list(field.contenders))
    seconds = pd.DataFrame(table[warmup:], columns=list(peaks), dtype=float)
    return Race(
        seconds,
        ready={name: field.ready[name] for name in peaks},
        first={name: table[0][name] for name in peaks},
        facts={name: field.facts[name] for name in peaks},
        peaks=peaks,
        missing=field.missing,
    )


class _Field:
    """The contenders that have not failed."""

    def __init__(self) -> None:
        self.contenders: dict[str, _Contender] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.ready: dict[str, float] = {}
        self.missing: dict[str, str] = {}
        self.order = random.Random(0)

    def add(self, name: str, contender: "_Contender", start: float) -> None:
        """Wait until a contender is ready, which was started at the time ``start``."""
        self.contenders[name] = contender
        if (message := self._hear(name)) is not None:
            self.ready[name] = time.perf_counter() - start
            self.facts[name] = message["facts"]

    def round(self) -> dict[str, float]:
        """Run one turn of each contender in random order, and return their seconds."""
        names = list(self.contenders)
        self.order.shuffle(names)
        return self.ask("go", "seconds", names)

    def ask(self, word: str, key: str, names: Sequence[str]) -> dict[str, float]:
        """Send a word to one contender after another, and return their answers."""
        answers = {}
        for name in names:
            self.contenders[name].say(word)
            if (message := self._hear(name)) is not None:
                answers[name] = float(message[key])
        return answers

    def _hear(self, name: str) -> dict[str, Any] | None:
        message = self.contenders[name].hear()
        if message is None:
            error = self.contenders.pop(name).error()
            if name.startswith(OURS):
                raise RuntimeError(f"The contender {name} failed:\n{error}")
            self.missing[name] = (error.strip().splitlines() or ["it ended without a message"])[-1]
        return message


class _Contender:
    """The parent's end of the connection to one contender."""

    def __init__(self, command: Sequence[str]) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.errors = Path(self.folder.name) / "errors"
        with self.errors.open("w") as file:  # a pipe could fill up and block the process
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": self.folder.name},  # an empty cache
            )

    def close(self) -> None:
        """Wait for the end of the process, which stops when its connection is closed."""
        self.process.communicate()
        self.folder.cleanup()

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{word}\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # the process has ended; the next call of hear reports this
            pass

    def hear(self) -> dict[str, Any] | None:
        """Return the next message, or None if the process has ended."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith('{"'):  # libraries may print before the first message
                message: dict[str, Any] = json.loads(line)
                return message
        return None

    def error(self) -> str:
        """Return the standard error of the process, which has ended."""
        self.process.wait()
        return self.errors.read_text()


def machine(device: str) -> dict[str, Any]:
    """Return the processor, its cores, threads if they are limited, versions of packages, and the GPU if it is used."""
    facts: dict[str, Any] = {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }
    if threads := os.environ.get("OMP_NUM_THREADS"):
        facts["threads"] = threads
    if device == "cuda":
        import torch

        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _version(package: str) -> str | None:
    from pyrovae.versions import version  # the installed metadata may be those of an earlier version

    try:
        return version(package)
    except metadata.PackageNotFoundError:
        return None


def set_up_seconds(call: Callable[[], object]) -> float:
    """Return the seconds of the second of two equal calls on few data. The first call fills the compiler's cache."""
    for _ in range(2):
        start = time.perf_counter()
        call()
    return time.perf_counter() - start
