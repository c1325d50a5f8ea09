"""Batches made ahead of time by a thread, for data that is slow to read or to lay out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import count

from ember_ml.errors import ConfigError, DataError


class Prefetch:
    """`batch(i)` of a source, with the next ones made meanwhile: the same arrays for every i, in any order.

        with Prefetch(source.batch, first=trainer.done) as batch:
            arrays = batch(trainer.done)

    Asked for i = first, first + 1, ... it hands out what is ready; asked for another i it starts anew from there. An error of the source is
    raised by the call for the batch that it belongs to. At most `ahead` batches wait, and one more is in the making.

    Args: batch: a pure function of i. first: the first i. ahead: batches that may wait, at least 1.

    The thread ends with `close`, with the `with` block, or with the program.
    """

    def __init__(self, batch: Callable, first: int = 0, ahead: int = 2):
        if ahead < 1:
            raise ConfigError(f"prefetch: expected ahead of at least 1, received {ahead}")
        self._batch, self._ahead = batch, ahead
        self._ready: deque = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._start(first)

    def __call__(self, i: int):
        """The batch of update i."""
        if self._closed:
            raise DataError("prefetch: is closed; make a new one")
        if i != self._next:
            self._stop()
            self._start(i)
        with self._changed:
            while not self._ready:
                self._changed.wait()
            arrays, error = self._ready.popleft()
            self._changed.notify_all()
        self._next = -1 if error is not None else i + 1
        if error is not None:
            raise error
        return arrays

    def close(self):
        """Ends the thread; a batch in the making is finished first."""
        self._closed = True
        self._stop()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_):
        self.close()

    def _start(self, first: int):
        self._next, self._running = first, True
        self._thread = threading.Thread(target=self._run, args=(first,), name="ember-prefetch", daemon=True)
        self._thread.start()

    def _stop(self):
        with self._changed:
            self._running = False
            self._changed.notify_all()
        self._thread.join()
        self._ready.clear()

    def _run(self, first: int):
        for i in count(first):
            try:
                made = self._batch(i), None
            except Exception as e:      # whatever it is, it belongs to the caller
                made = None, e
            with self._changed:
                while len(self._ready) >= self._ahead and self._running:
                    self._changed.wait()
                if not self._running:
                    return
                self._ready.append(made)
                self._changed.notify_all()
            if made[1] is not None:
                return
