"""Batches made ahead of time by a thread, for data that is slow to read or to lay out."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import count

from ember_ml.errors import ConfigError


class Prefetch:
    """`batch(i)` of a source, with the next ones made meanwhile: the same arrays for every i, in any order.

        with Prefetch(source.batch) as batch:
            for i in range(steps):
                train(batch(i))

    Asked for i and then i + 1, i + 2, ... it hands out what is ready; asked for another i it starts anew from there. An error of the
    source is raised by the call for the batch that it belongs to. At most `ahead` batches wait, and one more is in the making.

    Args: batch: a pure function of i. ahead: batches that may wait, at least 1.

    The thread starts with the first call and ends with `close`, with the `with` block, or with the program; a call after `close` starts
    another.
    """

    def __init__(self, batch: Callable, ahead: int = 2):
        if ahead < 1:
            raise ConfigError(f"prefetch: expected ahead of at least 1, received {ahead}")
        self._batch, self._ahead, self._next = batch, ahead, 0
        self._ready: deque = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._running = False

    def __call__(self, i: int):
        """The batch of update i."""
        if self._thread is None or i != self._next:
            self.close()
            self._running = True
            self._thread = threading.Thread(target=self._run, args=(i,), name="ember-prefetch", daemon=True)
            self._thread.start()
        with self._changed:
            while not self._ready:
                self._changed.wait()
            arrays, error = self._ready.popleft()
            self._changed.notify_all()
        self._next = i + 1
        if error is not None:
            self.close()
            raise error
        return arrays

    def close(self):
        """Ends the thread; a batch in the making is finished first."""
        if self._thread is None:
            return
        with self._changed:
            self._running = False
            self._changed.notify_all()
        self._thread.join()
        self._thread = None
        self._ready.clear()

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_):
        self.close()

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
