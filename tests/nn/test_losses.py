"""Losses against float64 NumPy, and what they say about arguments that do not fit."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.nn import losses
from tests.nn._help import close, numbers, put

pytestmark = pytest.mark.usefixtures("backend")


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(logits, labels, ignore=None):
    seen = np.ones(labels.shape, bool) if ignore is None else labels != ignore
    rows = -np.take_along_axis(log_softmax(logits), np.where(seen, labels, 0)[..., None], -1)[..., 0]
    return rows[seen].sum() / max(seen.sum(), 1)


LABELS = np.array([[0, 6, 3], [2, 2, 5]])


@pytest.mark.parametrize("scale", [1.0, 300.0])               # exp(300) overflows float32
@pytest.mark.parametrize("ignore", [None, 2])
def test_cross_entropy(scale, ignore):
    logits = numbers(0, 2, 3, 7) * scale
    close(losses.cross_entropy(put(logits), put(LABELS, "int32"), ignore), cross_entropy(logits, LABELS, ignore), 1e-6)


def test_cross_entropy_gradient():
    logits = numbers(1, 2, 3, 7)
    grads = em.grad(lambda z: losses.cross_entropy(z, put(LABELS, "int32"), 2))(put(logits))
    seen = LABELS != 2
    want = (np.exp(log_softmax(logits)) - np.eye(7)[LABELS]) * seen[..., None] / seen.sum()
    close(grads, want, 1e-5)


def test_cross_entropy_of_ignored_rows_alone_is_zero():
    labels = np.full((2, 3), -1)
    run = em.value_and_grad(lambda z: losses.cross_entropy(z, put(labels, "int32"), -1))
    value, grads = run(put(numbers(2, 2, 3, 7)))
    assert value.item() == 0.0 and not grads.numpy().any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits = put(numbers(3, 64, 7), dtype)
    labels = np.arange(64) % 7
    loss = losses.cross_entropy(logits, put(labels, "int32"))
    assert loss.dtype is em.float32
    close(loss, cross_entropy(logits.numpy().astype(np.float64), labels), 1e-6)


def test_mse_and_mae():
    a, b = numbers(4, 3, 5), numbers(5, 3, 5)
    close(losses.mse(put(a), put(b)), ((a - b) ** 2).mean(), 1e-6)
    close(losses.mae(put(a), put(b)), np.abs(a - b).mean(), 1e-6)
    close(em.grad(lambda x: losses.mse(x, put(b)))(put(a)), 2 * (a - b) / a.size, 1e-6)
    close(em.grad(lambda x: losses.mae(x, put(b)))(put(a)), np.sign(a - b) / a.size, 1e-6)


def test_huber_and_smooth_l1():
    a, b = numbers(4, 3, 5), numbers(5, 3, 5)
    e = np.abs(a - b)
    rows = np.where(e <= 0.7, e * e / 2, 0.7 * (e - 0.35))
    close(losses.huber(put(a), put(b), 0.7), rows.mean(), 1e-6)
    close(losses.smooth_l1(put(a), put(b), 0.7), rows.mean() / 0.7, 1e-6)


def test_binary_cross_entropy():
    x, t = numbers(6, 3, 5) * 3, np.random.default_rng(7).uniform(0, 1, (3, 5))
    p = 1 / (1 + np.exp(-x))
    close(losses.binary_cross_entropy(put(x), put(t)), -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(), 1e-6)
    assert np.isfinite(losses.binary_cross_entropy(put(x * 1000), put(t)).item())


@pytest.mark.parametrize("ignore", [None, 2])
@pytest.mark.parametrize("weighted, smoothing", [(True, 0.0), (False, 0.2), (True, 0.2)])
def test_cross_entropy_with_weights_and_smoothing(ignore, weighted, smoothing):
    logits, weight = numbers(0, 2, 3, 7), np.random.default_rng(1).uniform(0.5, 2.0, 7) if weighted else np.ones(7)
    seen = np.ones(LABELS.shape, bool) if ignore is None else LABELS != ignore
    target = (np.eye(7)[LABELS] * (1 - smoothing) + smoothing / 7) * weight
    want = -(log_softmax(logits) * target).sum(-1)[seen].sum() / weight[LABELS][seen].sum()
    got = losses.cross_entropy(put(logits), put(LABELS, "int32"), ignore, put(weight) if weighted else None, smoothing)
    close(got, want, 1e-6)
    with pytest.raises(ShapeError, match=r"cross_entropy: expected weight of shape \(7,\), got \(6,\)"):
        losses.cross_entropy(put(logits), put(LABELS, "int32"), weight=em.ones((6,)))


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "smooth_l1", "binary_cross_entropy"])
def test_shapes_must_be_equal(name):
    name = {"smooth_l1": "huber"}.get(name, name)
    with pytest.raises(ShapeError, match=rf"{name}: expected .* of one shape, got \(3, 1\) and \(3,\)"):
        getattr(losses, name)(em.ones((3, 1)), em.ones((3,)))


def test_labels_must_fit_logits():
    with pytest.raises(ShapeError, match=r"cross_entropy: expected labels of shape \(2, 3\)"):
        losses.cross_entropy(em.ones((2, 3, 7)), em.zeros((2, 4), dtype="int32"))


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_linear_cross_entropy_is_the_whole_s(chunk):
    """Value and gradients of the head and its input are those of the logits held whole; ignored rows count for nothing."""
    x, w = numbers(8, 2, 3, 4), numbers(9, 7, 4)
    labels = put(LABELS, "int32")
    value, grads = em.value_and_grad(lambda x, w: losses.linear_cross_entropy(x, w, labels, ignore=2, chunk=chunk), (0, 1))(put(x), put(w))
    logits, seen = x @ w.T, LABELS != 2
    d = (np.exp(log_softmax(logits)) - np.eye(7)[LABELS]) * seen[..., None] / seen.sum()
    close(value, cross_entropy(logits, LABELS, 2), 1e-6)
    close(grads[0], d @ w, 1e-5)
    close(grads[1], np.einsum("blv,bld->vd", d, x), 1e-5)


@pytest.mark.parametrize("dtype, relative", [("float16", 2e-3), ("bfloat16", 1.5e-2)])
def test_linear_cross_entropy_sums_a_half_precision_head_s_gradient_in_float32(dtype, relative):
    """256 chunks whose parts are each below half a unit of the sum's last place: added in the head's dtype they would be lost."""
    x, w = put(numbers(10, 256, 4) * 0.1 + 1.0, dtype), put(np.zeros((3, 4)), dtype)
    g = em.grad(lambda w: losses.linear_cross_entropy(x, w, em.zeros((256,), "int32"), chunk=1))(w)
    wide = x.numpy().astype(np.float64).mean(0)
    assert str(g.dtype) == dtype
    close(g, np.stack([wide * (1 / 3 - 1), wide / 3, wide / 3]), relative)


def test_linear_cross_entropy_holds_one_chunk_of_logits(backend):
    """Peak of a gradient on MLX, whose allocator counts: far below the logits of all rows."""
    if backend != "mlx":
        pytest.skip("only MLX's allocator counts bytes of its own on a CPU")
    import mlx.core as mx

    rows, classes = 4096, 512
    x, w, labels = put(numbers(11, rows, 2)), put(numbers(12, classes, 2)), em.zeros((rows,), "int32")
    mx.eval(x.data, w.data, labels.data)

    def peak(loss):
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        mx.eval([g.data for g in em.grad(loss, (0, 1))(x, w)])
        return mx.get_peak_memory() - before

    whole = rows * classes * 4
    assert peak(lambda x, w: losses.linear_cross_entropy(x, w, labels, chunk=128)) < whole / 4
    assert peak(lambda x, w: losses.cross_entropy(em.ops.linear(x, w), labels)) > whole


def test_labels_that_do_not_fit_are_named():
    x, w = put(numbers(8, 3, 4)), put(numbers(9, 7, 4))
    with pytest.raises(ShapeError, match=r"expected x \(..., D\), weight \(V, D\) and labels"):
        losses.linear_cross_entropy(x, w, put(np.zeros(2), "int32"))
    with pytest.raises(ShapeError, match="at least 1 row"):
        losses.linear_cross_entropy(x, w, put(np.zeros(3), "int32"), chunk=0)
    for labels in ([0, 7, 1], [0, -100, 1]):
        for call in (lambda y: losses.linear_cross_entropy(x, w, y), lambda y: losses.cross_entropy(em.ops.linear(x, w), y)):
            with em.debug_checks(), pytest.raises(IndexError, match=rf"labels in \[0, 6\], got {labels[1]}; .*ignore="):
                call(put(labels, "int32"))
    with pytest.raises(TypeError, match="integer labels"):
        losses.cross_entropy(x, put(np.zeros(3), "float32"))
