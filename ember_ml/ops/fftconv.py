"""The long convolution by FFT, with everything that a Hyena operator puts around it.

    x[b, h, d1, d2, t] = u[b, h hd + d1, t] * v[b, h hd + d2, t]             (no v: x = u, one channel a head)
    z = sum_{j <= t} k[h, t - j] x[..., j] + sum_{j >= t} k_reverse[h, j - t] x[..., j] + D[h] x[..., t]
    a = gelu(z) * dropout_mask[b, h]                                          (each where given)
    y[b, h hd + d2, t] = sum_d1 q[b, h hd + d1, t] * a[b, h, d1, d2, t]       (no q: head_dim must be 1, y = a)

with head_dim hd. Linear convolution of any length: the transform has at least L + K - 1 points. The gradient keeps
the inputs only and computes the spectra again.

Source: Poli et al. 2023, Hyena Hierarchy; Dao et al. 2023, Hungry Hungry Hippos (head_dim, v and q).
"""

from __future__ import annotations

from functools import lru_cache

from ember_ml.errors import BackendMismatch, ShapeError
from ember_ml.kernels import FFTCONV, FFTCONV_GRAD
from ember_ml.ops.activation import gelu as gelu_of
from ember_ml.ops.activation import gelu_slope
from ember_ml.ops.declare import op
from ember_ml.ops.elementwise import conj
from ember_ml.ops.fft import irfft, rfft
from ember_ml.ops.fftconv_filter import PreparedFilter
from ember_ml.ops.reduce import sum as total
from ember_ml.ops.shape import cut, expand_dims, pad, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


@lru_cache(maxsize=None)
def fft_size(at_least: int) -> int:
    """The smallest 2^a 3^b 5^c that is even and not below `at_least`: sizes that every FFT library does fast."""
    best = 1 << max(at_least - 1, 1).bit_length()
    three = 1
    while three < best:
        five = three
        while five < best:
            two = 2
            while five * two < at_least:
                two *= 2
            best = min(best, five * two)
            five *= 5
        three *= 3
    return best


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


def _per_head(w, head_dim):
    """A filter or skip (H, n) ready to broadcast against the convolution's input."""
    return w if head_dim == 1 else reshape(w, (w.shape[0], 1, 1, w.shape[1]))


def _taps(k, k_reverse):
    """The two filters, of which a prepared one holds both."""
    return (k.k, k.k_reverse) if isinstance(k, PreparedFilter) else (k, k_reverse)


def _met(taps, work, length):
    """The taps that an input of this length meets, in the dtype of the computation."""
    return [None if f is None else cut(f, 0, min(f.shape[-1], length), axis=-1).astype(work) for f in taps]


def _spectrum(k, k_reverse, work, length, n):
    """rfft(k) + conj(rfft(k_reverse)), kept where the filter is prepared."""
    def make():
        kept = _met(_taps(k, k_reverse), work, length)
        f = rfft(kept[0], n=n)
        return f if kept[1] is None else f + conj(rfft(kept[1], n=n))

    if not isinstance(k, PreparedFilter):
        return make()
    return EmberTensor(k.spectrum(("rfft", n, length, work), lambda: (make().data,))[0], k.k.backend)


def _convolve(x_f, k_f, n, length):
    return cut(irfft(x_f * k_f, n=n), 0, length, axis=-1)


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


def _size(u, k, k_reverse):
    longest = max(0 if f is None else f.shape[-1] for f in _taps(k, k_reverse))
    return fft_size(u.shape[-1] + min(longest, u.shape[-1]) - 1)


@op(kernel=FFTCONV_GRAD)
def fftconv_grad(g, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    """Gradients of `fftconv` for its output's gradient g: in u, k, D, v, q and k_reverse, None where there is none."""
    work = _work_dtype(u)
    u, D, v, q, mask, g = (None if t is None else t.astype(work) for t in (u, D, v, q, dropout_mask, g))
    length, n = u.shape[-1], _size(u, k, k_reverse)
    x = _gated(u, v, head_dim)
    x_f, k_f = rfft(x, n=n), _per_head(_spectrum(k, k_reverse, work, length, n), head_dim)
    da, dq = g, None
    if q is not None or gelu:                              # the convolution's output is needed again
        z = _convolve(x_f, k_f, n, length)
        z = z if D is None else z + _per_head(expand_dims(D, -1), head_dim) * x
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
    dz_f = rfft(dz, n=n)
    dx = _convolve(dz_f, conj(k_f), n, length)
    dx = dx if D is None else dx + _per_head(expand_dims(D, -1), head_dim) * dz
    lead = (0,) if head_dim == 1 else (0, 2, 3)
    dk = None if isinstance(k, PreparedFilter) else _filter_grad(irfft(total(dz_f * conj(x_f), axis=lead), n=n), length, k)
    dD = None if D is None else total(dz * x, axis=(*lead, x.ndim - 1))
    dk_reverse = None
    if k_reverse is not None:
        dk_reverse = _filter_grad(irfft(total(conj(dz_f) * x_f, axis=lead), n=n), length, k_reverse)
    if v is None:
        return dx, dk, dD, None, dq, dk_reverse
    if head_dim == 1:
        return dx * v, dk, dD, dx * u, dq, dk_reverse
    du = reshape(total(dx * expand_dims(_heads(v, head_dim), 2), axis=3), u.shape)
    dv = reshape(total(dx * expand_dims(_heads(u, head_dim), 3), axis=2), v.shape)
    return du, dk, dD, dv, dq, dk_reverse


def _filter_grad(correlation, length, k):
    """The first taps of the correlation; taps beyond the input's length never met it."""
    met = min(k.shape[-1], length)
    part = cut(correlation, 0, met, axis=-1)
    missing = k.shape[-1] - met
    return part if missing == 0 else pad(part, ((0, 0), (0, missing)))


def _rule(g, _y, u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    return (*fftconv_grad(g, u, k, D, v, q, k_reverse, dropout_mask, gelu=gelu, head_dim=head_dim), None)


@op(vjp=_rule, owns_gradient=True, kernel=FFTCONV)
def fftconv_rows(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    """Native form of `fftconv`, for checked shapes."""
    out_dtype, work = u.dtype, _work_dtype(u)
    u, D, v, q, mask = (None if t is None else t.astype(work) for t in (u, D, v, q, dropout_mask))
    length, n = u.shape[-1], _size(u, k, k_reverse)
    x = _gated(u, v, head_dim)
    a = _convolve(rfft(x, n=n), _per_head(_spectrum(k, k_reverse, work, length, n), head_dim), n, length)
    a = a if D is None else a + _per_head(expand_dims(D, -1), head_dim) * x
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

    Raises ShapeError naming the argument, the shape that was expected and the one that came; BackendMismatch for a filter
    that was prepared on another engine.
    """
    if u.ndim != 3:
        raise ShapeError(f"fftconv: expected u of shape (batch, channels, length), got {u.shape}")
    if head_dim < 1 or u.shape[1] % head_dim:
        raise ShapeError(f"fftconv: expected head_dim to divide the {u.shape[1]} channels, got {head_dim}")
    if head_dim > 1 and (v is None or q is None):
        raise ShapeError(f"fftconv: head_dim={head_dim} needs both gates v and q of shape {u.shape}")
    if u.shape[2] == 0:
        raise ShapeError(f"fftconv: expected a length of at least 1, got u of shape {u.shape}")
    heads = u.shape[1] // head_dim
    if isinstance(k, PreparedFilter):
        if k_reverse is not None:
            raise TypeError("fftconv: expected no k_reverse beside a prepared filter, which holds its own: "
                            "prepare_filter(k, k_reverse)")
        if k.k.backend is not u.backend:
            raise BackendMismatch(f"fftconv: expected a filter prepared on {u.backend.name}, where u is, got one on "
                                  f"{k.k.backend.name}; prepare k.to({u.backend.name!r})")
    for name, t in zip(("k", "k_reverse"), _taps(k, k_reverse)):
        if t is not None and (t.ndim != 2 or t.shape[0] != heads or t.shape[1] == 0):
            raise ShapeError(f"fftconv: expected {name} of shape (channels / head_dim, length) = ({heads}, K), "
                             f"K >= 1 (usually {u.shape[2]}), got {t.shape}; pass one filter per head")
    for name, t, shape in (("D", D, (heads,)), ("v", v, u.shape), ("q", q, u.shape),
                           ("dropout_mask", dropout_mask, (u.shape[0], heads))):
        if t is not None and t.shape != shape:
            raise ShapeError(f"fftconv: expected {name} of shape {shape}, got {t.shape}")
    backend = u.backend
    if isinstance(k, PreparedFilter) and backend.runtime.operator is not None and "fftconv" in backend.launchers(u.device):
        k, k_reverse = k.k, k.k_reverse                    # there kernels are operators, which take tensors alone
    return fftconv_rows(u, k, D, v, q, k_reverse, dropout_mask, gelu=gelu, head_dim=head_dim)
