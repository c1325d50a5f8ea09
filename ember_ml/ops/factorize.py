"""Factorizations of matrices and what comes straight from them, over the last two axes, leading axes being a batch.

Gradients are those of Giles 2008 (An extended collection of matrix derivative results), Murray 2016 (Cholesky) and Seeger et al. 2017
(QR): conjugate transposes where the matrices are complex. They are the gradient on every engine, since MLX has none of these.
"""

from __future__ import annotations

from typing import NamedTuple

from ember_ml.errors import ShapeError, UnsupportedOp
from ember_ml.ops.creation import eye
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import conj, equal, real, reciprocal, where
from ember_ml.ops.linear import matmul
from ember_ml.ops.rearrange import tril
from ember_ml.ops.shape import expand_dims, swap_axes
from ember_ml.tensor import EmberTensor


class EighResult(NamedTuple):
    """eigenvalues (..., n), real and rising; eigenvectors (..., n, n), the columns."""

    eigenvalues: EmberTensor
    eigenvectors: EmberTensor


class EigResult(NamedTuple):
    """eigenvalues (..., n) and eigenvectors (..., n, n), the columns, complex."""

    eigenvalues: EmberTensor
    eigenvectors: EmberTensor


class QRResult(NamedTuple):
    """Q (..., m, k) with orthonormal columns; R (..., k, n), zero below its diagonal."""

    Q: EmberTensor
    R: EmberTensor


class SVDResult(NamedTuple):
    """U (..., m, k), S (..., min(m, n)), real and falling, Vh (..., k, n)."""

    U: EmberTensor
    S: EmberTensor
    Vh: EmberTensor


class SlogdetResult(NamedTuple):
    """sign (...), a number of modulus one, or 0; logabsdet (...), real."""

    sign: EmberTensor
    logabsdet: EmberTensor


def H(x: EmberTensor) -> EmberTensor:  # noqa: N802 - the field's sign for it
    """The conjugate transpose over the last two axes."""
    return swap_axes(conj(x) if x.dtype.kind == "complex" else x)


def square_matrix(name: str, x: EmberTensor):
    """Raises ShapeError unless the last two axes are a square."""
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ShapeError(f"{name}: expected square matrices (..., n, n), got shape {x.shape}")


def _on_diagonal(x):
    """bool (n, n): whether an element of x (..., n, n) lies on the diagonal."""
    return equal(eye(x.shape[-1], like=x), 1.0)


def _cholesky_grad(g, low, _x):
    inner = tril(matmul(H(low), tril(g)))
    inner = where(_on_diagonal(low), inner * 0.5, inner)
    s = H(solve_rows(H(low), H(solve_rows(H(low), inner))))
    return ((s + H(s)) * 0.5,)


@op(public="cholesky", rule="float", vjp=_cholesky_grad, owns_gradient=True)
def cholesky_lower(x):
    """Native form of `cholesky`: the lower factor L of x = L L^H."""
    ...


def cholesky(x: EmberTensor, upper: bool = False) -> EmberTensor:
    """The lower triangular L with x = L L^H of a positive definite x (..., n, n), or with `upper` U = L^H. x is taken as symmetric."""
    square_matrix("cholesky", x)
    low = cholesky_lower(x)
    return H(low) if upper else low


def _inv_grad(g, y, _x):
    return (-matmul(H(y), matmul(g, H(y))),)


@op(rule="float", vjp=_inv_grad, owns_gradient=True)
def inv(x):
    """The inverse of square matrices (..., n, n)."""
    ...


def _solve_grad(g, y, a, _b):
    to_b = solve_rows(H(a), g)
    return -matmul(to_b, H(y)), to_b


@op(public="solve", rule="float_promote", vjp=_solve_grad, owns_gradient=True)
def solve_rows(a, b):
    """Native form of `solve`: (..., n, n) and (..., n, k)."""
    ...


def solve(a: EmberTensor, b: EmberTensor) -> EmberTensor:
    """x with a x = b, of square matrices a (..., n, n) and b (..., n, k), or a single vector b (n,)."""
    square_matrix("solve", a)
    if b.ndim == 1:
        return solve_rows(a, expand_dims(b, 1))[..., 0]
    return solve_rows(a, b)


def _det_grad(g, y, x):
    return (expand_dims(expand_dims(g * (conj(y) if y.dtype.kind == "complex" else y), -1), -1) * H(inv(x)),)


@op(rule="float", vjp=_det_grad, owns_gradient=True)
def det(x):
    """Determinant of square matrices (..., n, n): shape (...). The gradient needs an inverse."""
    ...


def _slogdet_grad(g, out, x):
    if x.dtype.kind == "complex":
        raise UnsupportedOp("slogdet: has no gradient for complex matrices, whose sign turns with them; use det")
    return (expand_dims(expand_dims(g[1], -1), -1) * H(inv(x)),)


@op(public="slogdet", rule="float", vjp=_slogdet_grad, owns_gradient=True)
def slogdet_parts(x):
    """Native form of `slogdet`: (sign, logabsdet)."""
    ...


def slogdet(x: EmberTensor) -> SlogdetResult:
    """Sign and logarithm of the modulus of the determinant of square matrices (..., n, n)."""
    square_matrix("slogdet", x)
    return SlogdetResult(*slogdet_parts(x))


def _eigh_grad(g, out, _x):
    values, vectors = out
    gap = expand_dims(values, -2) - expand_dims(values, -1)
    same = _on_diagonal(vectors)
    weight = where(same, 0.0, reciprocal(where(same, 1.0, gap))).astype(vectors.dtype)
    inner = where(same, expand_dims(g[0].astype(vectors.dtype), -1), weight * matmul(H(vectors), g[1]))
    grad = matmul(vectors, matmul(inner, H(vectors)))
    return ((grad + H(grad)) * 0.5,)


@op(public="eigh", rule="float", vjp=_eigh_grad, owns_gradient=True)
def eigh_parts(x):
    """Native form of `eigh`: (eigenvalues, eigenvectors)."""
    ...


def eigh(x: EmberTensor) -> EighResult:
    """Eigenvalues and orthonormal eigenvectors of Hermitian matrices (..., n, n); x is taken as Hermitian.

    The gradient of the vectors needs different eigenvalues, and a loss that does not hang on the vectors' signs.
    """
    square_matrix("eigh", x)
    return EighResult(*eigh_parts(x))


def eigvalsh(x: EmberTensor) -> EmberTensor:
    """Eigenvalues of Hermitian matrices (..., n, n), real and rising: (..., n)."""
    return eigh(x).eigenvalues


_NO_EIG = "eigenvectors of a general matrix have no scale and no phase of their own; eigh has a gradient"


@op(public="eig", rule="float", no_grad=_NO_EIG)
def eig_parts(x):
    """Native form of `eig`: complex (eigenvalues, eigenvectors)."""
    ...


def eig(x: EmberTensor) -> EigResult:
    """Complex eigenvalues and eigenvectors of square matrices (..., n, n), in no order."""
    square_matrix("eig", x)
    return EigResult(*eig_parts(x))


def eigvals(x: EmberTensor) -> EmberTensor:
    """Complex eigenvalues of square matrices (..., n, n), in no order: (..., n)."""
    return eig(x).eigenvalues


def _qr_grad(g, out, _x, *, complete=False):
    q, r = out
    if complete or r.shape[-2] != r.shape[-1]:
        raise UnsupportedOp(f"qr: has a gradient for (..., m, n) with m >= n and mode='reduced', got R of shape {r.shape}")
    m = matmul(r, H(g[1])) - matmul(H(g[0]), q)
    low = tril(m, k=-1)
    inner = g[0] + matmul(q, low + H(low) + where(_on_diagonal(r), real(m).astype(m.dtype), 0.0))
    return (H(solve_rows(r, H(inner))),)


@op(public="qr", rule="float", vjp=_qr_grad, owns_gradient=True)
def qr_parts(x, *, complete=False):
    """Native form of `qr`: (Q, R)."""
    ...


def qr(x: EmberTensor, mode: str = "reduced") -> QRResult:
    """x = Q R of (..., m, n); k = min(m, n) columns of Q for mode "reduced", all m for "complete"."""
    if mode not in ("reduced", "complete"):
        raise ValueError(f"qr: expected mode 'reduced' or 'complete', got {mode!r}")
    if x.ndim < 2:
        raise ShapeError(f"qr: expected matrices (..., m, n), got shape {x.shape}")
    return QRResult(*qr_parts(x, complete=mode == "complete"))


@op(rule="float", no_grad="singular vectors have no phase of their own; svdvals and eigh have gradients")
def svd_parts(x, *, full=True):
    """Native form of `svd`: (U, S, Vh)."""
    ...


def svd(x: EmberTensor, full_matrices: bool = True) -> SVDResult:
    """x = U diag(S) Vh of (..., m, n), with all columns of U and rows of Vh, or only min(m, n) of them."""
    if x.ndim < 2:
        raise ShapeError(f"svd: expected matrices (..., m, n), got shape {x.shape}")
    return SVDResult(*svd_parts(x, full=full_matrices))


def _svdvals_grad(g, _y, x):
    u, _, vh = svd_parts(x, full=False)
    return (matmul(u * expand_dims(g, -2).astype(u.dtype), vh),)


@op(rule="float", vjp=_svdvals_grad, owns_gradient=True)
def svdvals(x):
    """Singular values of (..., m, n), real and falling: (..., min(m, n))."""
    return svd_parts(x, full=False)[1]
