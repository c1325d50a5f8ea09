"""The linear recurrence's kernels: both twins, through the shipped launchers, against float64 NumPy."""

import ml_dtypes
import numpy as np
import pytest

from ember_ml.errors import UnsupportedDtype
from ember_ml.kernels import LINEAR_SCAN, LINEAR_SCAN_GRAD, source_text
from ember_ml.kernels.selfcheck import fault
from tests.simt import KernelFault

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}

#: one rounding of what is stored, and float32's error in between
ROUNDING = {"float32": 1e-5, "float16": 2.0 ** -10, "bfloat16": 2.0 ** -7}

#: (batch, length, width): one of each, fewer than 8 elements, lanes and tiles full, not full, several
SIZES = [(1, 1, 1), (2, 3, 1), (2, 7, 3), (1, 64, 32), (3, 70, 33), (1, 200, 5), (2, 129, 64)]


def case(batch, length, width, dtype="float32"):
    """a, b, initial, g, g_final; among the decays are 0, 1 - 1e-7 and negative ones."""
    rng = np.random.default_rng([batch, length, width])
    a = rng.uniform(0.0, 1.0, (batch, length, width))
    a = np.where(rng.random(a.shape) < 0.3, rng.choice([0.0, 1.0 - 1e-7, -0.9], a.shape), a)
    b, g = (rng.standard_normal(a.shape) for _ in range(2))
    initial, g_final = (rng.standard_normal((batch, width)).astype(np.float32) for _ in range(2))
    a, b, g = (x.astype(DTYPES[dtype]) for x in (a, b, g))
    return a, b, initial, g, g_final


def forward(a, b, initial):
    """Definition of the op in float64."""
    h, states = initial.astype(np.float64), []
    for t in range(a.shape[1]):
        h = a[:, t].astype(np.float64) * h + b[:, t].astype(np.float64)
        states.append(h)
    return np.stack(states, 1), h


def forward_complex(a, b):
    h, states = np.zeros(b[:, 0].shape, np.complex128), []
    for t in range(a.shape[1]):
        h = a[:, t] * h + b[:, t]
        states.append(h)
    return np.stack(states, 1)


def backward(g, g_final, a, h, initial):
    """Its gradients in float64, for states as they were stored."""
    g, lam, a, h, initial = (x.astype(np.float64) for x in (g, g_final, a, h, initial))
    d_a, d_b = np.zeros_like(a), np.zeros_like(a)
    for t in reversed(range(a.shape[1])):
        lam = lam + g[:, t]
        d_b[:, t], d_a[:, t] = lam, lam * (h[:, t - 1] if t else initial)
        lam = a[:, t] * lam
    return d_a, d_b, lam


def run(machine, name, *arrays):
    return [machine.numpy(x) for x in machine.kernels.KERNELS[name](*map(machine.array, arrays))]


def check(got, want, dtype):
    for i, (x, expected, kind) in enumerate(zip(got, want, dtype)):
        assert x.dtype == DTYPES[kind] and x.shape == expected.shape, i
        error = np.abs(x.astype(np.float64) - expected).max()
        assert error <= ROUNDING[kind] * max(1.0, np.abs(expected).max()), f"output {i}: {error:.2e}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward(machine, sizes, dtype):
    a, b, initial, _, _ = case(*sizes, dtype)
    check(run(machine, "linear_scan", a, b, initial), forward(a, b, initial), [dtype, "float32"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_backward(machine, sizes, dtype):
    a, b, initial, g, g_final = case(*sizes, dtype)
    h = forward(a, b, initial)[0].astype(DTYPES[dtype])
    check(run(machine, "linear_scan_grad", g, g_final, a, h, initial), backward(g, g_final, a, h, initial),
          [dtype, dtype, "float32"])


def test_strided_inputs(machine):
    a, b, initial, _, _ = case(2, 20, 6)
    wide = machine.array(np.ascontiguousarray(a.transpose(0, 2, 1))).swapaxes(1, 2)
    h, _ = machine.kernels.KERNELS["linear_scan"](wide, machine.array(b), machine.array(initial))
    check([machine.numpy(h)], forward(a, b, initial)[:1], ["float32"])


@pytest.mark.parametrize("sizes", [(2, 0, 3), (0, 4, 3), (2, 4, 0)])
def test_empty(machine, sizes):
    batch, length, width = sizes
    rows, state = np.zeros(sizes, np.float32), np.arange(batch * width, dtype=np.float32).reshape(batch, width)
    h, last = run(machine, "linear_scan", rows, rows, state)
    assert h.shape == sizes and np.array_equal(last, state)
    d_a, d_b, d_initial = run(machine, "linear_scan_grad", rows, state, rows, rows, state)
    assert d_a.shape == d_b.shape == sizes and np.array_equal(d_initial, state)


@pytest.mark.parametrize("position, wrong", [(1, np.float16), (2, np.float16)])
def test_other_dtypes_are_refused(machine, position, wrong):
    arrays = list(case(1, 3, 4)[:3])
    arrays[position] = arrays[position].astype(wrong)
    with pytest.raises(UnsupportedDtype, match="expected .* in float32, got float16"):
        run(machine, "linear_scan", *arrays)


def composite(name, *args):
    return forward(*args) if name == "linear_scan" else backward(*args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("spec", [LINEAR_SCAN, LINEAR_SCAN_GRAD], ids=lambda s: s.name)
def test_the_first_use_check_passes(machine, spec, dtype):
    """With the spec's own sample, as the op does it."""
    def compare():
        kinds = [DTYPES[kind] for kind in spec.kinds(dtype)]
        args = [np.array(v).astype(k) for v, k in zip(spec.sample(spec.forms[0]).arrays, kinds)]
        got = run(machine, spec.name, *args)
        return [(str(i), np.abs(x.astype(float) - y).max() / np.abs(y).max())
                for i, (x, y) in enumerate(zip(got, composite(spec.name, *args)))]
    assert fault(dtype, compare) == ""


@pytest.mark.parametrize("language", ["metal", "cuda"])
def test_two_halves_of_shared_memory_are_needed(request, language, monkeypatch):
    """With one half for all tiles, a fast simdgroup overwrites sums that a slow one still reads: a race too."""
    machine = request.getfixturevalue(language)
    if machine.kernels.__name__.startswith("ember_mlx"):
        import mlx.core as mx
        if mx.metal.is_available():
            pytest.skip("a GPU does not report races")
    text = source_text(language, "scan")
    assert text.count("tile & 1") == 1
    monkeypatch.setattr(machine.kernels, "source_text", lambda *_: text.replace("tile & 1", "0"))
    for cache in ("_kernel", "_module"):
        if hasattr(machine.kernels, cache):
            getattr(machine.kernels, cache).cache_clear()
    a, b, initial, _, _ = case(1, 200, 5)
    with pytest.raises(KernelFault):
        run(machine, "linear_scan", a, b, initial)


