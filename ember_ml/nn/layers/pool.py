"""Pooling over positions: fewer of them, or one for the whole sequence."""

from __future__ import annotations

from typing import Literal

from ember_ml.errors import ShapeError, UnsupportedOp
from ember_ml.nn.module import Module
from ember_ml.nn.packing import current
from ember_ml.ops import cumsum, expand_dims, full, logical_and, maximum, reshape, where, zeros
from ember_ml.ops.attention import hidden
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class PoolConfig:
    """d_input: channels. kind: what stands for the pooled positions. stride: how many become one, None for all of them."""

    d_input: Size
    kind: Literal["mean", "max", "last", "first"] = "mean"
    stride: Size | None = None


@layers.register("pool")
class Pool(Module):
    """y_i = mean (or max, the last, the first) of x over positions i stride ... (i + 1) stride - 1; or over all positions.

    Args:
        config: see PoolConfig.

    In packed rows (see `ember_ml.nn.packing`) a row is one document: positions of segment 0, its padding, are left out.
    With a stride (B, L, d_input) becomes (B, L / stride, d_input); without one (B, d_input), and a step gives what the
    positions so far pool to.

    State: without a stride count (B, 1), the positions seen, and value (B, d_input); with one none.

    Source: Lin et al. 2014, Network in Network, section 3.2 (pooling over everything).
    """

    Config = PoolConfig

    @property
    def cannot_pack(self) -> str | None:
        """Over a whole row it leaves padding out; a stride has no such form."""
        return None if self.config.stride is None else "its strides cross the borders of documents"

    def __init__(self, config: PoolConfig, key: EmberTensor | None = None):
        self.config = config

    def forward(self, x: EmberTensor, state=None):
        """(B, L, d_input) to (B, L / stride, d_input) or (B, d_input); L a multiple of the stride, and not 0."""
        B, L, D = x.shape
        stride = self.config.stride
        if L == 0 or (stride and L % stride):
            raise ShapeError(f"pool: expected a length that is a multiple of {stride or 1} and not 0, got {L}")
        if stride is not None:
            return self._pooled(reshape(x, (B, L // stride, stride, D)), 2), None
        packing = current()
        if packing is not None:
            return self._without_padding(x, packing.segments != 0), None
        if state is None:
            return self._pooled(x, 1), None
        y = self._join(state, self._pooled(x, 1), L)
        return y, {"count": state["count"] + L, "value": y}

    def step(self, x: EmberTensor, state):
        """One position, (B, d_input), to what all so far pool to. Raises UnsupportedOp with a stride."""
        y = self._join(state, x, 1)
        return y, {"count": state["count"] + 1, "value": y}

    def initial_state(self, batch: int, dtype="float32"):
        """No positions yet. Raises UnsupportedOp with a stride: there a step has no output but every `stride` positions."""
        if self.config.stride is not None:
            raise UnsupportedOp(f"pool: with stride={self.config.stride} only every {self.config.stride}th step would have an "
                                "output; call forward on the whole sequence, or pool it whole with stride=None")
        low = -1e30 if dtype in ("float32", "float64") else -6e4
        value = full((batch, self.config.d_input), low if self.config.kind == "max" else 0.0, dtype)
        return {"count": zeros((batch, 1), "int32"), "value": value}

    def _pooled(self, x: EmberTensor, axis: int) -> EmberTensor:
        kind = self.config.kind
        if kind in ("mean", "max"):
            return getattr(x, kind)(axis=axis)
        at = x.shape[axis] - 1 if kind == "last" else 0
        return x[:, at] if axis == 1 else x[:, :, at]

    def _without_padding(self, x: EmberTensor, real: EmberTensor) -> EmberTensor:
        """What the positions pool to where `real` (B, L) is true: at least one in each row."""
        kind, seen = self.config.kind, expand_dims(real, -1)
        if kind == "max":
            return where(seen, x, hidden(x)).max(axis=1)
        if kind != "mean":                                  # the one position that has no real one beyond it
            counted = cumsum(real.astype("int32"), axis=1)
            at = counted if kind == "first" else expand_dims(counted[:, -1], 1) - counted + 1
            seen = logical_and(seen, expand_dims(at == 1, -1))
        total = where(seen, x, 0.0).sum(axis=1)
        return total if kind != "mean" else total / seen.astype(x.dtype).sum(axis=1)

    def _join(self, state, y: EmberTensor, length: int) -> EmberTensor:
        """What the positions so far and `length` further ones, which pool to y, pool to together."""
        kind, value = self.config.kind, state["value"].astype(y.dtype)
        if kind == "last":
            return y
        if kind == "max":
            return maximum(value, y)
        count = state["count"].astype(y.dtype)
        if kind == "mean":
            return (value * count + y * float(length)) / (count + float(length))
        seen = (count > 0.0).astype(y.dtype)
        return value * seen + y * (1.0 - seen)
