"""Operators with tensors and numbers on either side, and in place, against NumPy on every engine."""

import operator

import numpy as np
import pytest

import ember_ml as em

ARITHMETIC = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"]
COMPARISONS = ["lt", "le", "gt", "ge", "eq", "ne"]
BITS = ["and_", "or_", "xor", "lshift", "rshift"]
F, G = np.array([1.5, 2.0, 3.5], np.float32), np.array([2.0, 0.5, 1.25], np.float32)
I, J = np.array([1, 6, 12], np.int16), np.array([2, 3, 1], np.int16)


def same(got, wanted):
    assert got.dtype.name == wanted.dtype.name and np.allclose(got.numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize("name", ARITHMETIC + COMPARISONS + BITS)
def test_both_sides(backend, name):
    op = getattr(operator, name)
    for a, b, number in ((F, G, 2.0), (I, J, 2)) if name not in BITS + ["truediv"] else ((I, J, 2),) if name in BITS else ((F, G, 2.0),):
        same(op(em.tensor(a), em.tensor(b)), op(a, b))
        same(op(em.tensor(a), number), op(a, a.dtype.type(number)))
        same(op(number, em.tensor(a)), op(a.dtype.type(number), a))


@pytest.mark.parametrize("name", ["and_", "or_", "xor"])
def test_bools(backend, name):
    op, a, b = getattr(operator, name), np.array([True, True, False]), np.array([True, False, False])
    same(op(em.tensor(a), em.tensor(b)), op(a, b))
    same(op(em.tensor(a), True), op(a, True))
    same(~em.tensor(a), ~a)


def test_one_operand(backend):
    for op in (operator.neg, operator.pos, abs):
        same(op(em.tensor(F)), op(F))
    same(~em.tensor(I), ~I)
    m = np.arange(6, dtype=np.float32).reshape(2, 3)
    same(em.tensor(m) @ em.tensor(m.T.copy()), m @ m.T)


@pytest.mark.parametrize("name", [f"i{n.rstrip('_')}" for n in ARITHMETIC + BITS])
def test_in_place_leaves_others_alone(backend, name):
    op = getattr(operator, name)
    a, b = (I, J) if name in ("iand", "ior", "ixor", "ilshift", "irshift") else (F, G)
    x, wanted = em.tensor(a), a.copy()
    before = x
    x = op(x, em.tensor(b))
    same(x, op(wanted, b))
    assert np.array_equal(before.numpy(), a)


def test_numbers_out_of_scalars(backend):
    assert (bool(em.tensor(True)), int(em.tensor(3)), float(em.tensor(2.5)), complex(em.tensor(1 + 2j))) == (True, 3, 2.5, 1 + 2j)
    assert [5, 6, 7][em.tensor(1)] == 6
    with pytest.raises(TypeError, match="integer scalar tensor"):
        [5, 6][em.tensor(1.0)]
