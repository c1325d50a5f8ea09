"""One process at a time in a run folder."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from pathlib import Path

from ember_ml.errors import ConfigError


class FolderLock:
    """A lock on a folder that lasts until `release`, or until its process ends, however it ends.

    It is the operating system's lock on the file `.lock`, which is left there: a file that is left says nothing, the lock does.

    Args:
        folder: must be there.

    Attributes: new, whether there was no such file before.

    Raises ConfigError, naming the process, where another holds it; OSError.
    """

    def __init__(self, folder: Path):
        self.path = folder / ".lock"
        self._file, self._held, self.new = None, False, False
        self.acquire()

    def acquire(self):
        """Takes the lock again after a release; does nothing while it is held."""
        if self._file is not None:
            return
        new = not self.path.exists()
        # A link is not followed: the file that a stranger's folder points to would lose its content.
        file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+", encoding="ascii", errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            file.close()
            raise ConfigError(f"{self.path.parent}: process {holder} is training in this folder; wait for it, or choose another folder "
                              "with --out") from None
        self.new = self.new or new
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    @contextmanager
    def held(self):
        """Inside, the lock is held; others are let in at the end of the outermost of such blocks."""
        self.acquire()
        outer, self._held = self._held, True
        try:
            yield
        finally:
            self._held = outer
            if not outer:
                self.release()

    def release(self):
        """Lets others in."""
        if self._file is not None:
            self._file.close()
            self._file = None
