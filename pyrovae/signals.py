"""Signals that ask a run to stop: SIGINT (Ctrl-C), and SIGTERM, which a cluster sends before it kills a process."""

import logging
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class StopSignals:
    """A context manager that records SIGINT and SIGTERM, so that a run can finish its current step and save its state.

    A second Ctrl-C raises ``KeyboardInterrupt``. A recorded SIGTERM is sent again when the context ends, even after an
    error or a Ctrl-C. By default, it then ends the process. If the user has set a handler for Ctrl-C, Ctrl-C is not
    recorded. If SIGTERM is ignored, SIGTERM is not recorded. Only the main thread records signals.

    Args:
        active: If true, signals are recorded.

    Attributes:
        received: The signal that was received; a SIGTERM takes precedence over a Ctrl-C.
    """

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if self.active:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._record)
            if signal.getsignal(signal.SIGTERM) not in (None, signal.SIG_IGN):
                self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._record)
        return self

    def _record(self, number: int, _: FrameType | None) -> None:
        is_second = self.received is not None
        if number == signal.SIGTERM or not is_second:
            self.received = number
        if number == signal.SIGINT and is_second:
            raise KeyboardInterrupt

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.received == signal.SIGTERM:
            if error is not None:  # the error is lost if the signal ends the process
                logger.error("the run failed before the SIGTERM took its course: %s: %s", type(error).__name__, error)
            signal.raise_signal(signal.SIGTERM)


class InterruptSignals:
    """A context manager in which SIGTERM raises ``KeyboardInterrupt``, as Ctrl-C does, so that results can be saved.

    A received SIGTERM is sent again when the context ends. By default, it then ends the process. An ignored SIGTERM
    stays ignored. Only the main thread handles the signal.

    Args:
        active: If true, SIGTERM is handled.

    Attributes:
        deferred: If true, a SIGTERM raises no error, but is sent again when the context ends.
        received: True if a SIGTERM was received.
    """

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received, self.deferred = False, False
        self.before: Any = None

    def __enter__(self) -> "InterruptSignals":
        if self.active and (before := signal.getsignal(signal.SIGTERM)) not in (None, signal.SIG_IGN):
            self.before = before
            signal.signal(signal.SIGTERM, self._interrupt)
        return self

    def _interrupt(self, *_: object) -> None:
        is_first, self.received = not self.received, True
        if is_first and not self.deferred:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
        if self.received:
            signal.raise_signal(signal.SIGTERM)
