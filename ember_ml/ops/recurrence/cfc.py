"""Closed-form continuous-time networks: a cell that interpolates between two heads, with a gate that knows the elapsed time.

    z = act(W_b [x_t, h_{t-1}] + b)  (the backbone: any number of such layers, or none)
    f1 = tanh(F_1 z), f2 = tanh(F_2 z), s = sigmoid(T (A z) + B z),  each with its bias, T the elapsed time
    default:  h_t = f1 (1 - s) + s f2
    no_gate:  h_t = f1 + s f2
    pure:     h_t = amplitude - amplitude exp(-T (|w_tau| + |F_1 z|)) F_1 z

Source: Hasani et al. 2022, Closed-form Continuous-time Neural Networks, eq. 10 and figure 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial

from ember_ml.errors import ShapeError
from ember_ml.ops.activation import gelu, relu, sigmoid, silu
from ember_ml.ops.creation import zeros
from ember_ml.ops.elementwise import abs, exp, tanh
from ember_ml.ops.recurrence.checks import check_tensors, kept
from ember_ml.ops.recurrence.layered_scan import Stage, layered_scan
from ember_ml.ops.recurrence.linear_scan import state_dtype
from ember_ml.ops.recurrence.mixed_memory import MEMORY, Memory
from ember_ml.ops.shape import split, swap_axes
from ember_ml.tensor import EmberTensor

MODES = ("default", "no_gate", "pure")

#: activations of the backbone; lecun_tanh is LeCun's scaled tanh
ACTIVATIONS: dict[str, Callable[[EmberTensor], EmberTensor]] = {
    "lecun_tanh": lambda x: tanh(x * 0.666) * 1.7159, "tanh": tanh, "relu": relu, "gelu": gelu, "silu": silu}

Layer = tuple[EmberTensor, EmberTensor | None]


def _head(gates, _memory, given, mode, timed):
    """The new state from the heads before their nonlinearities; given are the elapsed time, if it is not 1, and pure's two vectors."""
    elapsed, rest = (given[0], given[1:]) if timed else (None, given)
    if mode == "pure":
        (z,), (w_tau, amplitude) = gates, rest
        rate = abs(w_tau) + abs(z)
        return (amplitude - amplitude * exp(-(rate if elapsed is None else elapsed * rate)) * z,)
    first, second, rate, offset = gates
    first, second = tanh(first), tanh(second)
    s = sigmoid((rate if elapsed is None else rate * elapsed) + offset)
    return (first + s * (second - first) if mode == "default" else first + s * second,)


@lru_cache(maxsize=64)
def _stages(layers: int, mode: str, activation: str, timed: bool, memory: bool):
    """The chain of a cell's step."""
    act = ACTIVATIONS[activation]
    head = Stage(1 if mode == "pure" else 4, 0, partial(_head, mode=mode, timed=timed))
    return ((MEMORY,) if memory else ()) + (Stage(1, 0, lambda gates, _memory, _given: (act(gates[0]),)),) * layers + (head,)


def cfc(x: EmberTensor, backbone: Sequence[Layer], heads: Layer, h: EmberTensor | None = None,
        elapsed: EmberTensor | None = None, *, mode: str = "default", activation: str = "lecun_tanh",
        pure: tuple[EmberTensor, EmberTensor] | None = None, memory: Memory | None = None,
        reset: EmberTensor | None = None, chunk: int = 64) -> tuple[EmberTensor, ...]:
    """(h after every position, last h), and the memory's last c if there is one.

    Args:
        x: (B, L, J), inputs, L >= 1.
        backbone: (weight, bias) of its layers; the first takes [x, h], (U, J + N).
        heads: (weight, bias) of F_1, F_2, A and B one below the other, (4 N, U or J + N); in the pure mode F_1 alone.
        h: (B, N), the state before the first position; default zero.
        elapsed: (B, L, 1) or (B, L, N), time up to each position; default 1.
        mode: see the module. activation: of the backbone's layers, one of ACTIVATIONS.
        pure: w_tau and amplitude, (N,) each, of the pure mode.
        memory: an LSTM's step before each position's, see `mixed_memory`.
        reset: bool (B, L): where true, the state is zero before the position.
        chunk: steps that the gradient holds at once.

    Returns: (B, L, N) in x's dtype, and (B, N) each in float32 or wider.

    Raises ShapeError naming the argument, the shape that was expected and the one that came; ValueError for a mode or
    activation that is not known.
    """
    if mode not in MODES or activation not in ACTIVATIONS:
        raise ValueError(f"cfc: expected mode among {MODES} and activation among {tuple(ACTIVATIONS)}, got {mode!r} and {activation!r}")
    check_tensors("cfc", chunk=chunk, x=x, h=h, elapsed=elapsed)
    if x.ndim != 3:
        raise ShapeError(f"cfc: expected x of shape (batch, length >= 1, inputs), got {x.shape}")
    batch, length, inputs = x.shape
    n = heads[0].shape[0] // (1 if mode == "pure" else 4)
    stack_, width = [*backbone, heads], inputs + n
    for i, (weight, _) in enumerate(stack_):
        if weight.ndim != 2 or weight.shape[1] != width:
            what = "heads" if i == len(backbone) else f"backbone layer {i}"
            raise ShapeError(f"cfc: expected the weight of {what} of shape (out, {width}), got {weight.shape}")
        width = weight.shape[0]
    if h is not None and h.shape != (batch, n):
        raise ShapeError(f"cfc: expected h of shape {(batch, n)}, got {h.shape}")
    if elapsed is not None and elapsed.shape not in ((batch, length, 1), (batch, length, n)):
        raise ShapeError(f"cfc: expected elapsed of shape {(batch, length, 1)} or {(batch, length, n)}, got {elapsed.shape}")
    if mode == "pure" and pure is None:
        raise ShapeError(f"cfc: the pure mode needs w_tau and amplitude of shape ({n},)")
    if memory is not None:
        memory.check("cfc", batch, length, n)
    kind = state_dtype(x.dtype)
    filled = [(w.astype(kind), zeros((w.shape[0],), kind, like=x) if b is None else b.astype(kind)) for w, b in stack_]
    (first, bias), later = filled[0], filled[1:]
    of_x, of_h = split(first, (inputs, n), axis=-1)
    start = zeros((batch, n), kind, like=x) if h is None else h.astype(kind)
    adds, weights, state = [bias, *(b for _, b in later)], [of_h, *(w for w, _ in later)], [start]
    if memory is not None:
        adds, weights = [memory.gates.astype(kind), *adds], [memory.weight_hh.astype(kind), *weights]
        state.append(memory.c.astype(kind))
    given = ([] if elapsed is None else [elapsed.astype(kind)]) + ([t.astype(kind) for t in pure] if mode == "pure" else [])
    stages = _stages(len(later), mode, activation, elapsed is not None, memory is not None)
    y, last = layered_scan(stages, adds, [swap_axes(w) for w in weights], state, given,
                           fed=(int(memory is not None), x.astype(kind), of_x), keep=kept("cfc", reset, x, kind), chunk=chunk)
    return y.astype(x.dtype), *last
