"""Ctrl-C ends a run between two updates, so that its state can be saved."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager

from ember_ml.errors import EmberError


class Interrupted(EmberError, KeyboardInterrupt):
    """Training was interrupted by Ctrl-C; the message tells what was saved and how to go on."""


@contextmanager
def deferred_interrupt():
    """`with deferred_interrupt() as asked:`: asked() tells whether Ctrl-C was pressed; pressed again, it interrupts at once.

    In threads other than the main one, where Python delivers no signals, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def note(number, frame):
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
