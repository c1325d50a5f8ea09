"""Self-attention beyond the template: its cache, rotary positions, both directions, misuse."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ConfigError
from ember_ml.nn.layers import RoPEConfig
from ember_ml.nn.layers.sequence_mixing.attention.rope import rotate
from ember_ml.registry import layers
from tests.nn._help import close, get, numbers, put
from tests.nn._mixers import build, inputs, start


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
