"""The MoE weighted combine and its gradients: both twins, through the shipped launchers, against float64 NumPy."""

import ml_dtypes
import numpy as np
import pytest

from ember_ml.errors import UnsupportedDtype
from ember_ml.kernels import MOE_COMBINE, MOE_COMBINE_BACKWARD
from ember_ml.kernels.selfcheck import fault

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

#: half a unit in the last place of what is stored; sums are made in float32 in every case
ROUNDING = {"float32": 2.0 ** -24, "float16": 2.0 ** -11, "bfloat16": 2.0 ** -8}

#: (tokens, slots, width): fewer than 8 pairs or elements, one column, odd sizes, several groups along both axes
SIZES = [(1, 1, 1), (3, 2, 1), (1, 3, 33), (5, 3, 33), (41, 2, 256), (67, 1, 300)]


def case(tokens, slots, width, dtype="float32", spare=0):
    """g, expert_out, inverse, weights; `spare` rows belong to no pair."""
    rng = np.random.default_rng([tokens, slots, width, spare])
    rows = tokens * slots + spare
    g = rng.standard_normal((tokens, width)).astype(DTYPES[dtype])
    expert_out = rng.standard_normal((rows, width)).astype(DTYPES[dtype])
    inverse = rng.permutation(rows)[:tokens * slots].reshape(tokens, slots).astype(np.int32)
    return g, expert_out, inverse, rng.random((tokens, slots), np.float32)


def forward(expert_out, inverse, weights):
    """Definition of the op in float64."""
    rows = expert_out.astype(np.float64)[np.clip(inverse, 0, len(expert_out) - 1)]
    return np.einsum("tkd,tk->td", rows, weights.astype(np.float64))


def backward(g, expert_out, inverse, weights):
    """Gradients of sum(g * forward(...)) in float64, pair by pair."""
    g, expert_out, weights = (x.astype(np.float64) for x in (g, expert_out, weights))
    d_rows, d_weights = np.zeros_like(expert_out), np.zeros_like(weights)
    for t, k in np.ndindex(*inverse.shape):
        row = inverse[t, k]
        d_weights[t, k] = g[t] @ expert_out[np.clip(row, 0, len(expert_out) - 1)]
        if 0 <= row < len(expert_out):
            d_rows[row] += weights[t, k] * g[t]
    return d_rows, d_weights


def check(got, expected, dtype, magnitude):
    """Within one rounding to dtype, plus float32's error for a sum whose terms have absolute values of `magnitude`."""
    assert got.dtype == DTYPES[dtype] and got.shape == expected.shape
    error = np.abs(got.astype(np.float64) - expected)
    smallest = float(ml_dtypes.finfo(DTYPES[dtype]).smallest_subnormal) / 2
    allowed = ROUNDING[dtype] * np.abs(expected) + 1e-6 * magnitude + smallest
    assert (error <= allowed).all(), f"error {error.max():.2e}, {(error / allowed).max():.2f} x allowed"


def run(machine, name, *arrays):
    out = machine.kernels.KERNELS[name](*map(machine.array, arrays))
    return [machine.numpy(x) for x in out] if isinstance(out, tuple) else machine.numpy(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward(machine, sizes, dtype):
    _, expert_out, inverse, weights = case(*sizes, dtype)
    y = run(machine, "moe_combine", expert_out, inverse, weights)
    check(y, forward(expert_out, inverse, weights), dtype, forward(np.abs(expert_out), inverse, weights))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_gradients(machine, sizes, dtype):
    arrays = case(*sizes, dtype, spare=2)
    d_rows, d_weights = run(machine, "moe_combine_backward", *arrays)
    rows, weights = backward(*arrays)
    g, expert_out, inverse, w = arrays
    magnitudes = backward(np.abs(g), np.abs(expert_out), inverse, w)
    check(d_rows, rows, dtype, magnitudes[0])
    check(d_weights, weights, "float32", magnitudes[1])
    unowned = np.setdiff1d(np.arange(len(expert_out)), inverse)
    assert len(unowned) == 2 and not d_rows[unowned].any()


def test_gradients_belong_to_the_forward(machine):
    """It is linear in rows and in weights: <g, op(rows', w)> = <d_rows, rows'>, <g, op(rows, w')> = <d_weights, w'>."""
    g, expert_out, inverse, weights = case(9, 2, 33)
    d_rows, d_weights = run(machine, "moe_combine_backward", g, expert_out, inverse, weights)
    rng = np.random.default_rng(1)
    rows, other = rng.standard_normal(expert_out.shape), rng.standard_normal(weights.shape)
    np.testing.assert_allclose((d_rows * rows).sum(), (g * forward(rows, inverse, weights)).sum(), rtol=1e-5)
    np.testing.assert_allclose((d_weights * other).sum(), (g * forward(expert_out, inverse, other)).sum(), rtol=1e-5)


def test_the_same_bits_twice(machine):
    arrays = case(41, 2, 256, "float16")
    for name, given in (("moe_combine", arrays[1:]), ("moe_combine_backward", arrays)):
        for a, b in zip(run(machine, name, *given), run(machine, name, *given)):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("sizes", [(3, 2, 5), (20, 2, 33)], ids=str)
def test_indices_out_of_range_read_and_write_nothing_foreign(machine, sizes):
    """They clamp where rows are read, and own no row where gradients are written."""
    g, expert_out, inverse, weights = case(*sizes)
    inverse[0, 0], inverse[0, 1], inverse[1, 0], inverse[1, 1] = -1, len(expert_out), -2 ** 31, 2 ** 31 - 1
    y = run(machine, "moe_combine", expert_out, inverse, weights)
    check(y, forward(expert_out, inverse, weights), "float32", forward(np.abs(expert_out), inverse, weights))
    d_rows, d_weights = run(machine, "moe_combine_backward", g, expert_out, inverse, weights)
    rows, expected = backward(g, expert_out, inverse, weights)
    magnitudes = backward(np.abs(g), np.abs(expert_out), inverse, weights)
    check(d_rows, rows, "float32", magnitudes[0])
    check(d_weights, expected, "float32", magnitudes[1])


@pytest.mark.parametrize("shape", [(0, 2, 8), (3, 0, 8), (3, 2, 0)], ids=["no tokens", "no slots", "no columns"])
def test_nothing_to_do(machine, shape):
    tokens, slots, width = shape
    arrays = case(tokens, slots, width, "float16", spare=1)
    assert run(machine, "moe_combine", *arrays[1:]).tolist() == np.zeros((tokens, width)).tolist()
    d_rows, d_weights = run(machine, "moe_combine_backward", *arrays)
    assert d_rows.tolist() == np.zeros((tokens * slots + 1, width)).tolist() and d_rows.dtype == np.float16
    assert d_weights.tolist() == np.zeros((tokens, slots)).tolist() and d_weights.dtype == np.float32


def test_strided_inputs(machine):
    g, expert_out, inverse, weights = case(5, 2, 33)
    wide, turned = np.repeat(expert_out, 2, axis=1), np.ascontiguousarray(inverse.T)
    y = machine.kernels.KERNELS["moe_combine"](machine.array(wide)[:, ::2], machine.array(turned).T, machine.array(weights))
    expected, magnitude = forward(expert_out, inverse, weights), forward(np.abs(expert_out), inverse, weights)
    check(machine.numpy(y), expected, "float32", magnitude)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [MOE_COMBINE, MOE_COMBINE_BACKWARD], ids=lambda s: s.name)
def test_the_sample_passes_the_first_use_check(machine, spec, dtype):
    """As an engine compares, against the definition in place of the composite; a row off would fail."""
    kinds = {"T": DTYPES[dtype], "int32": np.int32, "float32": np.float32}
    given = [np.array(x, kinds[kind]) for x, (_, kind) in zip(spec.sample(spec.forms[0]).arrays, spec.entries[0].inputs)]
    out = run(machine, spec.name, *given)
    got = [np.float64(x) for x in (out if isinstance(out, list) else [out])]
    reference = forward if spec is MOE_COMBINE else backward

    def compare(shift):
        shifted = [x if x.dtype != np.int32 else (x + shift) % 9 for x in given]
        expected = reference(*shifted)
        expected = expected if isinstance(expected, tuple) else (expected,)
        return [(str(i), np.abs(a - b).max() / np.abs(b).max()) for i, (a, b) in enumerate(zip(got, expected))]

    assert fault(dtype, lambda: compare(0)) == ""
    assert "0 differs" in fault(dtype, lambda: compare(1))


@pytest.mark.parametrize("change, message", [
    ({0: np.int32}, "moe_combine_forward: expected expert_out in float32 or float16 or bfloat16, got int32"),
    ({1: np.uint32}, "moe_combine_forward: expected inverse in int32, got uint32"),
    ({2: np.float16}, "moe_combine_forward: expected weights in float32, got float16"),
])
def test_other_dtypes_are_refused(machine, change, message):
    arrays = [a.astype(change.get(i, a.dtype)) for i, a in enumerate(case(5, 2, 33)[1:])]
    with pytest.raises(UnsupportedDtype, match=message):
        run(machine, "moe_combine", *arrays)


def test_a_gradient_of_another_dtype_is_refused(machine):
    g, *rest = case(5, 2, 33, "float16")
    with pytest.raises(UnsupportedDtype, match="backward_rows: expected expert_out in float32, got float16"):
        run(machine, "moe_combine_backward", g.astype(np.float32), *rest)
