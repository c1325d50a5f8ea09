"""Every op on every engine: value against float64 NumPy, gradients against central differences and against each other."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.ops.declare import REGISTRY
from ember_ml.ops.dispatch import CONSTANT
from tests.ops.cases import CASES, ELSEWHERE
from tests.ops.rows import COT, check_gradients, check_value, close, differentiable, expected, scalar, tensors

@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_value(backend, case):
    check_value(case)


@pytest.mark.parametrize("dtype, eps", [("float16", 2.0 ** -10), ("bfloat16", 2.0 ** -7)])
@pytest.mark.parametrize("case", [c for c in CASES if c.name in (
    "add", "multiply", "divide", "maximum", "negative", "abs", "exp", "tanh", "sqrt", "sum", "mean", "max", "matmul", "softmax",
    "layer_norm", "concat_all", "reshape", "take_axis", "where", "sigmoid", "gelu", "cumsum") and "integers" not in c.id],
    ids=lambda c: c.id)
def test_half_precision(backend, case, dtype, eps):
    inputs = [t.astype(dtype) if t.dtype.kind == "float" else t for t in tensors(case, "float32")]
    rounded = [t.astype("float32").numpy().astype(np.float64) if t.dtype.kind == "float" else t.numpy() for t in inputs]
    got = case.call(*inputs)
    assert str(got.dtype) == dtype
    close(got.astype("float32").numpy(), np.asarray(case.expect(*rounded)), 16 * eps, dtype)


DIFFERENTIABLE = [c for c in CASES if differentiable(c)]


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda c: c.id)
def test_native_gradient_is_the_tape_s(backend, case):
    check_gradients(case)


@pytest.mark.parametrize("case", [c for c in DIFFERENTIABLE if c.name != "astype"], ids=lambda c: c.id)
def test_the_tape_is_the_slope(case):
    cot = COT.standard_normal(expected(case).shape)
    with em.using("numpy"):
        grads = em.grad(scalar(case, cot), case.grads)(*tensors(case, "float64"))
    for i, g in zip(case.grads, grads):
        direction, h = COT.standard_normal(case.inputs[i].shape), 1e-6
        up, down = ([a + s * h * direction if j == i else a for j, a in enumerate(case.inputs)] for s in (1, -1))
        slope = ((np.asarray(case.expect(*up)) - np.asarray(case.expect(*down))) * cot).sum() / (2 * h)
        got = (g.numpy() * direction).sum()
        assert got == pytest.approx(slope, rel=1e-5, abs=1e-6), f"input {i}"


@pytest.mark.parametrize("name", REGISTRY)
def test_every_op_has_a_row_and_a_gradient_or_a_reason(name):
    op = REGISTRY[name]
    assert name in ELSEWHERE or any(c.name == name for c in CASES), "add a row to tests/ops/cases.py"
    if op.vjp is None and not op.is_composite:
        assert op.no_grad, "give it a vjp, CONSTANT, or a stated no_grad"
    if op.vjp not in (None, CONSTANT):
        assert any(c.name == name and c.grads for c in CASES), "its row differentiates nothing"
    assert op.body.__doc__ and op.body.__doc__.strip()


@pytest.mark.parametrize("name", REGISTRY)
def test_every_op_runs_on_every_engine(backend, name):
    assert REGISTRY[name].path(em.backend.get(backend)) != "none"


def test_integer_products_as_a_gpu_makes_them():
    """torch has none on CUDA: the function that stands in, for every form of operands, with sums that wrap around."""
    import torch
    from ember_ml.backend.torch.base import integer_matmul

    rng = np.random.default_rng(0)
    for first, second in (((3, 4), (4, 2)), ((4,), (4, 2)), ((3, 4), (4,)), ((4,), (4,)), ((2, 1, 3, 4), (5, 4, 2))):
        a, b = (rng.integers(-2 ** 31, 2 ** 31, shape, dtype=np.int32) for shape in (first, second))
        got = integer_matmul(torch.from_numpy(a), torch.from_numpy(b))
        assert got.dtype is torch.int32 and np.array_equal(got.numpy(), np.matmul(a, b))
