"""The kernels of the elementwise linear recurrence (metal/scan.metal, cuda/scan.cu), and how they are launched."""

from __future__ import annotations

from ember_ml.kernels.gpu import Array, Channels, Gpu
from ember_ml.kernels.spec import LANES, ONE_FORM, Entry, Form, KernelSpec, Sample, sample_values

#: steps that a thread walks in one tile
STEPS = 8

#: segments, each STEPS steps of one thread, that a tile has at most. With 32 channels that is 256 threads on an Apple
#: GPU, which every kernel may have whatever registers it needs, and 512 on an NVIDIA one
SEGMENTS = {"metal": 8, "cuda": 16}

#: the same for the way back of the selective scan, where a thread needs more registers
BACK_SEGMENTS = 8

#: steps L and channels D of (B, L, D)
_SIZES = {first: ((first, 1), (first, 2)) for first in ("a", "g")}
_INITIAL = ("initial", "float32")

FORWARD = Entry("scan_linear_forward", (("a", "T"), ("b", "T"), _INITIAL), ("h", "h_final"), _SIZES["a"], "Totals")
BACKWARD = Entry("scan_linear_backward", (("g", "T"), ("g_final", "float32"), ("a", "T"), ("h", "T"), _INITIAL),
                 ("d_a", "d_b", "d_initial"), _SIZES["g"], "Totals")


def segments(language: str, length: int) -> int:
    """Segments of a tile for sequences of `length` >= 1 steps: a threadgroup's threads along y. "metal" or "cuda"."""
    return min(SEGMENTS[language], -(-length // STEPS))


def back_segments(length: int) -> int:
    """Segments of a tile on the way back of the selective scan."""
    return min(BACK_SEGMENTS, -(-length // STEPS))


def back_tiles(length: int) -> int:
    """Tiles of that way: so many states of each channel are kept."""
    return -(-length // (back_segments(length) * STEPS))


def _grid(gpu: Gpu, a: Array) -> Channels:
    batch, length, channels = a.shape
    return Channels(batch, channels, segments(gpu.language, length))


def _linear(gpu: Gpu, a: Array, b: Array, initial: Array) -> tuple[Array, Array]:
    """The state is float32 in between."""
    if 0 in a.shape:
        return gpu.zeros(b.shape, gpu.dtype(b), b), gpu.copy(initial)
    return gpu.launch(FORWARD, [a, b, initial], [(a.shape, gpu.dtype(a)), (initial.shape, "float32")], _grid(gpu, a))


def _linear_grad(gpu: Gpu, g: Array, g_final: Array, a: Array, h: Array, initial: Array) -> tuple[Array, Array, Array]:
    like = a.shape, gpu.dtype(a)
    if 0 in a.shape:
        return gpu.zeros(*like, a), gpu.zeros(*like, a), gpu.copy(g_final)
    return gpu.launch(BACKWARD, [g, g_final, a, h, initial], [like, like, (initial.shape, "float32")], _grid(gpu, a))


def _sample(*seeds: int) -> tuple[list, ...]:
    """(1, L, D) and (1, D) for each seed: tiles of both twins with one to spare, and the last one is not full."""
    length = 2 * STEPS * max(SEGMENTS.values()) + 37
    return tuple((sample_values(1, length, 9, seed=seed), sample_values(1, 9, seed=seed)) for seed in seeds)


def _forward_sample(_: Form) -> Sample:
    (a, initial), (b, _) = _sample(1, 2)
    return Sample((a, b, initial))


def _backward_sample(_: Form) -> Sample:
    (g, g_final), (a, initial), (h, _) = _sample(3, 1, 2)
    return Sample((g, g_final, a, h, initial))


#: linear_scan(a (B, L, D), b (B, L, D) of a's dtype, initial float32 (B, D)) -> h (B, L, D) in a's dtype, and the state
#: after the last step, float32 (B, D): h_t = a_t h_{t-1} + b_t
LINEAR_SCAN = KernelSpec("linear_scan", (FORWARD,), _linear, _forward_sample, registers=64, shared_bytes=8192)

#: linear_scan_grad(g (B, L, D), g_final float32 (B, D), a, h, initial) -> d_a, d_b (B, L, D) in g's dtype, d_initial
#: float32 (B, D), for the cotangents g and g_final of the two outputs of linear_scan; g, a and h have one dtype
LINEAR_SCAN_GRAD = KernelSpec("linear_scan_grad", (BACKWARD,), _linear_grad, _backward_sample, registers=80, shared_bytes=8192)

#: states of a channel in the selective scan, at most, as the kernels name them; at least two
STATES = 64

_FLOATS = tuple((name, "float32") for name in ("dt", "A", "B", "C", "D", "initial"))
SELECTIVE = Entry("scan_selective_forward", (("x", "T"), *_FLOATS), ("y", "last"), (("x", 1), ("x", 2), ("A", 1)), "States")


def _selective(gpu: Gpu, x: Array, dt: Array, A: Array, B: Array, C: Array, D: Array, initial: Array) -> tuple[Array, Array]:
    return gpu.launch(SELECTIVE, [x, dt, A, B, C, D, initial], [(x.shape, gpu.dtype(x)), (initial.shape, "float32")], _grid(gpu, x))


def _selective_sample(_: Form) -> Sample:
    length = STEPS * max(SEGMENTS.values()) + 13
    dt = [[[abs(v) for v in row] for row in sequence] for sequence in sample_values(1, length, 9, seed=5).tolist()]
    rates = [[-abs(v) for v in row] for row in sample_values(9, 2, seed=6).tolist()]
    return Sample((sample_values(1, length, 9, seed=4), dt, rates, sample_values(1, length, 2, seed=7), sample_values(1, length, 2, seed=8),
                   sample_values(9, seed=9), sample_values(1, 9, 2, seed=10)))


def _selective_form(x, dt, A, *_) -> Form | None:
    return ONE_FORM if 2 <= A.shape[1] <= STATES and 0 not in x.shape else None


#: selective_scan(x (B, L, D), and in float32 dt (B, L, D), A (D, N), B and C (B, L, N), D (D,), initial (B, D, N)) -> y (B, L, D)
#: in x's dtype, and the last state, float32 (B, D, N)
SELECTIVE_SCAN = KernelSpec("selective_scan", (SELECTIVE,), _selective, _selective_sample, registers=128, shared_bytes=16384,
                            form=_selective_form)

_STATES = (("x", "T"), *_FLOATS[:3], ("initial", "float32"))
_AXES = (("x", 1), ("x", 2), ("A", 1))
SELECTIVE_STATES = Entry("scan_selective_states", _STATES, ("entering",), _AXES, "States")
SELECTIVE_BACKWARD = Entry(
    "scan_selective_backward", (("g", "T"), ("g_last", "float32"), ("x", "T"), *_FLOATS[:-1], ("entering", "float32")),
    ("d_x", "d_dt", "d_A", "d_B", "d_C", "d_D", "d_initial"), _AXES, "BackStates")


def _selective_grad(gpu: Gpu, g: Array, g_last: Array, x: Array, dt: Array, A: Array, B: Array, C: Array, D: Array,
                    initial: Array) -> tuple[Array, ...]:
    """Two kernels: the states that enter each tile, then the way back. What each group of channels adds to A, B, C and D is summed here."""
    (batch, length, channels), states = x.shape, A.shape[1]
    grid, groups = Channels(batch, channels, back_segments(length)), -(-channels // LANES)
    entering, = gpu.launch(SELECTIVE_STATES, [x, dt, A, B, initial], [((batch, back_tiles(length), states, channels), "float32")], grid)
    shapes = (dt.shape, (batch, states, channels), (batch, groups, states, length), (batch, groups, states, length), (batch, channels),
              initial.shape)
    d_x, d_dt, d_A, d_B, d_C, d_D, d_initial = gpu.launch(
        SELECTIVE_BACKWARD, [gpu.cast(g, gpu.dtype(x)), g_last, x, dt, A, B, C, D, entering],
        [(x.shape, gpu.dtype(x)), *((shape, "float32") for shape in shapes)], grid)
    d_A, d_B, d_C = (gpu.contiguous(sums.swapaxes(-2, -1)) for sums in (d_A.sum(0), d_B.sum(1), d_C.sum(1)))
    return d_x, d_dt, d_A, d_B, d_C, d_D.sum(0), d_initial


def _selective_grad_sample(form: Form) -> Sample:
    given = _selective_sample(form).arrays
    return Sample((sample_values(*given[0].shape, seed=11), sample_values(1, 9, 2, seed=12), *given))


#: selective_scan_grad(g (B, L, D) of x's dtype, g_last float32 (B, D, N), and the arguments of selective_scan) -> gradients in
#: these, that in x in its dtype, the others float32
SELECTIVE_SCAN_GRAD = KernelSpec("selective_scan_grad", (SELECTIVE_BACKWARD, SELECTIVE_STATES), _selective_grad, _selective_grad_sample,
                                 registers=128, shared_bytes=24576, form=lambda g, g_last, *args: _selective_form(*args))
