"""Packing: several documents in one row, none of which sees another; or one document and its padding, for a model with a pooled head.

    segments = [[1, 1, 1, 2, 2, 0], ...]                  documents numbered 1, 2, ... along a row; 0 is padding
    logits, _ = model(tokens, segments=segments)

Document by document the result is that of the model run on each document alone: attention sees its own document, positions are counted
from its first one, states and short convolutions begin anew there. Mixers ask for what they need here, so that between the model and
them nobody has to hand it on. A mixer that cannot keep documents apart says why (`Module.cannot_pack`), and is refused by name.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property

from ember_ml.errors import DataError, ShapeError, UnsupportedOp
from ember_ml.nn.module import Module
from ember_ml.ops import arange, concat, expand_dims, logical_and, logical_not, logical_or, where
from ember_ml.ops.conv import same_segment
from ember_ml.ops.index import checks_values
from ember_ml.ops.recurrence.cumulative import cummax
from ember_ml.ops.shape import cut
from ember_ml.tensor import EmberTensor

_current: ContextVar[Packing | None] = ContextVar("ember_packing", default=None)


class Packing:
    """How rows are divided. segments: int (B, L), documents 1, 2, ... along each row, 0 where there is padding."""

    def __init__(self, segments: EmberTensor):
        self.segments = segments
        self._masks: dict = {}

    @cached_property
    def starts(self) -> EmberTensor:
        """bool (B, L): the first position of a document."""
        return logical_not(same_segment(self.segments, 1))

    @cached_property
    def positions(self) -> EmberTensor:
        """int32 (B, L): the number of each position in its document, from 0."""
        at = expand_dims(arange(self.segments.shape[1], dtype="int32", like=self.segments), 0)
        return at - cummax(where(self.starts, at, 0), axis=1)

    def mask(self, causal: bool, window: int | None) -> EmberTensor:
        """bool (B, 1, L, L): which keys (last axis) a query sees."""
        if (causal, window) not in self._masks:
            seen = expand_dims(self.segments, 2) == expand_dims(self.segments, 1)
            at = arange(self.segments.shape[1], like=self.segments)
            back = expand_dims(at, 1) - expand_dims(at, 0)
            if causal:
                seen = logical_and(seen, back >= 0 if window is None else logical_and(back >= 0, back < window))
            self._masks[causal, window] = expand_dims(seen, 1)
        return self._masks[causal, window]


@contextmanager
def packed(segments: EmberTensor, module: Module, pooled: bool = False):
    """Inside, forward passes of the module on rows of this shape keep documents apart; a model's forward does it with `segments=`.

    Args:
        segments: int (B, L). module: asked whether all its layers can.
        pooled: a row is one document and then padding, as for a model that gives one output a row. What looks at the past alone never meets
            padding then, and need not know where it begins.

    Raises ShapeError for segments that are no (batch, length) of integers, UnsupportedOp with the layer that cannot, and why; on NumPy and
    under `em.debug_checks` DataError for numbers that do not rise from document to document.
    """
    if not isinstance(segments, EmberTensor) or segments.ndim != 2 or not segments.dtype.is_integer:
        got = f"{segments.dtype}{list(segments.shape)}" if isinstance(segments, EmberTensor) else type(segments).__name__
        raise ShapeError(f"packed: expected segments of integers, (batch, length): documents 1, 2, ... along a row, 0 for padding; got {got}")
    _check_order(segments)
    check_packs(module, pooled)
    with again(segments):
        yield


def check_packs(module: Module, pooled: bool):
    """Raises UnsupportedOp, with the layer and why, if a module cannot keep the documents of a row apart. pooled: see `packed`."""
    for name, part in module.modules().items():
        if part.cannot_pack is not None and not (pooled and part.only_looks_back):
            raise UnsupportedOp(f"packed: {name or 'the module'} ({type(part).__name__}) cannot keep the documents of a row apart: "
                                f"{part.cannot_pack}; give it a row a document")


def _check_order(segments: EmberTensor):
    """A number that comes again after another one would be one document to attention and two to a recurrence."""
    if not checks_values(segments) or not segments.size:
        return
    highest, length = cummax(segments, axis=1), segments.shape[1]
    before = concat([cut(highest, 0, 1, axis=1) * 0, cut(highest, 0, length - 1, axis=1)], axis=1)
    starts = logical_and(logical_not(same_segment(segments, 1)), segments != 0)
    wrong = logical_or(logical_and(starts, segments <= before), segments < 0)
    if wrong.any().item():
        row = wrong.any(axis=1).tolist().index(True)
        raise DataError(f"packed: expected documents 1, 2, ... in this order along a row, each in one piece, and 0 for padding; got "
                        f"{segments[row].tolist()[:20]} in row {row}")


@contextmanager
def again(segments: EmberTensor | None):
    """Inside, rows are divided by these segments (None: not at all), as `packed` checked them: for a function that is run anew."""
    token = _current.set(None if segments is None else Packing(segments))
    try:
        yield
    finally:
        _current.reset(token)


def padded(lengths: EmberTensor, width: int) -> EmberTensor:
    """Segments of rows that hold one document and then padding, int32 (B, width): 1 up to the length of each row, (B,), then 0."""
    return (expand_dims(arange(width, like=lengths), 0) < expand_dims(lengths, 1)).astype("int32")


def current() -> Packing | None:
    """How the rows are divided, or None where each is one sequence."""
    return _current.get()


def resets() -> EmberTensor | None:
    """bool (B, L): where recurrences begin anew; None without packing."""
    packing = _current.get()
    return None if packing is None else packing.starts
