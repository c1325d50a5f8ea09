"""Every op on every engine, in every dtype, against its definition; its gradients against each other and against slopes."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.ops.declare import REGISTRY
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.parity.cases import CASES
from ember_ml.parity.ops import cotangent, exact_gradients, form_rows, gradient_rows, value_rows
from tests.ops.rows import check

DIFFERENTIABLE = [c for c in CASES if c.grads and all(c.inputs[i].size for i in c.grads)]

_STEPS = "recurrences refuse batches and sequences of nothing: test_recurrence_misuse.py"
#: ops without a row of no elements, and why
NEVER_EMPTY = {
    **dict.fromkeys(("linear_scan_rows", "chunked_scan", "layered_scan_rows", "gated_scan_rows", "ltc_rows", "rnn_rows", "lstm_rows",
                     "gru_rows"), _STEPS),
    **dict.fromkeys(("convolve_rows", "convolve_grad", "fftconv_grad"), "only fftconv_rows, which has such a row, calls it, with elements"),
    "depthwise_grad": "only depthwise_rows, which has such a row, calls it, with elements",
    "selective_scan_grad": "only selective_scan_rows, which has such a row, calls it, with elements",
    "fold": "a key has two words",
}


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_value(backend, case):
    check(value_rows(case, backend))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_other_forms_of_inputs(backend, case):
    """Not contiguous in memory, without elements, without axes."""
    rows = form_rows(case, backend)
    if rows:
        check(rows)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda c: c.id)
def test_gradients(backend, case):
    """The engine's own and the tape's, against the tape's in float64 on NumPy, which the next test holds against slopes."""
    check(gradient_rows(case, backend))


@pytest.mark.parametrize("case", [c for c in DIFFERENTIABLE if c.name != "astype"], ids=lambda c: c.id)
def test_the_tape_is_the_slope(case):
    """Central differences of the definition, in float64, along a random direction; real and imaginary parts alike."""
    for dtype in {"complex64" if d.startswith("complex") else "float32" for d in case.dtypes if d.startswith(("float", "complex"))}:
        rng, h = np.random.default_rng(2), 1e-6
        c, inputs = cotangent(case, dtype), [a.astype({"f": "f8", "c": "c16"}.get(a.dtype.kind, a.dtype)) for a in case.arrays(dtype)]
        for i, g in zip(case.grads, exact_gradients(case, dtype)):
            direction = rng.standard_normal(inputs[i].shape)
            if inputs[i].dtype.kind == "c":
                direction = direction + 1j * rng.standard_normal(inputs[i].shape)
            up, down = ([a + s * h * direction if j == i else a for j, a in enumerate(inputs)] for s in (1, -1))
            slope = ((np.asarray(case.expect(*up)) - np.asarray(case.expect(*down))) * np.conj(c)).real.sum() / (2 * h)
            got = (g * np.conj(direction)).real.sum()
            assert got == pytest.approx(slope, rel=1e-5, abs=1e-6), f"input {i}, {dtype}"


@pytest.mark.parametrize("name", REGISTRY)
def test_every_op_has_a_row_and_a_gradient_or_a_reason(name):
    op, cases = REGISTRY[name], [c for c in CASES if c.name == name]
    assert cases, f"add a row for it to a file of ember_ml/parity/cases: row({name!r}, ops.{name}, [inputs], what NumPy says)"
    if op.vjp is None and not op.is_composite:
        assert op.no_grad, "give it a vjp, CONSTANT, or a stated no_grad"
    if op.vjp not in (None, CONSTANT):
        assert any(c.grads for c in cases), "its row differentiates nothing"
    assert op.body.__doc__ and op.body.__doc__.strip()
    assert name in NEVER_EMPTY or any(c.empty is not None or any(a.size == 0 for a in c.inputs) or c.label.endswith("nothing") for c in cases), \
        "say in its row which inputs may have a first axis of length zero, such as empty=(0,), or in NEVER_EMPTY why none may"
    kinds = {a.dtype.kind for c in cases for a in c.inputs}
    assert kinds.isdisjoint("fc") or all(c.single or "c" in {a.dtype.kind for a in c.inputs} or "float16" in c.dtypes for c in cases
                                         if not {a.dtype.kind for a in c.inputs}.isdisjoint("fc"))


def test_reasons_are_of_ops_that_are_there():
    assert NEVER_EMPTY.keys() <= REGISTRY.keys()


@pytest.mark.parametrize("name", REGISTRY)
def test_every_op_runs_on_every_engine(backend, name):
    assert REGISTRY[name].path(em.backend.get(backend)) != "none", f"a primitive: add a line to the table of {backend}, or give it a body of other ops"


def test_integer_products_as_a_gpu_makes_them():
    """torch has none on CUDA: the function that stands in, for every form of operands, with sums that wrap around."""
    import torch
    from ember_ml.backend.torch.linalg import integer_matmul

    rng = np.random.default_rng(0)
    for first, second in (((3, 4), (4, 2)), ((4,), (4, 2)), ((3, 4), (4,)), ((4,), (4,)), ((2, 1, 3, 4), (5, 4, 2))):
        a, b = (rng.integers(-2 ** 31, 2 ** 31, shape, dtype=np.int32) for shape in (first, second))
        got = integer_matmul(torch.from_numpy(a), torch.from_numpy(b))
        assert got.dtype is torch.int32 and np.array_equal(got.numpy(), np.matmul(a, b))
