"""Shapes, broadcasting and indexing as NumPy has them, for whatever shapes and indices Hypothesis thinks of: empty, scalar, of length one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ember_ml as em
from ember_ml import ops
from tests.conftest import ENGINES, require_engine

few = settings(max_examples=25)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
NAMED = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


@pytest.fixture(scope="module", params=ENGINES, autouse=True)
def engine(request):
    """Once an engine for the whole module: Hypothesis runs many examples in one test."""
    require_engine(request.param)
    with em.using(request.param):
        yield request.param


def numbers(shape):
    """Distinct whole numbers, exact in float32."""
    return np.arange(1, int(np.prod(shape)) + 1, dtype=np.float32).reshape(shape)


def same(got, want):
    assert got.shape == want.shape and np.array_equal(got.numpy(), want), f"{got.numpy()} is not {want}"


@few
@given(hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=3))
def test_three_operands_broadcast(shapes):
    a, b, c = (numbers(s) for s in shapes.input_shapes)
    same(em.tensor(a) * em.tensor(b) + em.tensor(c), a * b + c)
    same(ops.where(em.tensor(a) > 2, em.tensor(b), em.tensor(c)), np.where(a > 2, b, c))
    assert ops.broadcast_shapes(*shapes.input_shapes) == shapes.result_shape
    same(ops.broadcast_to(em.tensor(a), shapes.result_shape), np.broadcast_to(a, shapes.result_shape))


@few
@given(SHAPES, SHAPES)
def test_shapes_that_do_not_broadcast_are_refused(first, second):
    try:
        want = np.broadcast_shapes(first, second)
    except ValueError:
        with pytest.raises(em.ShapeError, match="add"):
            (em.ones(first) + em.ones(second)).numpy()
    else:
        assert (em.ones(first) + em.ones(second)).shape == want


@few
@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3))
def test_gradients_have_their_operands_shapes(shapes):
    a, b = (em.tensor(numbers(s)) for s in shapes.input_shapes)
    for mode in ("auto", "tape"):
        da, db = em.grad(lambda a, b: (a * b).sum(), (0, 1), mode=mode)(a, b)
        assert da.shape == a.shape and db.shape == b.shape
        repeats = np.prod(shapes.result_shape) / max(np.prod(a.shape), 1)
        if a.size and b.size:
            assert da.numpy().sum() == pytest.approx(np.broadcast_to(b.numpy(), shapes.result_shape).sum(), rel=1e-5)
            assert em.grad(lambda a: (a + b * 0.0).sum(), mode=mode)(a).numpy().ravel()[0] == repeats


@few
@given(NAMED, st.data())
def test_reductions(shape, data):
    x = numbers(shape)
    axis = data.draw(st.one_of(st.none(), hnp.valid_tuple_axes(len(shape))), "axis")
    axis = axis if axis is None or axis else None            # () is no reduction, which NumPy alone knows
    keepdims = data.draw(st.booleans(), "keepdims")
    for name in ("sum", "max", "min", "mean", "prod"):
        want = getattr(np, name)(np.minimum(x, 3), axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(getattr(ops, name)(ops.minimum(em.tensor(x), 3), axis=axis, keepdims=keepdims).numpy(), want, rtol=1e-5)


@few
@given(NAMED, st.data())
def test_moves_of_axes(shape, data):
    x, n = numbers(shape), len(shape)
    order = tuple(data.draw(st.permutations(range(n)), "order"))
    axis, at = data.draw(st.integers(-n, n - 1), "axis"), data.draw(st.integers(-n - 1, n), "at")
    t = em.tensor(x)
    same(ops.permute_dims(t, order), x.transpose(order))
    same(ops.permute_dims(ops.permute_dims(t, order), tuple(np.argsort(order).tolist())), x)
    same(ops.expand_dims(t, at), np.expand_dims(x, at))
    same(ops.squeeze(ops.expand_dims(t, at), at), x)
    same(ops.flip(t, axis=axis), np.flip(x, axis))
    same(ops.reshape(t, (-1,)), x.ravel())
    same(ops.roll(t, 2, axis), np.roll(x, 2, axis))
    same(ops.concat(ops.split(t, (1,) * x.shape[axis], axis=axis), axis=axis), x)
    same(ops.stack([t, t * 2.0], axis=at), np.stack([x, x * 2.0], at))


@few
@given(SHAPES, st.data())
def test_reading_and_writing_by_index(shape, data):
    """Ints, slices of any step, None and ... as NumPy reads them; writing changes what was read and nothing else."""
    x = numbers(shape)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True, allow_ellipsis=True), "index")
    t, want = em.tensor(x), x.copy()
    same(t[index], x[index])
    before = t[index]
    t[index] = -1.0
    want[index] = -1.0
    same(t, want)
    same(before, x[index])


@few
@given(NAMED, st.data())
def test_reading_by_tensors(shape, data):
    """One tensor of indices in the place of an axis, negative ones from the end, repeated ones too; its gradient counts them."""
    x, axis = numbers(shape), data.draw(st.integers(0, len(shape) - 1), "axis")
    n = shape[axis]
    i = data.draw(hnp.arrays(np.int32, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=3), elements=st.integers(-n, n - 1)), "i")
    index = (slice(None),) * axis
    same(em.tensor(x)[(*index, em.tensor(i))], x[(*index, i)])
    same(ops.take(em.tensor(x), em.tensor(i), axis=axis), np.take(x, i, axis))
    counts = np.bincount((i % n).ravel(), minlength=n).astype(np.float32)
    got = em.grad(lambda x: ops.take(x, em.tensor(i), axis=axis).sum())(em.tensor(x))
    same(got, np.broadcast_to(counts.reshape([-1 if a == axis else 1 for a in range(len(shape))]), shape))


@few
@given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3))
def test_products_of_matrices(n, k, m, lead):
    a, b = numbers((*lead.input_shapes[0], n, k)), numbers((*lead.input_shapes[1], k, m))
    same(ops.matmul(em.tensor(a), em.tensor(b)), np.matmul(a, b))
    same(ops.einsum("...ij,...jk->...ik", em.tensor(a), em.tensor(b)), np.matmul(a, b))
