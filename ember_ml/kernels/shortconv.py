"""The kernels of depthwise convolutions of few taps (metal/shortconv.metal, cuda/shortconv.cu)."""

from __future__ import annotations

from ember_ml.kernels.spec import Entry, KernelSpec, sample_values

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


def depthwise(forward, backward) -> tuple:
    """(short_conv, short_conv_grad) of a launcher's two functions."""
    def short_conv(x, weight, bias=None, *, anticausal=False, silu=False, channels_last=False):
        """y of `ember_ml.ops.conv.depthwise_rows`, summed in float32."""
        taps = (None, weight) if anticausal else (weight, None)
        return forward(x, *taps, bias=bias, silu=silu, flipped=True, channels_last=channels_last)

    def short_conv_grad(g, x, weight, bias=None, *, anticausal=False, silu=False):
        """Gradients of `short_conv` in x, (B, L, D), weight and bias; the last two are float32."""
        taps = (None, weight) if anticausal else (weight, None)
        dx, _, _, d_taps, d_ahead, _, d_bias = backward(g, x, *taps, bias=bias, silu=silu, flipped=True, channels_last=True)
        return dx, d_ahead if anticausal else d_taps, d_bias
    return short_conv, short_conv_grad


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


FORWARD = Entry("shortconv_forward", (("x", "T"), ("weight", "T"), ("bias", "T")), ("y",), ())
BACKWARD = Entry("shortconv_backward", (("g", "T"), *FORWARD.inputs), ("dx", "partial"), ())
BACKWARD_TAPS = Entry("shortconv_backward_taps", (("partial", "float32"),), ("d_weight", "d_bias"), ())


def _serves(x, weight, *_, **static) -> bool:
    return weight.shape[1] <= LONGEST and 0 not in x.shape


def _sample() -> tuple[list, ...]:
    """Two tiles and a bit, and fewer channels than lanes."""
    return sample_values(2, 3, TILE + 7, seed=1), sample_values(3, 5, seed=2), sample_values(3, seed=3)


#: short_conv(x (B, D, L), weight (D, K), bias (D,) or None, anticausal, silu, channels_last) -> y of `depthwise_rows` in x's dtype
SHORT_CONV = KernelSpec("short_conv", (FORWARD,), _sample, registers=48, serves=_serves, static={"silu": True})

#: short_conv_grad(g, x, weight, bias, anticausal, silu) -> dx (B, L, D) in x's dtype, d_weight and d_bias in float32, None without one
SHORT_CONV_GRAD = KernelSpec("short_conv_grad", (BACKWARD, BACKWARD_TAPS), lambda: (sample_values(2, 3, TILE + 7, seed=4), *_sample()),
                             registers=80, serves=lambda g, *args, **static: _serves(*args), static={"silu": True})
