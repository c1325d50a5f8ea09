"""Whether a gradient or a compilation is under way: then values stand for functions, and none of them may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ember_ml.tensor import EmberTensor

_active: ContextVar[bool] = ContextVar("ember_transform", default=False)


@contextmanager
def transforming():
    """Marks the time in which a function is differentiated or traced."""
    token = _active.set(True)
    try:
        yield
    finally:
        _active.reset(token)


def is_transforming(tensors: Sequence[EmberTensor] = ()) -> bool:
    """True within `value_and_grad`, `compile` and their kin, and where an engine or the tape watches one of the tensors."""
    return _active.get() or any(x.node is not None or getattr(x.data, "requires_grad", False) for x in tensors)
