"""The long convolution by FFT, with everything that a Hyena operator puts around it.

    x[b, h, d1, d2, t] = u[b, h hd + d1, t] * v[b, h hd + d2, t]             (no v: x = u, one channel a head)
    z = sum_{j <= t} k[h, t - j] x[..., j] + sum_{j >= t} k_reverse[h, j - t] x[..., j] + D[h] x[..., t]
    a = gelu(z) * dropout_mask[b, h]                                          (each where given)
    y[b, h hd + d2, t] = sum_d1 q[b, h hd + d1, t] * a[b, h, d1, d2, t]       (no q: head_dim must be 1, y = a)

with head_dim hd. Linear convolution of any length, computed by the right-angle transform (`ember_ml.backend.right_angle`) where
an engine has it. The gradient keeps the inputs only and computes the rest again.

Source: Poli et al. 2023, Hyena Hierarchy; Dao et al. 2023, Hungry Hungry Hippos (head_dim, v and q).
"""

from __future__ import annotations

from ember_ml.errors import BackendMismatch, ShapeError, UnsupportedDtype
from ember_ml.kernels import FFTCONV, FFTCONV_GRAD
from ember_ml.ops.activation import gelu as gelu_of
from ember_ml.ops.activation import gelu_slope
from ember_ml.ops.convolve import both_filters, convolve_grad, convolve_rows
from ember_ml.ops.creation import zeros_like
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import expect_tensors
from ember_ml.ops.fftconv_filter import PreparedFilter
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import broadcast_to, expand_dims, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def _heads(x, head_dim):
    """(B, H hd, L) as (B, H, hd, L)."""
    return reshape(x, (x.shape[0], x.shape[1] // head_dim, head_dim, x.shape[2]))


def _gated(u, v, head_dim):
    """The convolution's input: (B, H, L) for one channel a head, else (B, H, hd, hd, L)."""
    if v is None:
        return u
    if head_dim == 1:
        return u * v
    return expand_dims(_heads(u, head_dim), 3) * expand_dims(_heads(v, head_dim), 2)


def _rows(x):
    """The convolution's input as (B, rows, L)."""
    return reshape(x, (x.shape[0], -1, x.shape[-1]))


def _per_row(D, head_dim):
    """The skip of each row; a head has head_dim^2 of them."""
    if D is None or head_dim == 1:
        return D
    return reshape(broadcast_to(expand_dims(D, 1), (D.shape[0], head_dim * head_dim)), (-1,))


def _masked(dropout_mask, head_dim):
    return reshape(dropout_mask, dropout_mask.shape + ((1,) if head_dim == 1 else (1, 1, 1)))


def _post(a, q, head_dim):
    """The gate after the convolution and the sum over d1."""
    if q is None:
        return a
    if head_dim == 1:
        return a * q
    y = total(a * expand_dims(_heads(q, head_dim), 3), axis=2)
    return reshape(y, (y.shape[0], -1, y.shape[3]))


def _work_dtype(u):
    return u.dtype if u.dtype.bits >= 32 else dt.float32


def _convolved(x, k, D, k_reverse, head_dim):
    return reshape(convolve_rows(_rows(x), k, _per_row(D, head_dim), k_reverse), x.shape)


def _cast(work, *tensors):
    return [t.astype(work) if isinstance(t, EmberTensor) else t for t in tensors]


@op(kernel=FFTCONV_GRAD)
def fftconv_grad(g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    """Gradients of `fftconv` for its output's gradient g: in u, k, D, v, q and k_reverse, None where there is none."""
    u, k, D, v, q, k_reverse, mask, g = _cast(_work_dtype(u), u, k, D, v, q, k_reverse, dropout_mask, g)
    x = _gated(u, v, head_dim)
    da, dq = g, None
    if q is not None or gelu:                              # the convolution's output is needed again
        z = _convolved(x, k, D, k_reverse, head_dim)
        a = gelu_of(z) if gelu else z
        if mask is not None:
            a = a * _masked(mask, head_dim)
        if q is not None and head_dim == 1:
            da, dq = g * q, g * a
        elif q is not None:
            wide = expand_dims(_heads(g, head_dim), 2)
            da, dq = wide * expand_dims(_heads(q, head_dim), 3), reshape(total(wide * a, axis=3), q.shape)
    if mask is not None:
        da = da * _masked(mask, head_dim)
    dz = da * gelu_slope(z) if gelu else da
    found = iter(convolve_grad(_rows(dz), _rows(x), k, _per_row(D, head_dim), k_reverse))
    dx, dk, dD, dk_reverse = (next(found) if isinstance(t, EmberTensor) else None for t in (u, k, D, k_reverse))
    dx = reshape(dx, x.shape)
    if dD is not None and head_dim > 1:
        dD = total(reshape(dD, (D.shape[0], -1)), axis=1)
    if v is None:
        return dx, dk, dD, None, dq, dk_reverse
    if head_dim == 1:
        return dx * v, dk, dD, dx * u, dq, dk_reverse
    du = reshape(total(dx * expand_dims(_heads(v, head_dim), 2), axis=3), u.shape)
    dv = reshape(total(dx * expand_dims(_heads(u, head_dim), 3), axis=2), v.shape)
    return du, dk, dD, dv, dq, dk_reverse


def _rule(g, _y, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    return (*fftconv_grad(g, u, k, D, v, q, k_reverse, dropout_mask, gelu=gelu, head_dim=head_dim), None)


@op(public="fftconv", vjp=_rule, owns_gradient=True, kernel=FFTCONV)
def fftconv_rows(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    """Native form of `fftconv`, for checked shapes."""
    out_dtype = u.dtype
    u, k, D, v, q, k_reverse, mask = _cast(_work_dtype(u), u, k, D, v, q, k_reverse, dropout_mask)
    a = _convolved(_gated(u, v, head_dim), k, D, k_reverse, head_dim)
    a = gelu_of(a) if gelu else a
    a = a if mask is None else a * _masked(mask, head_dim)
    return _post(a, q, head_dim).astype(out_dtype)


def fftconv(u: EmberTensor, k: EmberTensor | PreparedFilter, D: EmberTensor | None = None, *, v: EmberTensor | None = None,
            q: EmberTensor | None = None, k_reverse: EmberTensor | None = None,
            dropout_mask: EmberTensor | None = None, gelu: bool = False, head_dim: int = 1) -> EmberTensor:
    """Long convolution over time, causal or bidirectional, with skip, gelu, dropout and gates (formula: see the module).

    Args:
        u: (B, D, L), float32, float64, float16 or bfloat16; half precision is computed in float32.
        k: (H, K), the causal filter, H = D / head_dim; taps beyond L have no effect. A filter that does not change may be
            given as `prepare_filter(k, k_reverse)`: its transform is then kept, and no gradient flows into it.
        D: (H,), skip. v, q: (B, D, L), gates before and after; with head_dim > 1 both are needed.
        k_reverse: (H, K'), filter of the future, lag 0 included: the convolution is then bidirectional.
        dropout_mask: (B, H), factors after the gelu (0 or 1 / (1 - p)). No gradient.
        gelu: apply the erf gelu to the convolution's output.
        head_dim: channels per head; more than one forms the outer product of u and v within each head.

    Returns: (B, D, L) in u's dtype.

    Raises ShapeError naming the argument, the shape that was expected and the one that came; UnsupportedDtype for integers
    and complex numbers; BackendMismatch for a filter that was prepared on another engine.
    """
    expect_tensors("fftconv", {"D": D, "v": v, "q": q, "k_reverse": k_reverse, "dropout_mask": dropout_mask}, u=u,
                   k=both_filters(k, k_reverse)[0])
    whole = u.shape
    if len(whole) != 3:
        raise ShapeError(f"fftconv: expected u of shape (batch, channels, length), got {whole}")
    batch, channels, length = whole
    if not hasattr(head_dim, "__index__") or head_dim < 1 or channels % head_dim:
        raise ShapeError(f"fftconv: expected head_dim to divide the {channels} channels, got {head_dim!r}")
    if head_dim > 1 and (v is None or q is None):
        raise ShapeError(f"fftconv: head_dim={head_dim} needs both gates v and q of shape {whole}")
    if length == 0:
        raise ShapeError(f"fftconv: expected a length of at least 1, got u of shape {whole}")
    heads = channels // head_dim
    for name, t in (("u", u), ("k", both_filters(k, k_reverse)[0]), ("D", D), ("v", v), ("q", q), ("k_reverse", k_reverse)):
        if t is not None and t.dtype.kind != "float":
            raise UnsupportedDtype(f"fftconv: expected {name} in float32, float64, float16 or bfloat16, got {t.dtype}; "
                                   f"cast it with .astype('float32')")
    if dropout_mask is not None and dropout_mask.dtype.kind == "complex":
        raise UnsupportedDtype(f"fftconv: expected real numbers in dropout_mask, got {dropout_mask.dtype}")
    if isinstance(k, PreparedFilter):
        if k_reverse is not None:
            raise TypeError("fftconv: expected no k_reverse beside a prepared filter, which holds its own: "
                            "prepare_filter(k, k_reverse)")
        if k.k.backend is not u.backend:
            raise BackendMismatch(f"fftconv: expected a filter prepared on {u.backend.name}, where u is, got one on "
                                  f"{k.k.backend.name}; prepare k.to({u.backend.name!r})")
    for name, t in zip(("k", "k_reverse"), both_filters(k, k_reverse)):
        if t is not None and (t.ndim != 2 or t.shape[0] != heads or t.shape[1] == 0):
            raise ShapeError(f"fftconv: expected {name} of shape (channels / head_dim, length) = ({heads}, K), "
                             f"K >= 1 (usually {length}), got {t.shape}; pass one filter per head")
    for name, t, shape in (("D", D, (heads,)), ("v", v, whole), ("q", q, whole),
                           ("dropout_mask", dropout_mask, (batch, heads))):
        if t is not None and t.shape != shape:
            raise ShapeError(f"fftconv: expected {name} of shape {shape}, got {t.shape}")
    if u.size == 0:                                        # no sequences, or no channels
        return zeros_like(u)
    if isinstance(k, PreparedFilter) and u.backend.runtime.operator is not None and u.backend.runtime.is_recorded():
        k, k_reverse = k.k, k.k_reverse                    # there kernels are operators, which take tensors alone
    return fftconv_rows(u, k, D, v, q, k_reverse, dropout_mask, gelu=gelu, head_dim=head_dim)
