"""Functions of the standard that are made of several ops, against NumPy; the ops themselves are rows of the parity tables."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import AxisError, ShapeError, UnsupportedOp

RNG = np.random.default_rng(3)
A, B = RNG.standard_normal((3, 4)).astype(np.float32), RNG.standard_normal((2, 3, 4)).astype(np.float32)
S, C = RNG.standard_normal((2, 3, 3)).astype(np.float32), (RNG.standard_normal((3, 3)) + 1j * RNG.standard_normal((3, 3))).astype(np.complex64)
I8 = np.array([[3, -1, 7], [0, 5, -2]], np.int8)
fft, la, xp = np.fft, np.linalg, em

CALLS = [
    (lambda f, x: f.roll(x, 2), [A]),
    (lambda f, x: f.roll(x, (1, -3), axis=(0, 1)), [A]),
    (lambda f, x: f.roll(x, -1, axis=-1), [A]),
    (lambda f, x: f.tile(x, (2, 1, 3)), [A]),
    (lambda f, x: f.tile(x, (2,)), [A]),
    (lambda f, x: f.tile(x, (0, 2)), [A]),
    (lambda f, x: f.moveaxis(x, (0, 2), (-1, 0)), [B]),
    (lambda f, x: f.moveaxis(x, 1, 0), [B]),
    (lambda f, x: f.repeat(x, 2), [A]),
    (lambda f, x: f.repeat(x, 3, axis=1), [A]),
    (lambda f, x, n: f.repeat(x, n, axis=0), [A, np.array([2, 0, 1])]),
    (lambda f, x: f.flip(x, axis=(0, 2)), [B]),
    (lambda f, x: f.expand_dims(x, (0, -1)), [A]),
    (lambda f, x: f.squeeze(f.expand_dims(x, (1, 3)), (1, 3)), [A]),
    (lambda f, x: f.concat([x, x], axis=None), [A]),
    (lambda f, x: f.stack([x, x], axis=-1), [A]),
    (lambda f, x: f.unstack(x, axis=1)[2], [A]),
    (lambda f, x: f.tril(x, k=1), [B]),
    (lambda f, x: f.triu(x, k=-1), [B]),
    (lambda f, x: f.triu(x > 0), [B]),
    (lambda f, x, y: f.meshgrid(x, y)[0], [A[0], A[:, 0]]),
    (lambda f, x, y: f.meshgrid(x, y, indexing="ij")[1], [A[0], A[:, 0]]),
    (lambda f, x, y: f.broadcast_arrays(x, y)[1], [B, A]),
    (lambda f, x: f.matrix_transpose(x), [B]),
    (lambda f, x: f.diff(x, n=2), [A]),
    (lambda f, x: f.diff(x, axis=0, prepend=x[:1], append=x[1:2]), [A]),
    (lambda f, x: f.diff(x, n=5), [A]),
    (lambda f, x: f.cumulative_sum(x, axis=1, include_initial=True), [A]),
    (lambda f, x: f.cumulative_prod(x, axis=0), [A]),
    (lambda f, x: f.cumulative_sum(x), [A[0]]),
    (lambda f, x: f.count_nonzero(x, axis=1).astype("int32"), [I8]),
    (lambda f, x, y: f.isin(x, y), [I8, I8[0]]),
    (lambda f, x, y: f.isin(x, y, invert=True), [I8, I8[0]]),
    (lambda f, x: f.take(x, f.asarray([2, 0]), axis=-1), [A]),
    (lambda f, x: f.sort(x, axis=0, descending=True) if f is em else -np.sort(-x, axis=0), [A]),
    (lambda f, x: f.searchsorted(f.sort(x), x).astype("int32"), [A[0]]),
    (lambda f, x: f.clip(x, max=0), [I8]),
    (lambda f, x, y: f.tensordot(x, y, axes=2), [B, A]),
    (lambda f, x, y: f.tensordot(x, y, axes=((2, 1), (1, 0))), [B, A]),
    (lambda f, x, y: f.tensordot(x, y, axes=0), [A[0], A[1]]),
    (lambda f, x, y: f.vecdot(x, y), [C, C[::-1]]),
    (lambda f, x, y: f.vecdot(x, y, axis=-2), [B, A]),
    (lambda f, x, y: f.linalg.cross(x, y), [A[:, :3], A[:, 1:]]),
    (lambda f, x: f.linalg.diagonal(x, offset=1), [B]),
    (lambda f, x: f.linalg.diagonal(x, offset=-2), [B]),
    (lambda f, x: f.linalg.trace(x, offset=-1), [B]),
    (lambda f, x: f.linalg.trace(x, dtype=f.int32), [I8]),
    (lambda f, x, y: f.linalg.outer(x, y), [A[0], A[1]]),
    *[(lambda f, x, o=o: f.linalg.matrix_norm(x, ord=o, keepdims=o == 2), [B]) for o in ("fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf)],
    *[(lambda f, x, o=o: f.linalg.vector_norm(x, ord=o, axis=(0, 2)), [B]) for o in (0, 1, 2, 3, -2, np.inf, -np.inf)],
    *[(lambda f, x, n=n: f.linalg.matrix_power(x, n), [S]) for n in (0, 1, 5, -2)],
    (lambda f, x: f.linalg.matrix_rank(x).astype("int32"), [np.ones((2, 3, 3), np.float32)]),
    (lambda f, x: f.linalg.pinv(x, rtol=0.9), [S]),
    (lambda f, x: f.linalg.inv(x), [C]),
    (lambda f, x: f.linalg.det(x), [C]),
    (lambda f, x: f.linalg.solve(x, x[0]), [C]),
    (lambda f, x: abs(f.linalg.slogdet(x).sign * f.exp(f.linalg.slogdet(x).logabsdet)), [C]),
    (lambda f, x: f.linalg.svdvals(x), [C]),
    *[(lambda f, x, n=n: getattr(f.fft, n)(x, norm="ortho"), [C]) for n in ("fftn", "ifftn", "irfftn", "hfft")],
    *[(lambda f, x, n=n: getattr(f.fft, n)(x), [A]) for n in ("rfftn", "ihfft", "fftshift", "ifftshift")],
    (lambda f, x: f.fft.fftn(x, s=(2, 5), axes=(1, 0)), [C]),
    (lambda f, x: f.fft.rfftn(x, s=(4,), axes=(0,)), [A]),
    (lambda f, x: f.fft.irfftn(x, s=(3, 7), axes=(0, 1)), [C]),
    (lambda f, x: f.linspace(1, 4, 7, endpoint=False, dtype=f.float32), [A]),
    (lambda f, x: f.eye(3, 5, k=-1, dtype=f.int32), [A]),
    (lambda f, x: f.full_like(x, 3), [A]),
    (lambda f, x: f.fft.fftfreq(5, d=0.5, dtype=f.float32) if f is em else fft.fftfreq(5, 0.5).astype("f"), [A]),
    (lambda f, x: f.fft.rfftfreq(6, d=0.5, dtype=f.float32) if f is em else fft.rfftfreq(6, 0.5).astype("f"), [A]),
]


@pytest.mark.parametrize("i", range(len(CALLS)))
def test_as_numpy_has_it(backend, i):
    call, inputs = CALLS[i]
    wanted = np.asarray(call(np, *inputs))
    got = call(em, *map(em.tensor, inputs)).numpy()
    assert got.shape == wanted.shape and got.dtype.kind == wanted.dtype.kind
    assert np.allclose(got, wanted, rtol=2e-4, atol=2e-5)


def test_factorizations_multiply_back(backend):
    for a in (S, C):
        x = em.tensor(a)
        q, r = em.linalg.qr(x)
        u, s, vh = em.linalg.svd(x)
        values, vectors = em.linalg.eigh(x + em.ops.conj(x.mT))
        general = em.linalg.eig(x)
        for got, wanted in ((q @ r, x), ((u * em.expand_dims(s, -2)) @ vh, x), ((vectors * em.expand_dims(values, -2)) @ em.conj(vectors.mT), x + em.conj(x.mT)),
                            (general.eigenvectors * em.expand_dims(general.eigenvalues, -2), em.astype(x, em.complex64) @ general.eigenvectors)):
            assert np.allclose(got.numpy(), wanted.numpy(), atol=1e-4)


def test_sets_keep_nan_apart(backend):
    x = em.tensor([[2.0, float("nan"), 2.0], [float("nan"), -1.0, 2.0]])
    values, indices, inverse, counts = em.unique_all(x)
    assert values.tolist()[:2] == [-1.0, 2.0] and values.shape == (4,) and counts.tolist() == [1, 3, 1, 1] and inverse.shape == x.shape
    assert indices.tolist()[:2] == [4, 0] and em.unique_counts(x).counts.tolist() == counts.tolist() and em.unique_inverse(x).values.shape == (4,)


def test_what_needs_values_says_so_inside_a_compiled_function():
    pytest.importorskip("mlx.core", reason="mlx is not installed")
    with em.using("mlx"):
        x = em.tensor([1.0, 0.0, 2.0])
        for fn in (lambda x: em.nonzero(x)[0], lambda x: em.unique_values(x), lambda x: x[x > 0]):
            assert fn(x).shape in ((2,), (3,))
            with pytest.raises(UnsupportedOp, match="goes through NumPy on MLX.*outside"):
                em.compile(fn)(x)
        masked = em.compile(lambda x: em.where(x > 0, x, -1.0))(x)   # this has a shape of its own
        assert masked.tolist() == [1.0, -1.0, 2.0]


def test_gradients_pass_through_compositions(backend):
    x = em.tensor(A)
    g = em.grad(lambda x: (em.roll(x, 1, axis=1) * em.tile(x, (1, 1)) + em.tril(x)).sum())(x)
    assert np.allclose(g.numpy(), np.roll(A, 1, 1) + np.roll(A, -1, 1) + np.tril(np.ones_like(A)), atol=1e-6)
    g = em.grad(lambda x: em.linalg.matrix_norm(x, ord="nuc"))(x)
    u, _, vh = la.svd(A, full_matrices=False)
    assert np.allclose(g.numpy(), u @ vh, atol=1e-4)


@pytest.mark.parametrize("call, error, words", [
    (lambda: em.expand_dims(em.ones((2,)), 3), AxisError, "axes in \\[-2, 1\\], got 3"),
    (lambda: em.take(em.ones((2, 2)), em.tensor([0]), axis=None), ShapeError, "take: expected an axis"),
    (lambda: em.take(em.ones((2, 2)), em.tensor([0]), axis=2), IndexError, "take: .*got 2"),
    (lambda: em.cumulative_sum(em.ones((2, 2))), ShapeError, "expected an axis"),
    (lambda: em.broadcast_shapes((2, 3), (4,)), ShapeError, "shapes that broadcast, got \\(2, 3\\), \\(4,\\)"),
    (lambda: em.linalg.inv(em.ones((2, 3))), ShapeError, "inv"),
    (lambda: em.linalg.cholesky(em.ones((3,))), ShapeError, "square matrices"),
    (lambda: em.vecdot(em.ones((2, 3)), em.ones((2, 3)), axis=1), ShapeError, "negative axis"),
    (lambda: em.linalg.cross(em.ones((2,)), em.ones((2,))), ShapeError, "length 3"),
    (lambda: em.meshgrid(em.ones((2,)), indexing="yx"), ValueError, "'xy' or 'ij'"),
    (lambda: em.nonzero(em.tensor(1.0)), ShapeError, "at least one axis"),
    (lambda: em.searchsorted(em.ones((2, 2)), em.ones((1,))), ShapeError, "a vector to search in"),
    (lambda: em.repeat(em.ones((3,)), em.tensor([1, 2])), ShapeError, "expected 3 counts"),
    (lambda: em.tensordot(em.ones((2, 3)), em.ones((2, 3)), axes=1), ShapeError, "equal lengths"),
    (lambda: em.linalg.matrix_norm(em.ones((2, 2)), ord=3), ValueError, "expected ord"),
    (lambda: em.linalg.qr(em.ones((2, 2)), mode="full"), ValueError, "'reduced' or 'complete'"),
    (lambda: em.fft.fftn(em.ones((2, 2)), s=(2,), axes=(0, 1)), ShapeError, "a length per axis"),
    (lambda: em.diff(em.ones((2,)), n=-1), ValueError, "n of at least 0")])
def test_misuse_is_explained(backend, call, error, words):
    with pytest.raises(error, match=words):
        call()
