"""A lock on a folder, so that only one run at a time writes checkpoints into it."""

import errno
import os
import platform
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

from pyrovae._warnings import find_stack_level

_NAME = ".lock"
_INTERVAL = 0.1  # seconds between two attempts
_TAKEN = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}
_UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


class FolderLock:
    """A lock of the operating system on the file ``.lock`` in a folder.

    The system releases the lock when the process ends, even if it is killed, so a leftover file has no effect.
    Processes on other machines respect the lock if the file system supports locks.

    Args:
        folder: The folder, which must exist.
        wait: Seconds to wait for another run to release the lock, before an error is raised.
    """

    def __init__(self, folder: Path, wait: float = 0.0) -> None:
        self.path, self.wait = folder / _NAME, wait
        self.descriptor: int | None = None

    def acquire(self) -> None:
        """Acquire the lock.

        A folder that is not writable is not locked, because no run can write checkpoints there. A file system without
        locks causes a warning.

        Raises:
            BlockingIOError: If another run holds the lock.
            OSError: If the file ``.lock`` cannot be created in a writable folder.
        """
        deadline, mode = time.monotonic() + self.wait, os.O_RDONLY
        while self.descriptor is None:
            try:
                descriptor = os.open(self.path, mode | os.O_CREAT, 0o666)
            except OSError:
                if not os.access(self.path.parent, os.W_OK):
                    return
                raise
            try:
                _lock(descriptor)
                if _is_at(self.path, descriptor):  # the previous owner may have removed the file in the meantime
                    self.descriptor = descriptor
            except OSError as error:
                if error.errno in _UNSUPPORTED:
                    warnings.warn(
                        f"The file system of {str(self.path.parent)!r} does not support locks ({error.strerror}). "
                        f"Make sure that no other run uses this folder.",
                        stacklevel=find_stack_level(),
                    )
                    self.descriptor = descriptor
                elif error.errno == errno.EBADF and mode == os.O_RDONLY:
                    mode = (
                        os.O_RDWR
                    )  # NFS locks only files that are open for writing, which elsewhere prevent a remount
                elif error.errno not in _TAKEN:
                    raise
                elif time.monotonic() >= deadline:
                    raise BlockingIOError(errno.EAGAIN, self._owner()) from error
                else:
                    time.sleep(_INTERVAL)
            finally:
                if self.descriptor is None:
                    os.close(descriptor)
        with suppress(OSError):  # on a full disk the owner's name is missing, which does not affect the lock
            self.path.write_text(f"process {os.getpid()} on {platform.node()}")

    def release(self) -> None:
        """Remove the file ``.lock`` and release the lock; do nothing if this object does not hold the lock."""
        if self.descriptor is None:
            return
        with suppress(OSError):
            self.path.unlink()
        _unlock(self.descriptor)  # closing does not suffice if a child process has inherited the open file
        os.close(self.descriptor)
        self.descriptor = None

    def _owner(self) -> str:
        with suppress(OSError):
            if name := self.path.read_text(errors="replace"):
                return name
        return "another process"


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_UN)
