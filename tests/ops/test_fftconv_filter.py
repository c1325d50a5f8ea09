"""Prepared filters: the same numbers as the filter itself, one transform a length, and never a stale one."""

import gc
import weakref

import numpy as np
import pytest

import ember_ml as em
from ember_ml.ops.fftconv_filter import KEPT
from ember_ml.registry import layers

RNG = np.random.default_rng(3)


def put(*shape):
    return em.tensor(RNG.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_prepared_filter_gives_the_filter_s_numbers(backend, bidirectional):
    u, k, D = put(2, 4, 21), put(4, 30), put(4)
    k_reverse = put(4, 5) if bidirectional else None
    prepared = em.ops.prepare_filter(k, k_reverse)
    expected = em.ops.fftconv(u, k, D, k_reverse=k_reverse).numpy()
    for _ in range(2):
        np.testing.assert_array_equal(em.ops.fftconv(u, prepared, D).numpy(), expected)
    half = em.ops.fftconv(u[:, :, :9].astype("float16"), prepared, D.astype("float16"))
    np.testing.assert_allclose(half.astype("float32").numpy(), em.ops.fftconv(u[:, :, :9], k, D, k_reverse=k_reverse).numpy(), atol=2e-2)


def test_the_spectrum_is_made_once_and_the_store_is_bounded(backend):
    made = []
    prepared = em.ops.prepare_filter(put(2, 8))

    def make(n):
        made.append(n)
        return (em.zeros((n,)).data,)
    first = prepared.spectrum("a", lambda: make(1))
    assert prepared.spectrum("a", lambda: make(1)) is first and made == [1]
    for n in range(2, 2 + KEPT):
        prepared.spectrum(n, lambda: make(n))
    assert len(made) == KEPT + 1
    prepared.spectrum("a", lambda: make(1))
    assert made[-1] == 1 and len(prepared._spectra) == KEPT


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_pass_a_prepared_filter_by(backend, compiled):
    u, k, D, q = put(2, 3, 17), put(3, 17), put(3), put(2, 3, 17)
    prepared = em.ops.prepare_filter(k)

    def gradients(k):
        return em.grad(lambda u, D, q: (em.ops.fftconv(u, k, D, q=q, gelu=True) ** 2).sum(), (0, 1, 2))
    got = (em.compile(gradients(prepared)) if compiled else gradients(prepared))(u, D, q)
    for a, b in zip(got, gradients(k)(u, D, q)):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(em.ops.fftconv(u, prepared).numpy(), em.ops.fftconv(u, k).numpy(), atol=1e-5)


def test_a_compiled_gradient_is_the_eager_one(backend):
    args = put(2, 4, 17), put(4, 17), put(4), put(4, 5)
    both = em.value_and_grad(lambda u, k, D, r: (em.ops.fftconv(u, k, D, v=u, k_reverse=r) ** 2).sum(), (0, 1, 2, 3))
    value, grads = both(*args)
    got_value, got = em.compile(both)(*args)
    np.testing.assert_allclose(got_value.numpy(), value.numpy(), rtol=1e-5)
    for a, b in zip(got, grads):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4 * np.abs(b.numpy()).max())


def test_misuse_is_told(backend):
    k = put(3, 8)
    with pytest.raises(em.ShapeError, match="k of shape \\(heads, length >= 1\\), got \\(8,\\)"):
        em.ops.prepare_filter(put(8))
    with pytest.raises(em.ShapeError, match="k_reverse of shape .* got \\(2, 8\\)"):
        em.ops.prepare_filter(k, put(2, 8))
    with pytest.raises(RuntimeError, match="outside of gradients and compiled functions"):
        em.grad(lambda k: em.ops.fftconv(put(1, 3, 8), em.ops.prepare_filter(k)).sum())(k)
    with pytest.raises(TypeError, match="no k_reverse beside a prepared filter"):
        em.ops.fftconv(put(1, 3, 8), em.ops.prepare_filter(k), k_reverse=k)
    with pytest.raises(em.ShapeError, match="expected k of shape .* \\(2, K\\)"):
        em.ops.fftconv(put(1, 2, 8), em.ops.prepare_filter(k))
    other = next(n for n in em.available() if n != backend)
    with pytest.raises(em.BackendMismatch, match=f"prepared on {other}, where u is, got one on {backend}"):
        em.ops.fftconv(put(1, 3, 8).to(other), em.ops.prepare_filter(k))


ROWS = {"hyena": dict(d_input=4, l_max=12, order=3, filter={"width": 8}), "long_conv": dict(d_input=4, l_max=12),
        "bidirectional": dict(d_input=4, l_max=12, bidirectional=True)}


@pytest.fixture(params=ROWS)
def layer(request, backend):
    name = "hyena" if request.param == "hyena" else "long_conv"
    return layers.instantiate(name, key=em.random.key(0), **ROWS[request.param])


def count_filters(layer):
    """A list that grows with each time the layer makes its filters."""
    made, make = [], layer.filters
    layer.filters = lambda *args: made.append(args) or make(*args)
    return made


def test_in_evaluation_a_layer_makes_its_filters_once(layer):
    x, made = put(2, 12, 4), count_filters(layer)
    expected = layer(x)[0].numpy()
    once = len(made)
    np.testing.assert_array_equal(layer(x)[0].numpy(), expected)
    layer(x[:, :5])
    assert len(made) == once > 0


def test_every_change_of_a_parameter_is_seen(layer):
    x = put(2, 12, 4)
    before = layer(x)[0].numpy()
    name = next(n for n in layer.parameters() if n in ("filter.out.weight", "kernel"))
    old = layer.parameters()[name]
    layer.update({name: old * 2.0})
    changed = layer(x)[0].numpy()
    assert np.abs(changed - before).max() > 1e-3
    with layer.using({name: old}):
        np.testing.assert_allclose(layer(x)[0].numpy(), before, atol=1e-6)
    np.testing.assert_allclose(layer(x)[0].numpy(), changed, atol=1e-6)
    layer.parameters()[name][:] = old
    np.testing.assert_allclose(layer(x)[0].numpy(), before, atol=1e-6)


def test_gradients_see_how_the_filters_are_made(layer):
    x = put(2, 12, 4)
    name = next(n for n in layer.parameters() if n in ("filter.out.weight", "kernel"))

    def loss(params):
        with layer.using(params):
            return (layer(x)[0] ** 2).sum()
    fresh = em.grad(loss)(layer.parameters())
    layer(x)                                                # now there is something that could be taken instead
    again = em.grad(loss)(layer.parameters())
    assert np.abs(again[name].numpy()).max() > 1e-3
    np.testing.assert_allclose(again[name].numpy(), fresh[name].numpy(), rtol=1e-5, atol=1e-6)


def test_a_compiled_layer_takes_its_parameters_from_the_arguments(backend):
    layer, x = layers.instantiate("long_conv", key=em.random.key(0), **ROWS["long_conv"]), put(2, 12, 4)

    def loss(params):
        with layer.using(params):
            return (layer(x)[0] ** 2).sum()
    layer(x)
    compiled = em.compile(loss)
    for scale in (1.0, 2.0):
        params = {n: p * scale for n, p in layer.parameters().items()}
        np.testing.assert_allclose(compiled(params).numpy(), loss(params).numpy(), rtol=1e-4)


def test_what_torch_changes_in_place_is_seen():
    pytest.importorskip("torch")
    with em.using("torch:cpu"):
        layer, x = layers.instantiate("long_conv", key=em.random.key(0), **ROWS["long_conv"]), put(2, 12, 4)
    before = layer(x)[0].numpy()
    layer.kernel.data.mul_(2.0)
    assert np.abs(layer(x)[0].numpy() - before).max() > 1e-3


def test_a_filter_dies_with_its_layer(backend):
    layer = layers.instantiate("hyena", key=em.random.key(0), **ROWS["hyena"])
    layer(put(1, 12, 4))
    kept = weakref.ref(layer._prepared)
    del layer
    gc.collect()
    assert kept() is None
