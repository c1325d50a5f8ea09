"""Whether a gradient or a compilation is under way: then values stand for functions, and none of them may be kept."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from ember_ml.tensor import EmberTensor

_active: ContextVar[str] = ContextVar("ember_transform", default="")


@contextmanager
def transforming(tracing: bool = False):
    """Marks the time in which a function is differentiated or, with `tracing`, recorded for a compiler."""
    token = _active.set("trace" if tracing or _active.get() == "trace" else "gradient")
    try:
        yield
    finally:
        _active.reset(token)


def is_tracing() -> bool:
    """True while `compile` records a function: the program must not hang on the value of a tensor then."""
    return _active.get() == "trace"


def is_transforming(tensors: Sequence[EmberTensor] = ()) -> bool:
    """True within `value_and_grad`, `compile` and their kin, and where an engine or the tape watches one of the tensors."""
    return _active.get() != "" or any(x.node is not None or getattr(x.data, "requires_grad", False) for x in tensors)
