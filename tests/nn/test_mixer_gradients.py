"""Gradients of every sequence mixer: native against the tape, central differences and chunks; and what the backward pass keeps."""

import numpy as np
import pytest

import ember_ml as em
from tests.conftest import require_engine
from tests.nn._help import close, get, numbers, put, same_trees
from tests.nn._mixers import build, every_mixer, inputs, start


def gradients(mixer, fields, engine, dtype, mode, chunks=None):
    """Of sum(w y) with respect to x and all parameters, the sequence whole or in chunks."""
    x = inputs(fields, engine, dtype)
    w = inputs(fields, engine, dtype, seed=1)

    def loss(params, x):
        with mixer.using(params):
            if chunks is None:
                return (mixer(x)[0] * w).sum()
            state, total, at = start(mixer, 2, dtype), None, 0
            for length in chunks:
                y, state = mixer(x[:, at:at + length], state)
                part = (y * w[:, at:at + length]).sum()
                total = part if total is None else total + part
                at += length
            return total

    return em.value_and_grad(loss, (0, 1), mode=mode)(mixer.parameters(), x)


@every_mixer
def test_gradients_agree_with_the_tape_in_float64(name, fields):
    mixer = build(name, fields, "numpy", "float64")
    value, tape = gradients(mixer, fields, "numpy", "float64", "tape")
    mixer.to("torch")
    for mode in ("auto", "tape"):
        got_value, got = gradients(mixer, fields, "torch", "float64", mode)
        close(got_value, value, 1e-9)
        same_trees(got, tape, 1e-9, mode)
    assert all(np.abs(get(g)).max() > 0 for g in em.tree.tensors(tape))


@every_mixer
def test_gradients_agree_with_central_differences(name, fields):
    """Along one random direction through all parameters and x at once; two steps, so that the h^2 term cancels."""
    mixer = build(name, fields, "numpy", "float64")
    _, grads = gradients(mixer, fields, "numpy", "float64", "tape")
    w = get(inputs(fields, "numpy", "float64", seed=1))
    x = get(inputs(fields, "numpy", "float64"))
    params = {k: get(p) for k, p in mixer.parameters().items()}
    along = {k: numbers(i, *p.shape) for i, (k, p) in enumerate(params.items())}
    along_x, h = numbers(99, *x.shape), 1e-6

    def loss(s):
        with mixer.using({k: put(p + s * along[k], "float64", "numpy") for k, p in params.items()}):
            return (get(mixer(put(x + s * along_x, "float64", "numpy"))[0]) * w).sum()

    slope = sum((get(grads[0][k]) * along[k]).sum() for k in params) + (get(grads[1]) * along_x).sum()
    near, far = ((loss(s) - loss(-s)) / (2 * s) for s in (h, 2 * h))
    assert (4 * near - far) / 3 == pytest.approx(slope, rel=1e-6)


@every_mixer
def test_gradients_of_chunks_are_those_of_the_whole(name, fields, backend):
    mixer = build(name, fields, backend)
    _, whole = gradients(mixer, fields, backend, "float32", "auto")
    _, parts = gradients(mixer, fields, backend, "float32", "auto", chunks=(1, 5, 7))
    same_trees(parts, whole, 1e-4)


#: mixers with a chunked or windowed form, one row each; those that walk step by step are held to their memory in tests/ops
LONG = {"mamba": dict(d_state=4), "mamba2": dict(d_state=8, head_dim=16), "rwkv4": {}, "rwkv5": dict(head_dim=16),
        "rwkv6": dict(head_dim=16, mix_rank=4, decay_rank=4), "rwkv7": dict(head_dim=16, decay_rank=4, rate_rank=4, gate_rank=4),
        "linear_attention": dict(heads=1), "gated_linear_attention": dict(heads=1, expand_k=1.0),
        "gated_delta_net": dict(heads=1, key_dim=16, value_dim=16), "rg_lru": {}, "min_gru": {}, "gated_short_conv": {},
        "rwkv_channel_mixing": {}, "self_attention": dict(window=64, rope={})}


@pytest.mark.parametrize("name", LONG)
def test_backward_at_4096_positions_takes_memory_in_proportion_to_the_length(name):
    """Four times the positions, at most five times the bytes, and no more than 200 numbers for each number of the input, where one matrix
    of all pairs of positions would be 256. On MLX, whose allocator counts."""
    require_engine("mlx")
    import mlx.core as mx

    def peak(length: int, width: int = 16) -> int:
        mixer = build(name, dict(d_input=width, **LONG[name]), "mlx")
        x = put(numbers(0, 1, length, width), engine="mlx")

        def loss(params, x):
            with mixer.using(params):
                return (mixer(x)[0] ** 2).mean()

        mx.eval([t.data for t in mixer.tensors().values()], x.data)
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        grads = em.tree.tensors(em.grad(loss, (0, 1))(mixer.parameters(), x))
        mx.eval([g.data for g in grads])
        assert all(np.isfinite(get(g)).all() for g in grads)
        return mx.get_peak_memory() - before

    short, long = max(peak(1024) for _ in range(3)), peak(4096)      # a peak that a fast thread flattens is too low, none is too high
    assert long <= 5 * short and long <= 200 * 4 * 4096 * 16
