"""What every recurrence asks of its arguments before it looks at how their shapes fit together."""

from __future__ import annotations

from ember_ml.errors import ShapeError, UnsupportedDtype
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.ops.shape import expand_dims
from ember_ml.tensor import EmberTensor


def check_tensors(name: str, *, complex_too: bool = False, chunk: int | None = None, **given: EmberTensor | None):
    """Raises for what no recurrence can work with.

    Args:
        name: the op's, for messages.
        complex_too: complex numbers will do as well.
        chunk: steps of a chunk, if the caller chose them.
        given: its tensors by their names, the sequence first, None for what was left out.

    Raises:
        TypeError: something else than a tensor. UnsupportedDtype: integers or booleans, whose gradient does not exist.
        ShapeError: nothing in the sequence. ValueError: a chunk of no steps.
    """
    expect_tensors(name, given)
    for what, x in given.items():
        if x is None:
            continue
        if x.dtype.kind != "float" and not (complex_too and x.dtype.kind == "complex"):
            wanted = "floating-point or complex" if complex_too else "floating-point"
            raise UnsupportedDtype(f"{name}: expected {what} of a {wanted} dtype, got {x.dtype}; cast it with .astype('float32')")
    what, x = next(iter(given.items()))
    if 0 in x.shape:
        raise ShapeError(f"{name}: expected {what} of shape (batch >= 1, length >= 1, ...) without empty axes, got {x.shape}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"{name}: expected chunk of at least 1 step, got {chunk}")


def check_reset(name: str, reset: EmberTensor | None, shape: tuple[int, int]):
    """Raises if `reset` is not bool (batch, length)."""
    if reset is None:
        return
    if reset.shape != shape:
        raise ShapeError(f"{name}: expected reset of shape (batch, length) = {shape}, got {reset.shape}")
    if reset.dtype.kind != "bool":
        raise UnsupportedDtype(f"{name}: expected reset of dtype bool, got {reset.dtype}; compare it, as in segment_start != 0")


def kept(name: str, reset: EmberTensor | None, like: EmberTensor, dtype) -> list[EmberTensor]:
    """[what the state is multiplied with before each step, (B, L, 1): 0 at resets, else 1], or [] without resets, for x (B, L, ...).

    Raises as `check_reset`.
    """
    check_reset(name, reset, like.shape[:2])
    return [] if reset is None else [1.0 - expand_dims(reset, -1).astype(dtype)]


def check_state(name: str, initial, shapes: tuple[tuple[int, ...], ...]):
    """Raises if `initial` is not a tuple of tensors of these shapes, or None."""
    if initial is None:
        return
    found = [x.shape for x in initial] if isinstance(initial, (tuple, list)) else [getattr(initial, "shape", type(initial).__name__)]
    if found != list(shapes):
        raise ShapeError(f"{name}: expected initial to be the state that an earlier call returned, a tuple of shapes {shapes}, got {found}")
