"""The kernels of depthwise convolutions of few taps (metal/shortconv.metal, cuda/shortconv.cu), and how they are launched."""

from __future__ import annotations

from typing import NamedTuple

from ember_ml.kernels.gpu import Array, Gpu, Groups
from ember_ml.kernels.spec import KernelSpec, Sample, TemplateEntry, sample_values

#: sizes of a tile, as the kernels name them: steps of a thread, channels, steps, numbers from step to step
STEPS, LANES, TILE, PITCH = 8, 16, 64, 18

THREADS = TILE // STEPS * LANES

#: the widest window, that of the past and that of the future together, lag 0 once. With it the gradient's tile takes 27 of the 32 KiB
#: that a Metal threadgroup has; from there on the transform costs less at every length.
LONGEST = 64

#: blocks that share the work of the gradient, about: as many as a large GPU holds at once
BLOCKS = 2048

#: bits of a kernel's options, as the kernels name them
GATE_BEFORE, GATE_AFTER, SKIP, BIAS, SILU, FLIPPED, CHANNELS_LAST = (1 << i for i in range(7))


def window(taps: int, ahead: int = 0) -> int:
    """Steps that filters of so many taps of the past and of the future reach together; lag 0 is in both."""
    return max(taps, 1) + max(ahead, 1) - 1


def options(v, q, skip, bias, silu: bool, flipped: bool, channels_last: bool) -> int:
    """What there is besides u and the filters: the bits that the kernels read. Arrays or None, and how the call is meant."""
    bits = (GATE_BEFORE, GATE_AFTER, SKIP, BIAS, SILU, FLIPPED, CHANNELS_LAST)
    there = (v is not None, q is not None, skip is not None, bias is not None, silu, flipped, channels_last)
    return sum(bit for bit, is_there in zip(bits, there) if is_there)


def blocks(batch: int, channels: int, length: int) -> int:
    """Blocks of the forward kernel: one for each tile."""
    return batch * -(-length // TILE) * -(-channels // LANES)


def parts(batch: int, channels: int, length: int) -> int:
    """Parts into which the gradient cuts the tiles of a group of channels. None is empty."""
    return min(batch * -(-length // TILE), max(1, BLOCKS // -(-channels // LANES)))


def shared_floats(size: int, backward: bool) -> int:
    """Floats of a block's tile for a window of `size` steps: its taps, the inputs, and in the gradient dz."""
    rows = TILE + size - 1
    return size * LANES + PITCH * (rows + (rows + size - 1 if backward else 0))


_ARRAYS = (("u", "T"), ("v", "T"), ("q", "T"), ("taps", "W"), ("ahead", "W"), ("skip", "float32"), ("bias", "W"))
_WINDOW = ("past", "future")
FORWARD = TemplateEntry("shortconv_forward", _ARRAYS, ("y",), (), "float", ("channels", "length", *_WINDOW, "options"), strided=3)
BACKWARD = TemplateEntry("shortconv_backward", (("g", "T"), *_ARRAYS), ("du", "dv", "dq", "partial"), (), "float",
                 ("batch", "channels", "length", *_WINDOW, "parts", "options"), strided=4)
BACKWARD_TAPS = TemplateEntry("shortconv_backward_taps", (("partial", "float32"),), ("d_taps", "d_ahead", "d_skip", "d_bias"), (),
                      numbers=("channels", *_WINDOW, "parts", "options"))


def _filters(gpu: Gpu, taps, ahead, skip, bias) -> tuple[str, list[Array | None], list[int]]:
    """(dtype of the taps, the arrays that describe the window, all but the skip in that dtype, the taps of each filter)."""
    kind = gpu.dtype(ahead if taps is None else taps)
    kinds = (kind, kind, "float32", kind)
    arrays = [None if x is None else gpu.contiguous(gpu.cast(x, own)) for x, own in zip((taps, ahead, skip, bias), kinds)]
    return kind, arrays, [0 if f is None else f.shape[1] for f in (taps, ahead)]


def _roomy(size: int) -> int:
    """Metal's kernels have their threadgroup memory in their text: there are few sizes, each of which is a kernel of its own."""
    return next(s for s in (8, 32, LONGEST) if s >= size)


def _shared(gpu: Gpu, size: int, backward: bool) -> int:
    return shared_floats(_roomy(size) if gpu.language == "metal" else size, backward)


def _made(gpu: Gpu, u: Array, channels_last: bool) -> tuple[tuple, str]:
    batch, channels, length = u.shape
    return (batch, length, channels) if channels_last else (batch, channels, length), gpu.dtype(u)


def forward(gpu: Gpu, u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False,
            channels_last=False) -> Array:
    """y = q act(bias + sum_lag w[lag] (u v)[t - lag]), act the silu or nothing.

    Args:
        u, v, q: (B, D, L), v and q or None; any strides. taps, ahead: (D, K) of lags 0, 1, ..., and of 0, -1, ..., one of them or both,
            windows of at most LONGEST together; flipped: the other way round, lag 0 last. skip: (D,), one more tap at lag 0.
        channels_last: y is (B, L, D), else (B, D, L).
    """
    batch, channels, length = u.shape
    kind, filters, sizes = _filters(gpu, taps, ahead, skip, bias)
    return gpu.launch_template(
        FORWARD, [u, v, q, *filters], [_made(gpu, u, channels_last)], Groups(blocks(batch, channels, length), THREADS),
        (channels, length, *sizes, options(v, q, skip, bias, silu, flipped, channels_last)), types=(gpu.dtype(u), kind),
        shared=_shared(gpu, window(*sizes), False))[0]


def backward(gpu: Gpu, g, u, taps, ahead=None, *, v=None, q=None, skip=None, bias=None, silu=False, flipped=False,
             channels_last=False) -> tuple[Array | None, ...]:
    """Gradients of `forward` in u, v, q, of u's dtype, and in taps, ahead, skip and bias, float32; None for what is not there.

    channels_last: those in u, v and q are (B, L, D), else (B, D, L); g is (B, D, L).
    """
    (batch, channels, length), own = u.shape, gpu.dtype(u)
    kind, filters, sizes = _filters(gpu, taps, ahead, skip, bias)
    size, count, bits = window(*sizes), parts(batch, channels, length), options(v, q, skip, bias, silu, flipped, channels_last)
    *rows, partial = gpu.launch_template(
        BACKWARD, [gpu.cast(g, own), u, v, q, *filters],
        [*(None if x is None else _made(gpu, u, channels_last) for x in (u, v, q)), ((count, channels, size + 1), "float32")],
        Groups(count * -(-channels // LANES), THREADS), (batch, channels, length, *sizes, count, bits), types=(own, kind),
        shared=_shared(gpu, size, True))
    sums = gpu.launch_template(BACKWARD_TAPS, [partial], [None if x is None else (x.shape, "float32") for x in filters],
                               Groups(-(-channels * (size + 1) // THREADS), THREADS), (channels, *sizes, count, bits))
    return *rows, *sums


def _filter_of(weight, anticausal: bool, nothing=None) -> tuple:
    return (nothing, weight) if anticausal else (weight, nothing)


def _depthwise(gpu: Gpu, x, weight, bias=None, *, anticausal=False, silu=False, channels_last=False) -> Array:
    """Summed in float32."""
    return forward(gpu, x, *_filter_of(weight, anticausal), bias=bias, silu=silu, flipped=True, channels_last=channels_last)


def _depthwise_grad(gpu: Gpu, g, x, weight, bias=None, *, anticausal=False, silu=False) -> tuple[Array | None, ...]:
    dx, _, _, d_taps, d_ahead, _, d_bias = backward(gpu, g, x, *_filter_of(weight, anticausal), bias=bias, silu=silu, flipped=True,
                                                    channels_last=True)
    return dx, d_ahead if anticausal else d_taps, d_bias


class Taps(NamedTuple):
    """A form: the widest window that the kernel has room for, the options that say which arrays there are, and which filters."""

    room: int
    options: int
    past: bool
    future: bool

    def __str__(self) -> str:
        words = ((self.options & GATE_BEFORE, "a gate before"), (self.options & GATE_AFTER, "a gate after"), (self.options & SKIP, "skip"),
                 (self.options & BIAS, "bias"), (self.future, "a filter of the future"))
        return ", ".join((f"up to {self.room} taps", *(word for there, word in words if there)))

    def sizes(self) -> tuple[int, int]:
        """Taps of the past and of the future that nearly fill the room."""
        whole = self.room - 3
        return (whole // 2, whole - whole // 2 + 1) if self.past and self.future else (whole, 0) if self.past else (0, whole)


def form(taps: int, ahead: int, v=None, q=None, skip=None, bias=None) -> Taps:
    """That of a call with so many taps of the past and of the future, and with these arrays or None."""
    return Taps(_roomy(window(taps, ahead)), options(v, q, skip, bias, False, False, False), taps > 0, ahead > 0)


def _form(x, weight, bias=None, *, anticausal=False, **static) -> Taps | None:
    taps = weight.shape[1]
    return form(*_filter_of(taps, anticausal, 0), bias=bias) if taps <= LONGEST and 0 not in x.shape else None


def _sample(form: Taps) -> Sample:
    """Two tiles and a bit, and fewer channels than lanes."""
    arrays = sample_values(2, 3, TILE + 7, seed=1), sample_values(3, max(form.sizes()), seed=2)
    return Sample((*arrays, sample_values(3, seed=3) if form.options & BIAS else None), {"silu": True, "anticausal": form.future})


def _sample_grad(form: Taps) -> Sample:
    arrays, static = _sample(form)
    return Sample((sample_values(2, 3, TILE + 7, seed=4), *arrays), static)


_FORMS = (Taps(8, BIAS, True, False), Taps(32, 0, True, False), Taps(LONGEST, BIAS, False, True))


_TAKES = (("x", "T"), ("weight", "T"), ("bias", "T"))

#: short_conv(x (B, D, L), weight (D, K), bias (D,) or None, anticausal, silu, channels_last) -> y of `depthwise_rows` in x's dtype
SHORT_CONV = KernelSpec("short_conv", (FORWARD,), _depthwise, _sample, registers=48, form=_form, forms=_FORMS, takes=_TAKES)

#: short_conv_grad(g, x, weight, bias, anticausal, silu) -> dx (B, L, D) in x's dtype, d_weight and d_bias in float32, None without one
SHORT_CONV_GRAD = KernelSpec(
    "short_conv_grad", (BACKWARD, BACKWARD_TAPS), _depthwise_grad, _sample_grad, registers=80,
    form=lambda g, *args, **static: _form(*args, **static), forms=_FORMS, takes=(("g", "T"), *_TAKES))
