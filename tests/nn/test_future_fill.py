"""Decoding a long convolution by epochs: exact past many epochs, few multiply-adds a position, also where a compiler traces it."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.nn.layers.sequence_mixing import future_fill
from ember_ml.registry import layers
from tests.nn._help import close, get, numbers, put

ROWS = {"hyena": dict(d_input=4, l_max=70, order=3, filter={"width": 8}), "long_conv": dict(d_input=3, l_max=70, copies=2)}


@pytest.mark.parametrize("name", ROWS)
def test_steps_are_the_whole_over_many_epochs(name, backend):
    layer = layers.instantiate(name, key=em.random.key(2), **ROWS[name])
    x = put(numbers(0, 2, 70, ROWS[name]["d_input"]))
    assert future_fill.epoch_length(70) * 4 < 70
    want = get(layer(x)[0])
    for prompt in (0, 15, 16, 40):
        state = layer.initial_state(2)
        if prompt:
            y, state = layer(x[:, :prompt], state)
            close(y, want[:, :prompt], 1e-4)
        for t in range(prompt, 70):
            y, state = layer.step(x[:, t], state)
            close(y, want[:, t], 1e-4, f"step {t}")


def test_taps_end_at_l_max(backend):
    """A stream may be longer than the filter: what is further back than l_max has no effect."""
    layer = layers.instantiate("long_conv", key=em.random.key(2), d_input=2, l_max=9, activation="identity")
    x = numbers(1, 1, 40, 2)
    k, D = layer.filters().numpy(), layer.D.numpy()
    z = np.stack([np.convolve(x[0, :, d], k[d])[:40] + D[d] * x[0, :, d] for d in range(2)], axis=-1)
    a, b = np.split(z @ layer.out_proj.weight.numpy().T + layer.out_proj.bias.numpy(), 2, axis=-1)
    state = layer.initial_state(1)
    for t in range(40):
        y, state = layer.step(put(x[:, t]), state)
        close(y[0], (a / (1 + np.exp(-b)))[t], 1e-4, f"step {t}")


def test_a_compiled_step_is_the_eager_one():
    pytest.importorskip("mlx")
    with em.using("mlx"):
        layer = layers.instantiate("long_conv", key=em.random.key(2), d_input=2, l_max=9)
        x = put(numbers(1, 1, 12, 2))
        step, state, other = em.compile(layer.step), layer.initial_state(1), layer.initial_state(1)
        for t in range(12):
            y, state = step(x[:, t], state)
            z, other = layer.step(x[:, t], other)
            close(y, z, 1e-5, f"step {t}")
        close(em.compile(layer.forward)(x[:, :5], layer.initial_state(1))[0], layer(x[:, :5])[0], 1e-5)


def test_multiply_adds_per_position(backend, monkeypatch):
    """Counted where they are made: products with taps, and convolutions that fill the future, one an epoch."""
    l_max, filled, products = 100, [], []
    fill, total = future_fill._fill, future_fill.total
    monkeypatch.setattr(future_fill, "_fill", lambda *a: filled.append(1) or fill(*a))
    monkeypatch.setattr(future_fill, "total", lambda x, **kw: products.append(x.shape[-1]) or total(x, **kw))
    layer = layers.instantiate("long_conv", key=em.random.key(2), d_input=1, l_max=l_max)
    state, epoch = layer.initial_state(1), future_fill.epoch_length(l_max)
    for t in range(2 * epoch):
        _, state = layer.step(put(numbers(t, 1, 1)), state)
    assert len(filled) == 2 and products == [epoch] * (2 * epoch)


@pytest.mark.parametrize("l_max, share", [(4096, 0.3), (32768, 0.12), (1 << 20, 0.025)])
def test_the_count_is_far_below_the_filter_s_length(l_max, share):
    assert future_fill.multiply_adds(l_max) < share * l_max
