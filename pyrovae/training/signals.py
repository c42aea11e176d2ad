"""Being told to stop: Ctrl-C, and the SIGTERM by which a cluster announces that it will kill a process."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """Notes SIGINT and SIGTERM, so that a step in progress ends and its state can be saved.

    A second Ctrl-C is a ``KeyboardInterrupt``. Outside of it a SIGTERM takes its usual course, which by default is the
    end of the process. Handlers of one's own for Ctrl-C, and threads other than the main one, are left alone.

    Args:
        active: Whether it does anything.

    Attributes:
        received: The signal that came.
    """

    def __init__(self, active: bool) -> None:
        self.active = active and threading.current_thread() is threading.main_thread()
        self.received: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if self.active:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self.before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
            if signal.getsignal(signal.SIGTERM) not in (None, signal.SIG_IGN):
                self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if self.received == signal.SIGTERM and kind is None:
            signal.raise_signal(signal.SIGTERM)
