"""Metal kernels against MLX's own ops, in what can be counted without a Mac: launches, and bytes to and from device memory.

The kernels run on tests/simt, which sees every load and store; "bytes" counts each byte of an array once, "loads and stores" as often
as a thread asks for it, which is what a GPU without caches would move. The unfused way is the op's composite on MLX: each op that is no
view is one launch that reads its inputs once and writes its outputs once, which is less than MLX really moves (its Fourier
transforms take several passes, and read padded copies).
"""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import patch

import mlx.core as mx
import numpy as np

from benchmarks.timing import save
from ember_ml import backend as engines
from ember_ml.ops import REGISTRY
from ember_ml.ops.kernel import body
from ember_mlx import kernels
from tests.simt import counted
from tests.simt.metal import metal_kernel

#: they describe the same memory anew
VIEWS = frozenset("reshape permute_dims broadcast_to expand_dims squeeze cut split_all split get_at swap_axes".split())

RNG = np.random.default_rng(0)


def real(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def cases():
    """(op, what, arguments, static arguments), for the kernels that MLX has."""
    tokens, slots, width, hidden = 64, 2, 512, 256
    rows = tokens * slots
    order = RNG.permutation(rows).astype(np.int32).reshape(tokens, slots)
    routed = [real(rows, width), order, RNG.random((tokens, slots), np.float32)]
    yield "moe_combine_rows", f"{tokens} tokens, {slots} slots, {width} columns", routed, {}
    yield "moe_combine_grad", f"{tokens} tokens, {slots} slots, {width} columns", [real(tokens, width), *routed], {}
    ids = np.argsort(RNG.random((tokens, 8)), axis=1)[:, :slots].astype(np.int32)
    logits = real(tokens, 8)
    yield "softmax_choice_rows", f"{tokens} tokens, {slots} of 8 experts", [logits, real(8)], {"k": slots}
    yield ("softmax_weights_rows", f"{tokens} tokens, {slots} of 8 experts", [logits, ids],
           {"normalize": True, "eps": 1e-20, "scale": 1.0})
    yield "moe_plan_rows", f"{tokens} tokens, {slots} of 8 experts", [ids], {"experts": 8, "block": 8, "rows": 24 * 8, "last": 7}
    yield "moe_gather_rows", f"{tokens} tokens, {slots} slots, {width} columns", [real(tokens, width), order.reshape(-1), order], {}
    yield "expert_activation", f"{rows} rows of 2 x {hidden}", [real(rows, 2 * hidden)], {}
    yield "expert_activation_grad", f"{rows} rows of 2 x {hidden}", [real(rows, hidden), real(rows, 2 * hidden), real(rows, 1)], {}
    batch, length, channels = 1, 512, 64
    sequence, state = (batch, length, channels), (batch, channels)
    yield "linear_scan_rows", f"{length} steps of {channels}", [real(*sequence), real(*sequence), real(*state)], {}
    yield ("linear_scan_grad", f"{length} steps of {channels}",
           [real(*sequence), real(*state), real(*sequence), real(*sequence), real(*state)], {})
    states = 16
    yield ("selective_scan_rows", f"{length} steps of {channels}, {states} states",
           [real(*sequence), abs(real(*sequence)), -abs(real(channels, states)), real(batch, length, states), real(batch, length, states),
            real(channels), real(batch, channels, states)], {})
    yield ("selective_scan_grad", f"{length} steps of {channels}, {states} states",
           [real(*sequence), real(batch, channels, states), real(*sequence), abs(real(*sequence)), -abs(real(channels, states)),
            real(batch, length, states), real(batch, length, states), real(channels), real(batch, channels, states)], {})
    rows = [real(2, 64, 512), real(64, 4), real(64)]
    yield "depthwise_rows", "2 x 64 rows of 512, 4 taps, silu", rows, {"silu": True}
    yield "depthwise_grad", "2 x 64 rows of 512, 4 taps, silu", [real(2, 64, 512), *rows], {"silu": True}
    u, k, D, v, q, g = real(2, 64, 512), real(64, 14), real(64), real(2, 64, 512), real(2, 64, 512), real(2, 64, 512)
    yield "fftconv_rows", "2 x 64 rows of 512, 14 taps, skip and gates", [u, k, D, v, q], {}
    yield "fftconv_grad", "2 x 64 rows of 512, 14 taps, skip and gates", [g, u, k, D, v, q], {}
    for length in (1024, 4096):
        u, k, D, v, q, g = real(8, 2, length), real(2, length), real(2), real(8, 2, length), real(8, 2, length), real(8, 2, length)
        what = f"8 x 2 rows of {length}"
        yield "fftconv_rows", what, [u, k], {}
        yield "fftconv_rows", f"{what}, skip and gates", [u, k, D, v, q], {}
        yield "fftconv_grad", f"{what}, skip and gates", [g, u, k, D, v, q], {}


def nbytes(x) -> int:
    if isinstance(x, tuple | list):
        return sum(map(nbytes, x))
    return x.nbytes if isinstance(x, mx.array) else 0


@contextmanager
def counting_ops(backend):
    """A list that gets the bytes of each native op inside that is no view."""
    moved = []

    def counting(name, native):
        def call(*args, **kw):
            out = native(*args, **kw)
            if name not in VIEWS:
                moved.append(nbytes(args) + nbytes(out))
            return out
        return call

    before = {op: op.resolved.get(backend) for op in REGISTRY.values()}
    for op in REGISTRY.values():
        op.resolved[backend] = counting(op.name, backend.table[op.name]) if op.name in backend.table else None
    try:
        yield moved
    finally:
        for op, native in before.items():
            op.resolved.pop(backend, None)
            if native is not None:
                op.resolved[backend] = native


def main():
    backend, rows = engines.get("mlx"), []
    kernels_of = {**kernels.KERNELS}
    with patch.object(mx.fast, "metal_kernel", metal_kernel), patch.object(kernels, "available", lambda: True):
        for name, what, arguments, static in cases():
            op = REGISTRY[name]
            if op.kernel.name not in kernels_of:
                continue
            native = [mx.array(a) for a in arguments]
            with counted() as launches:
                got = kernels_of[op.kernel.name](*native, **static)
            with counting_ops(backend) as moved:
                expected = body(op, backend, native, static)
            pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (got, expected)))
            assert all(np.allclose(np.array(a), np.array(b), atol=1e-3) for a, b in pairs if a is not None), name
            fused = sum(launch.read + launch.written for launch in launches)
            rows.append({"op": name, "input": what, "launches": len(launches), "MLX launches": len(moved), "bytes": fused,
                         "MLX bytes": sum(moved), "ratio": round(sum(moved) / fused, 2),
                         "loads and stores": sum(launch.loaded + launch.stored for launch in launches)})
    save("kernel_traffic", rows)


if __name__ == "__main__":
    main()
