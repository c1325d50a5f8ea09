"""The engine that knows shapes alone: it has every primitive, computes the shapes that NumPy does, counts, and refuses what is too large."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops import REGISTRY


def outline(**limits):
    return em.backend.get("numpy").outline(**limits)


def test_it_has_every_primitive():
    table = outline().table
    missing = [name for name, op in REGISTRY.items() if not op.is_composite and name not in table]
    assert not missing, f"say in ember_ml/backend/numpy/outline.py what kind of function each is (ELEMENTWISE, MOVES, ...): {missing}"


def test_products_are_counted_and_take_no_memory():
    o = outline()
    with em.using(o):
        x, w = em.ops.zeros((5, 100_000)), em.ops.zeros((200_000, 100_000))
        y = em.ops.linear(x, w)
        assert y.shape == (5, 200_000) and o.flops == 2 * 5 * 100_000 * 200_000
        assert (y + y).shape == y.shape and o.flops == 2 * 5 * 100_000 * 200_000 + 5 * 200_000
        before = o.flops
        em.ops.rfft(em.ops.zeros((3, 1024)))
        assert o.flops - before == 0.5 * 5 * 3 * 1024 * 10


def test_limits():
    with em.using(outline(limit=1000, budget=2500)):
        em.ops.zeros((1000,))
        with pytest.raises(ShapeError, match="at most 1000 elements, .* got 1001"):
            em.ops.zeros((1001,))
        for make in (lambda: em.ops.arange(10 ** 15), lambda: em.ops.linspace(0.0, 1.0, 10 ** 15),
                     lambda: em.random.uniform(em.random.key(0), (10 ** 8, 10 ** 8))):
            with pytest.raises(ShapeError, match="at most 1000 elements"):
                make()
    with em.using(outline(limit=1000, budget=2500)):
        with pytest.raises(ShapeError, match="in all"):
            [em.ops.zeros((1000,)) for _ in range(4)]


def test_ordinary_work_is_not_disturbed():
    before = np.asarray(em.tensor([1.0, 2.0], device="numpy").numpy())
    with em.using(outline()):
        assert em.tensor([3.0], device="numpy").backend is not em.backend.get("numpy")
    assert em.tensor([3.0], device="numpy").backend is em.backend.get("numpy") and before.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["sum", "mean", "max", "min"])
@pytest.mark.parametrize("kw", [{}, {"axis": 1}, {"axis": -1, "keepdims": True}, {"axis": (0, -1)}, {"axis": (0, -1), "keepdims": True}])
def test_reductions_of_one_number_are_those_of_numpy_and_take_no_time(name, kw):
    o = outline()
    with em.using(o):
        x, large, reduce = em.full((3, 4, 5), 2.0), em.full((1 << 15, 4, 1 << 20), 2.0), getattr(em.ops, name)
        np.testing.assert_allclose(reduce(x, **kw).numpy(), getattr(np, name)(np.full((3, 4, 5), 2.0, np.float32), **kw))
        assert o.flops == 60
        assert reduce(large, **kw).ndim == reduce(x, **kw).ndim and o.flops == 60 + large.size + 60
