"""One template for every registered sequence mixer: parallel == chunked == scan of steps, on every engine.

A mixer that is registered without a row in CONFIGS fails `test_every_sequence_mixer_has_a_row`. A row is a list of the
config's fields, with d_input among them; every mixer is run on sequences of up to LENGTH positions.
"""

import itertools
from contextlib import nullcontext

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn.layers import RoPEConfig
from ember_ml.nn.layers.sequence_mixing.base import SequenceMixer
from ember_ml.nn.layers.sequence_mixing.attention.rope import rotate
from ember_ml.nn.packing import packed
from ember_ml.registry import layers
from ember_ml.weights import load, save_tree
from tests.conftest import ENGINES, require_engine
from tests.nn._help import cast, close, get, numbers, put, same_trees

LENGTH = 13
CONFIGS = {
    "hyena": [dict(d_input=6, l_max=LENGTH, filter={"width": 8}),
              dict(d_input=4, l_max=LENGTH + 3, order=3, short_taps=4, filter={"width": 8, "learn_positions": True}),
              dict(d_input=4, l_max=LENGTH, order=3, activation="gelu", order_scale=True, outer_mixing=True,
                   filter={"width": 8, "depth": 0, "learn_decay": True, "normalized": True}),
              dict(d_input=4, l_max=LENGTH, filter={"network": "linear", "window": False}),
              dict(d_input=4, d_inner=6, groups=2, l_max=LENGTH, head_dim=2, filter={"width": 8}),
              dict(d_input=4, d_inner=8, groups=3, l_max=LENGTH, filter_kind="rational", filter={"d_state": 3, "denominators": 4})],
    "fftconv": [dict(d_input=4, l_max=LENGTH)],              # the architecture document's name for long_conv
    "long_conv": [dict(d_input=6, l_max=LENGTH), dict(d_input=4, l_max=LENGTH + 2, copies=2, smoothing=3, activation="silu")],
    "gated_linear_attention": [dict(d_input=8, heads=2), dict(d_input=4, heads=1, expand_k=1.0, expand_v=2.0, gate="gelu",
                                                            decay_rank=3, decay_scale=2.0, decay_floor=-0.3)],
    "gru": [dict(d_input=4), dict(d_input=3, bias=False)],
    "lstm": [dict(d_input=4), dict(d_input=3, bias=False)],
    "parallel": [dict(d_input=4, mixers=[{"layer": "gru"}, {"layer": "self_attention"}, {"layer": "mlp"}])],
    "rnn": [dict(d_input=4), dict(d_input=3, bias=False, activation="relu")],
    "feature_extraction": [dict(d_input=3, causal=True), dict(d_input=4, causal=True, channels=[5], taps=2, activation="silu", recurrent="gru")],
    "gated_conv": [dict(d_input=4, filter={"kind": "modal", "modes": 3}),
                   dict(d_input=4, short_bias=False, bias=False, filter={"kind": "modal", "modes": 2, "complex": True, "filters": 2}),
                   dict(d_input=4, out_bias=False, filter={"kind": "taps", "taps": 5, "order": "corr", "filters": 2, "skip": False}),
                   dict(d_input=3, filter={"kind": "taps", "taps": 40}), dict(d_input=3, short_taps=1, filter={"kind": "taps", "taps": 1})],
    "mamba": [dict(d_input=6, d_state=3), dict(d_input=4, d_state=5, expand=3, taps=2, dt_rank=2, bias=True, conv_bias=False),
              dict(d_input=4, d_state=3, inner_norm=True)],
    "mlstm": [dict(d_input=4, heads=2, multiple_of=8), dict(d_input=4, heads=1, block=2, taps=2, expand=1.5, multiple_of=2, bias=True)],
    "mlstm_large": [dict(d_input=8, heads=2), dict(d_input=4, heads=1, expand_k=1.0, expand_v=2.0, gate_cap=2.0, bias=True)],
    "slstm": [dict(d_input=4, heads=2), dict(d_input=6, heads=3, taps=None), dict(d_input=4, heads=1, taps=2, cell="lstm")],
    "ltc": [dict(d_input=3, unfolds=2), dict(d_input=2, unfolds=3, mixed_memory=True, softplus=False, wiring={"kind": "auto_ncp", "units": 9,
                                                                                                   "d_output": 2})],
    "cfc": [dict(d_input=3, backbone_units=5), dict(d_input=3, d_hidden=4, d_output=3, mode="no_gate", backbone_layers=2, backbone_units=4,
                                                   activation="silu", mixed_memory=True),
            dict(d_input=3, mode="pure", backbone_layers=0)],
    "wired_cfc": [dict(d_input=2, wiring={"kind": "auto_ncp", "units": 9, "d_output": 2}),
                  dict(d_input=3, mode="pure", wired_gate=False, d_output=3, wiring={"kind": "random", "units": 4, "sparsity": 0.5})],
    "mamba2": [dict(d_input=4, d_state=3, head_dim=4), dict(d_input=4, d_inner=12, d_state=2, head_dim=3, groups=2, taps=2, bias=True,
                                                            conv_bias=False, dt_limit=(0.01, 0.05), norm="before", chunk=4),
               dict(d_input=4, d_state=2, head_dim=4, norm=None)],
    "rwkv4": [dict(d_input=4), dict(d_input=4, d_inner=6)],
    "rwkv5": [dict(d_input=4, head_dim=2), dict(d_input=4, d_inner=6, head_dim=3)],
    "rwkv6": [dict(d_input=4, head_dim=2, mix_rank=3, decay_rank=2), dict(d_input=4, d_inner=6, head_dim=3, mix_rank=2, decay_rank=3)],
    "rwkv7": [dict(d_input=4, head_dim=2, decay_rank=2, rate_rank=2, gate_rank=3), dict(d_input=6, head_dim=3)],
    "rwkv_channel_mixing": [dict(d_input=4), dict(d_input=4, d_inner=5, gated=False)],
    "gated_short_conv": [dict(d_input=4), dict(d_input=3, taps=1, bias=True)],
    "rg_lru": [dict(d_input=4), dict(d_input=4, d_inner=6, heads=2, taps=2)],
    "gated_delta_net": [dict(d_input=4, heads=2, key_dim=3, value_dim=2), dict(d_input=4, heads=4, key_heads=2, key_dim=2, value_dim=3, taps=2)],
    "linear_attention": [dict(d_input=4, heads=2), dict(d_input=4, heads=1, feature_map="hedgehog", expand_v=2.0, norm_q=True, norm_k=True),
                         dict(d_input=4, heads=1, feature_map="taylor", expand_k=0.5), dict(d_input=4, feature_map="elementwise_product", tied=True,
                                                                                       eps=3.0),
                         dict(d_input=6, heads=2, feature_map="dpfp"), dict(d_input=6, heads=2, feature_map="t2r", eps=0.1)],
    "retention": [dict(d_input=4, heads=2), dict(d_input=6, heads=1, expand_v=1, norm_eps=0.1)],
    "min_gru": [dict(d_input=4), dict(d_input=3, bias=False)],
    "short_conv": [dict(d_input=4), dict(d_input=3, taps=1, bias=False, activation="silu")],
    "self_attention": [dict(d_input=6, heads=2), dict(d_input=4, bias=False),
                       dict(d_input=4, heads=4, kv_heads=2, head_dim=6, rope={"base": 50.0, "dims": 4}, qk_norm=True, out_bias=False),
                       dict(d_input=4, heads=2, kv_heads=1, rope={"interleaved": True, "scale": 3.0, "base": 7.0}, window=4, taps=3)],
    "transformer": [dict(d_input=4, heads=2, d_inner=5)],
}
CASES = [pytest.param(name, row, id=f"{name}-{i}") for name, rows in CONFIGS.items() for i, row in enumerate(rows)]
PRECISIONS = [pytest.param(e, "float32", 1e-4, id=f"{e}-float32") for e in ENGINES] + [
    pytest.param(e, "float64", 1e-9, id=f"{e}-float64") for e in ("numpy", "torch")]
every_mixer = pytest.mark.parametrize("name, fields", CASES)
every_precision = pytest.mark.parametrize("engine, dtype, tolerance", PRECISIONS)


def mixers() -> list[str]:
    return [name for name in layers.names() if getattr(layers.get(name), "mixes_sequence", False)]


def build(name, fields, engine, dtype="float32"):
    """The mixer with parameters large enough that no term hides, its tensors in `dtype`."""
    require_engine(engine)
    with em.using(engine):
        mixer = layers.instantiate(name, key=em.random.key(1), **fields)
    for where in mixer.places().values():
        for owner, attr in where:
            setattr(owner, attr, cast(getattr(owner, attr), dtype))
    return mixer


def inputs(fields, engine, dtype, batch=2, length=LENGTH, seed=0):
    return put(numbers(seed, batch, length, fields["d_input"]), dtype, engine)


def start(mixer, batch, dtype):
    with em.using(next(iter(mixer.tensors().values())).device):
        return mixer.initial_state(batch, dtype)


def scan(mixer, x, state):
    """The outputs of `step` at every position of x, and the state after."""
    out = []
    for t in range(x.shape[1]):
        y, state = mixer.step(x[:, t], state)
        assert y.shape == (x.shape[0], x.shape[2]) and y.dtype is x.dtype
        out.append(get(y))
    return np.stack(out, 1), state


def test_every_sequence_mixer_has_a_row():
    assert sorted(CONFIGS) == mixers()


@every_precision
@every_mixer
@pytest.mark.parametrize("batch, length", [(2, LENGTH), (1, 7), (3, 1), (1, 2)])
def test_parallel_is_a_scan_of_steps(name, fields, engine, dtype, tolerance, batch, length):
    mixer = build(name, fields, engine, dtype)
    x = inputs(fields, engine, dtype, batch, length)
    y, state = mixer(x)
    assert state is None and y.shape == x.shape and y.dtype is x.dtype
    close(scan(mixer, x, start(mixer, batch, dtype))[0], y, tolerance)


@every_precision
@every_mixer
def test_chunks_of_any_length_are_the_whole(name, fields, engine, dtype, tolerance):
    mixer = build(name, fields, engine, dtype)
    x = inputs(fields, engine, dtype)
    whole, _ = mixer(x)
    state, parts, at = start(mixer, 2, dtype), [], 0
    for length in (1, 3, 2, 7):
        y, state = mixer(x[:, at:at + length], state)
        parts.append(get(y))
        at += length
    close(np.concatenate(parts, 1), whole, tolerance)
    same_trees(state, scan(mixer, x, start(mixer, 2, dtype))[1], tolerance, "state")


@every_precision
@every_mixer
def test_prefill_then_step(name, fields, engine, dtype, tolerance):
    mixer = build(name, fields, engine, dtype)
    x = inputs(fields, engine, dtype)
    whole = get(mixer(x)[0])
    for length in (1, 5, LENGTH - 1):
        y, state = mixer(x[:, :length], start(mixer, 2, dtype))
        close(y, whole[:, :length], tolerance, "prefill")
        close(scan(mixer, x[:, length:], state)[0], whole[:, length:], tolerance, "steps after it")


@every_mixer
def test_the_past_alone_counts(name, fields, backend):
    mixer = build(name, fields, backend)
    x = numbers(0, 2, LENGTH, fields["d_input"])
    changed = x.copy()
    changed[:, 6:] += 10.0
    first, second = get(mixer(put(x))[0]), get(mixer(put(changed))[0])
    close(first[:, :6], second[:, :6], 1e-5)
    assert np.abs(first[:, 6:] - second[:, 6:]).max() > 1e-3


@every_mixer
def test_sequences_of_a_batch_are_independent(name, fields, backend):
    mixer = build(name, fields, backend)
    x = numbers(0, 3, LENGTH, fields["d_input"])
    whole = get(mixer(put(x))[0])
    for b in range(3):
        close(mixer(put(x[b:b + 1]))[0], whole[b:b + 1], 1e-5)


@every_mixer
def test_a_state_can_be_branched(name, fields, backend):
    mixer = build(name, fields, backend)
    x = inputs(fields, backend, "float32")
    _, state = mixer(x[:, :4], start(mixer, 2, "float32"))
    before = [t.tolist() for t in em.tree.tensors(state)]
    first, _ = mixer.step(x[:, 4], state)
    mixer.step(x[:, 7], state)
    again, _ = mixer.step(x[:, 4], state)
    assert first.tolist() == again.tolist()
    assert [t.tolist() for t in em.tree.tensors(state)] == before


@every_mixer
@pytest.mark.parametrize("first, second", list(itertools.permutations(ENGINES, 2)))
def test_a_state_continues_on_another_engine(name, fields, first, second, tmp_path):
    """Through a safetensors file, as a session on one machine is continued on another."""
    a, b = build(name, fields, first), build(name, fields, second)
    x = numbers(0, 2, LENGTH, fields["d_input"])
    whole = get(b(put(x, engine=second))[0])
    _, state = a(put(x[:, :5], engine=first), start(a, 2, "float32"))
    save_tree(tmp_path / "state.safetensors", state)
    tensors, _, _ = load(tmp_path / "state.safetensors", device=second)
    empty = start(b, 2, "float32")                          # for its form alone: a cache may have grown
    state = em.tree.unflatten(em.tree.flatten(empty)[1], [tensors[name] for name in em.tree.named(empty)])
    y, state = b(put(x[:, 5:9], engine=second), state)
    close(y, whole[:, 5:9], 1e-4, "chunk")
    close(scan(b, put(x[:, 9:], engine=second), state)[0], whole[:, 9:], 1e-4, "steps")


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


#: two packed rows and what is in them: (first position in row 0, in row 1, length) of each pair of documents; the last three are padding
SEGMENTS = [[1] * 5 + [2] + [3] * 4 + [0] * 3, [1] + [2] * 5 + [3] * 4 + [0] * 3]
DOCUMENTS = [(0, 1, 5), (5, 0, 1), (6, 6, 4)]


def unpackable(name, fields) -> bool:
    """Whether a layer has to refuse packed rows: long filters and modes are applied to the whole row by one transform."""
    inner = fields.get("filter", {})
    return name in ("hyena", "fftconv", "long_conv") or (name == "gated_conv" and (inner["kind"] == "modal" or inner["taps"] > 32))


@pytest.mark.parametrize("engine, dtype, tolerance", [p for p in PRECISIONS if p.id in ("numpy-float64", "torch-float64", "mlx-float32")])
@every_mixer
def test_packed_documents_are_those_alone(name, fields, engine, dtype, tolerance):
    """Outputs, and the gradients of sum(w y) with respect to x and all parameters: packed, and summed over the documents by themselves."""
    mixer = build(name, fields, engine, dtype)
    segments = put(SEGMENTS, "int32", engine)
    if unpackable(name, fields):
        with pytest.raises(em.UnsupportedOp, match="cannot keep the documents of a row apart: its filter.* by one transform"):
            with packed(segments, mixer):
                pytest.fail("the body ran")
        return
    x, w = get(inputs(fields, engine, dtype)), get(inputs(fields, engine, dtype, seed=1))
    w[:, 10:] = 0.0

    def run(x, w, segments=None):
        def loss(params, x):
            with mixer.using(params), nullcontext() if segments is None else packed(segments, mixer):
                y, _ = mixer(x)
            return (y * put(w, dtype, engine)).sum(), y
        (_, y), (dp, dx) = em.value_and_grad(loss, (0, 1), has_aux=True)(mixer.parameters(), put(x, dtype, engine))
        return get(y), {k: get(g) for k, g in dp.items()}, get(dx)

    y, dp, dx = run(x, w, segments)
    total = {k: np.zeros_like(g) for k, g in dp.items()}
    for first, second, length in DOCUMENTS:
        def own(a):
            return np.stack([a[0, first:first + length], a[1, second:second + length]])
        y_alone, dp_alone, dx_alone = run(own(x), own(w))
        close(own(y), y_alone, tolerance, f"documents of {length}")
        close(own(dx), dx_alone, tolerance, f"slopes of documents of {length}")
        total = {k: total[k] + g for k, g in dp_alone.items()}
    assert np.abs(dx[:, 10:]).max() == 0.0                   # what is not asked for has no influence
    for k, g in total.items():
        close(dp[k], g, tolerance, k)


def test_a_layer_that_does_not_say_how_it_packs_is_refused():
    class Own(SequenceMixer):
        def forward(self, x, state=None):
            return x, state

    with pytest.raises(em.UnsupportedOp, match=r"the module \(Own\) cannot keep .* apart: it does not say how"):
        with packed(put(SEGMENTS, "int32"), Own()):
            pytest.fail("the body ran")
    for bad in (put(SEGMENTS), put(SEGMENTS[0], "int32"), SEGMENTS):
        with pytest.raises(ShapeError, match=r"expected segments of integers, \(batch, length\)"):
            with packed(bad, em.nn.layers.Dense(em.nn.layers.DenseConfig(2))):
                pytest.fail("the body ran")


@pytest.mark.parametrize("fields", [dict(d_input=4, heads=2, causal=False), dict(d_input=3, causal=False, taps=3)])
def test_documents_of_bidirectional_layers_are_apart(fields, backend):
    name = "self_attention" if "heads" in fields else "feature_extraction"
    mixer = build(name, fields, backend)
    x = get(inputs(fields, backend, "float32"))
    with packed(put(SEGMENTS, "int32"), mixer):
        y = get(mixer(put(x))[0])
    for first, second, length in DOCUMENTS:
        close(y[:1, first:first + length], mixer(put(x[:1, first:first + length]))[0], 1e-5)
        close(y[1:, second:second + length], mixer(put(x[1:, second:second + length]))[0], 1e-5)


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


@pytest.mark.parametrize("fields", CONFIGS["hyena"])
def test_hyena_says_how_long_it_can_be(fields, backend):
    mixer = build("hyena", fields, backend)
    l_max = mixer.config.l_max
    with pytest.raises(ShapeError, match=f"at most l_max = {l_max}, got {l_max + 1}; build the layer"):
        mixer(inputs(fields, backend, "float32", length=l_max + 1))


@pytest.mark.parametrize("window, kept", [(None, 13), (4, 3), (1, 0)])
def test_the_cache_grows_or_moves_on_with_the_window(window, kept, backend):
    mixer = build("self_attention", dict(d_input=4, heads=2, window=window, rope={}), backend)
    _, state = mixer(inputs(dict(d_input=4), backend, "float32"), start(mixer, 2, "float32"))
    assert state["k"].shape == state["v"].shape == (2, 2, kept, 2) and state["position"].tolist() == [13, 13]


def test_rotary_positions_turn_pairs_of_channels(backend):
    """The definition: channels as complex numbers times e^(i position base^(-2 j / dims))."""
    x = numbers(4, 1, 2, 5, 8)
    for dims, interleaved, scale in ((None, False, 1.0), (4, True, 2.5)):
        c, width = RoPEConfig(base=100.0, dims=dims, interleaved=interleaved, scale=scale), dims or 8
        at = np.array([[3, 4, 5, 6, 7]])
        got = get(rotate(put(x), put(at, "int32"), c))
        a, b = (x[..., 0:width:2], x[..., 1:width:2]) if interleaved else (x[..., :width // 2], x[..., width // 2:width])
        z = (a + 1j * b) * np.exp(1j * at[0, :, None] / scale * 100.0 ** (-2 * np.arange(width // 2) / width))
        want = np.stack([z.real, z.imag], -1).reshape(a.shape[:-1] + (width,)) if interleaved else np.concatenate([z.real, z.imag], -1)
        close(got, np.concatenate([want, x[..., width:]], -1), 1e-5)


def test_bidirectional_attention_reads_the_future_and_has_no_step(backend):
    fields = dict(d_input=4, heads=2, causal=False)
    mixer = build("self_attention", fields, backend)
    x = inputs(fields, backend, "float32")
    later = em.tensor(np.concatenate([x.numpy()[:, :-1], x.numpy()[:, -1:] + 3.0], 1))
    assert np.abs(get(mixer(x)[0]) - get(mixer(later)[0]))[:, 0].max() > 1e-3
    with pytest.raises(em.UnsupportedOp, match="reads the future"):
        mixer.initial_state(1)


@pytest.mark.parametrize("fields, message", [
    (dict(heads=3), "heads to divide d_input = 4, received 3"), (dict(heads=4, kv_heads=3), "kv_heads to divide heads = 4, received 3"),
    (dict(window=3, causal=False), "a window needs causal=True"), (dict(rope={"dims": 6}), "at most head_dim = 4, received 6"),
    (dict(rope={"dims": 3}), "multiple of 2"), (dict(rope={"bass": 3}), "did you mean base")])
def test_attention_says_what_does_not_fit(fields, message):
    with pytest.raises(ConfigError, match=message):
        layers.instantiate("self_attention", 4, **fields)


def test_a_row_that_sees_nothing_stays_finite(backend):
    x = put(numbers(0, 1, 2, 3, 4))
    y = em.ops.scaled_dot_product_attention(x, x, x, mask=put(np.zeros((3, 3)), "bool"))
    close(y, get(x).mean(2, keepdims=True) + np.zeros((3, 1)), 1e-5)


def test_a_bidirectional_long_convolution_reads_the_future_and_has_no_step(backend):
    layer = layers.instantiate("long_conv", d_input=2, l_max=6, squash=0.0, activation="identity", bidirectional=True,
                               key=em.random.key(0))
    x = numbers(3, 1, 5, 2).astype(np.float32)
    k, future, D = (t.numpy().astype(np.float64) for t in (layer.kernel, layer.future, layer.D))
    z = np.array([[sum(k[d, t - j] * x[0, j, d] for j in range(t + 1)) + D[d] * x[0, t, d]
                   + sum(future[d, j - t - 1] * x[0, j, d] for j in range(t + 1, 5)) for d in range(2)] for t in range(5)])
    a, b = np.split(z @ layer.out_proj.weight.numpy().T + layer.out_proj.bias.numpy(), 2, axis=-1)
    np.testing.assert_allclose(layer(em.tensor(x))[0].numpy()[0], a / (1 + np.exp(-b)), rtol=1e-4, atol=1e-5)
    with pytest.raises(em.UnsupportedOp, match="reads the future"):
        layer.initial_state(1)
