"""What a model is made of and what it costs, without running it: computed in outline, from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

from ember_ml.autodiff import tree
from ember_ml.autodiff.transform import transforming
from ember_ml.backend import get as engine
from ember_ml.backend import using
from ember_ml.errors import ShapeError
from ember_ml.nn.module import Module
from ember_ml.ops import full, zeros
from ember_ml.tensor import EmberTensor


class Row(NamedTuple):
    """One part of a model. parameters: numbers; bytes: of them. flops: a token of a forward pass over `length` positions.

    state_bytes: what decoding one sequence keeps after `length` positions.
    """

    name: str
    layer: str
    parameters: int
    bytes: int
    flops: float
    state_bytes: int


class Summary(NamedTuple):
    """rows: the parts in order. total: their sums; a tied tensor counts once. length: positions that flops and state are for."""

    rows: list[Row]
    total: Row
    length: int

    def __str__(self) -> str:
        head = ("part", "layer", "parameters", "bytes", "FLOPs/token", "state bytes")
        cells = [head, *((r.name, r.layer, f"{r.parameters:,}", f"{r.bytes:,}", f"{r.flops:,.0f}", f"{r.state_bytes:,}")
                         for r in (*self.rows, self.total))]
        widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))) for line in cells]
        return "\n".join([*lines, f"FLOPs and state at {self.length:,} positions, one sequence; a multiply-add is two"])


def longest(model) -> int | None:
    """The longest sequence that all layers of a model take, the smallest l_max; None if none of them has one."""
    return min((m.config.l_max for m in model.modules().values() if hasattr(getattr(m, "config", None), "l_max")), default=None)


def summarize(model, length: int | None = None) -> Summary:
    """The Summary of a Model. FLOPs are those of the portable algorithms, counted op by op; what runs natively may take fewer.

    Args:
        length: positions of the forward pass; layers with an l_max take no more. None for 256, or the shortest l_max.

    Raises ShapeError for a length that is none, or that the layers do not take.
    """
    if length is None:
        length = min(256, longest(model) or 256)
    if not isinstance(length, int) or length < 1:
        raise ShapeError(f"summary: expected a length of at least 1, received {length!r}")
    outline = engine("numpy").outline()
    rows, seen = [], set()
    with using(outline), transforming():
        shapes = {name: full(t.shape, 0.01 if t.dtype.is_inexact else 0, t.dtype) for name, t in model.tensors().items()}
        with model.using(shapes):
            if model.embedding is None:
                x = full((1, length, model.config.blocks[0].d_input), 0.01)
            else:
                inputs = zeros((1, length), "int32") if model.config.vocab_size else full((1, length, model.config.inputs), 0.01)
                before = outline.flops
                x = model.embedding(inputs)
                rows.append(_row("embedding", "embedding" if model.config.vocab_size else "dense", model.embedding, seen, outline.flops - before, length))
            for i, block in enumerate(model.blocks):
                before = outline.flops
                y, _ = block(x)
                flops = outline.flops - before
                state = _state(block, x)
                rows.append(_row(f"blocks.{i}", block.config.layer or block.config.norm or "-", block, seen, flops, length, state))
                x = y
            for name, part in (("norm", model.norm), ("pool", model.pool), ("head", model.head)):
                if part is not None:
                    before = outline.flops
                    x = part(x)[0] if name == "pool" else part(x)
                    label = {"norm": model.config.norm, "head": model.config.head}.get(name, model.config.pool)
                    rows.append(_row(name, label, part, seen, outline.flops - before, length))
            if model.config.head == "tied":
                before = outline.flops
                model.embedding.as_head(x)
                rows.append(_row("head", "tied", model.embedding, seen, outline.flops - before, length))
    total = Row("total", "", *(sum(getattr(r, f) for r in rows) for f in Row._fields[2:]))
    return Summary(rows, total, length)


def _row(name: str, layer: str, module: Module, seen: set[int], flops: float, length: int, state: int = 0) -> Row:
    tensors = [t for t in module.parameters().values() if id(t) not in seen]
    seen.update(id(t) for t in tensors)
    return Row(name, layer, sum(t.size for t in tensors), sum(t.nbytes for t in tensors), flops / length, state)


def _state(block: Module, x: EmberTensor) -> int:
    """Bytes of the state after reading x; 0 for layers that have none, such as bidirectional ones."""
    try:
        _, state = block(x, block.initial_state(1))
    except NotImplementedError:                              # UnsupportedOp, of a layer that cannot run step by step
        return 0
    return sum(t.nbytes for t in tree.tensors(state))
