"""The short depthwise convolution: both twins, through the shipped launchers, against its definition in float64."""

import ml_dtypes
import numpy as np
import pytest

from ember_ml.kernels import fftconv_form as long
from ember_ml.kernels import shortconv as plans
from tests.kernels import long_convolution

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

#: relative L2 error: one rounding of what is stored, and float32's in between
ALLOWED = {"float32": 1e-6, "float16": 1e-3, "bfloat16": 5e-3}


def case(batch, channels, length, taps, dtype="float32"):
    """x, weight, bias, and the output's gradient."""
    rng = np.random.default_rng([batch, channels, length, taps])
    shapes = ((batch, channels, length), (channels, taps), (channels,), (batch, channels, length))
    return [rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in shapes]


def convolve(x, lags):
    """sum of lags[lag][:, None] x[t - lag], 0 outside."""
    y, length = np.zeros_like(x), x.shape[2]
    for lag, w in lags.items():
        for t in range(max(lag, 0), min(length, length + lag)):
            y[:, :, t] += w * x[:, :, t - lag]
    return y


def definition(x, weight, bias, g, anticausal=False, silu=False):
    """y, dx, d_weight, d_bias in float64."""
    x, weight, g = (a.astype(np.float64) for a in (x, weight, g))
    taps, sign = weight.shape[1], -1 if anticausal else 1
    lags = {sign * (taps - 1 - j): weight[:, j] for j in range(taps)}
    z = convolve(x, lags) + (0.0 if bias is None else bias.astype(np.float64)[:, None])
    s = 1.0 / (1.0 + np.exp(-z))
    dz = g * (s * (1.0 + z * (1.0 - s)) if silu else 1.0)
    d_weight = np.stack([(convolve(x, {lag: np.ones(len(w))}) * dz).sum(axis=(0, 2)) for lag, w in lags.items()], axis=1)
    return [z * s if silu else z, convolve(dz, {-lag: w for lag, w in lags.items()}), d_weight,
            None if bias is None else dz.sum(axis=(0, 2))]


def run(machine, x, weight, bias, g, **static):
    """The same by the launchers, for arrays of the machine."""
    kernels, last = machine.kernels.KERNELS, static.pop("channels_last", False)
    found = (kernels["short_conv"](x, weight, bias, channels_last=last, **static), *kernels["short_conv_grad"](g, x, weight, bias, **static))
    y, dx, *rest = (None if a is None else machine.numpy(a) for a in found)
    return [y.swapaxes(1, 2) if last else y, dx.swapaxes(1, 2), *rest]


def check(got, expected, dtype):
    for name, a, want, kind in zip(("y", "dx", "d_weight", "d_bias"), got, expected, (dtype, dtype, "float32", "float32")):
        assert (a is None) == (want is None), name
        if a is not None:
            assert a.shape == want.shape and a.dtype == DTYPES[kind], name
            error = np.linalg.norm(a.astype(np.float64) - want)
            assert error <= ALLOWED[kind] * max(np.linalg.norm(want), 1e-30), f"{name}: {error:.1e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("static", [{}, {"silu": True}, {"anticausal": True, "silu": True}], ids=lambda s: " ".join(s) or "plain")
def test_forward_and_gradients(machine, static, dtype):
    """More channels than lanes, more steps than a tile."""
    given = case(2, 19, 70, 4, dtype)
    check(run(machine, *map(machine.array, given), **static), definition(*given, **static), dtype)


@pytest.mark.parametrize("batch, channels, length, taps", [
    (1, 1, 1, 1), (1, 1, 2, 7), (1, 8, 64, 8), (2, 8, 65, 9), (1, 17, 128, 3), (1, 8, 90, 33), (1, 8, 140, 64), (1, 8, 20, 64)])
def test_sizes(machine, batch, channels, length, taps):
    """Fewer than 8 elements, windows longer than the sequence, and of every number of groups of taps."""
    given = case(batch, channels, length, taps)
    check(run(machine, *map(machine.array, given), silu=True), definition(*given, silu=True), "float32")


@pytest.mark.parametrize("steps", ["time", "channels"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_any_strides(machine, steps, channels_last):
    """Every second number of every second channel, as slices of a larger array; nothing but these is read."""
    x, weight, bias, g = case(2, 18, 75, 3)
    wide = [np.full((2, 40, 155), np.nan, np.float32) for _ in range(2)]
    places = (slice(None), slice(1, 37, 2), slice(2, 77)) if steps == "time" else (slice(None), slice(3, 21), slice(2, 152, 2))
    views = []
    for room, a in zip(wide, (x, g)):
        room[places] = a
        made = machine.array(room if steps == "time" else np.ascontiguousarray(room.swapaxes(1, 2)))
        views.append((made if steps == "time" else made.swapaxes(1, 2))[places])
    got = run(machine, views[0], machine.array(weight), machine.array(bias), views[1], channels_last=channels_last)
    check(got, definition(x, weight, bias, g), "float32")


def test_no_bias(machine):
    x, weight, _, g = case(1, 8, 9, 3)
    native = [machine.array(a) for a in (x, weight, g)]
    check(run(machine, *native[:2], None, native[2], silu=True), definition(x, weight, None, g, silu=True), "float32")


@pytest.mark.parametrize("silu", [False, True])
def test_what_is_not_finite_stays_within_reach(machine, silu):
    """An infinite input before another sequence's row and a NaN in the middle: outputs and gradients elsewhere keep their bits."""
    x, weight, bias, g = case(2, 8, 80, 3)
    clean = run(machine, *map(machine.array, (x, weight, bias, g)), silu=silu)
    bad_x, bad_g = x.copy(), g.copy()
    bad_x[0, 1, 62], bad_x[1, 2, 0], bad_g[1, 0, 79] = np.nan, np.inf, np.nan
    got = run(machine, *map(machine.array, (bad_x, weight, bias, bad_g)), silu=silu)
    reached = np.zeros(x.shape, bool)
    reached[0, 1, 62:65] = reached[1, 2, 0:3] = True
    assert np.array_equal(got[0][~reached], clean[0][~reached]) and not np.isfinite(got[0][0, 1, 62:65]).any()
    met = np.zeros(x.shape, bool)
    met[1, 0, 77:] = True
    if silu:                                               # the slope is taken where the output is not finite
        met[0, 1, 60:65] = met[1, 2, 0:3] = True
    assert np.array_equal(got[1][~met], clean[1][~met]) and np.isnan(got[1][1, 0, 77:]).all()


@pytest.mark.parametrize("parts", [1, 3])
def test_a_block_of_several_tiles_keeps_its_sums(machine, parts, monkeypatch):
    monkeypatch.setattr(plans, "BLOCKS", parts)
    given = case(2, 8, 150, 4)
    check(run(machine, *map(machine.array, given), silu=True), definition(*given, silu=True), "float32")


# ---------------------------------------------------------------- fftconv, where its filter is short
def direct_case(length, taps, ahead, options, dtype="float32"):
    arrays, g, _ = long_convolution.case(length, taps, options, dtype, batch=2, heads=8)
    if "k_reverse" in arrays:
        arrays["k_reverse"] = arrays["k_reverse"][:, :ahead]
    return arrays, g, False


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_convolution_of_few_taps(machine, dtype):
    given = direct_case(70, 5, 3, "D v q k_reverse", dtype)
    long_convolution.check(long_convolution.run(machine, *given), long_convolution.definition(*given), dtype)


@pytest.mark.parametrize("length, taps, ahead, options", [(1, 1, 1, "D v q k_reverse"), (3, 9, 7, "k_reverse D"), (130, 8, 25, "q k_reverse"),
                                                          (100, 32, 0, "v q"), (66, 2, 31, "v k_reverse D")])
def test_gates_skip_and_both_directions(machine, length, taps, ahead, options):
    given = direct_case(length, taps, ahead, options)
    native = {n: machine.array(x) for n, x in given[0].items()}
    assert long.is_direct(native["u"], native["k"], native.get("k_reverse"), None, False, 1)
    long_convolution.check(long_convolution.run(machine, *given), long_convolution.definition(*given), "float32")


@pytest.mark.parametrize("length, taps, ahead, direct", [(100, 32, 0, True), (100, 33, 0, False), (100, 16, 17, True), (100, 16, 18, False),
                                                         (1 << 17, 64, 0, True), (1 << 17, 65, 0, False), (1 << 22, 64, 1, True), (20, 90, 0, True)])
def test_the_rule_counts_the_work(length, taps, ahead, direct):
    """Up to 32 taps in one pass, 64 where the transform takes three; taps beyond the row are none."""
    u, k = np.broadcast_to(np.float32(0), (1, 1, length)), np.zeros((1, taps), np.float32)
    k_reverse = np.zeros((1, ahead), np.float32) if ahead else None
    assert long.is_direct(u, k, k_reverse, None, False, 1) == direct
    assert not long.is_direct(u, k, k_reverse, None, True, 1) and not long.is_direct(u, k, k_reverse, u, False, 1)
