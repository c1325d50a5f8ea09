"""Pairs sorted by expert, and their rows: both twins against NumPy's stable sort, through the shipped launchers."""

import ml_dtypes
import numpy as np
import pytest

from ember_ml.kernels import moe

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def case(tokens, slots, experts, nobody=False, seed=0):
    """ids (T, K), experts of very different load, the third without any."""
    rng = np.random.default_rng([tokens, slots, experts, seed])
    ids = np.minimum(rng.geometric(0.3, (tokens, slots)) - 1, experts - 1)
    ids[ids == 2] = 0
    if nobody:
        ids[rng.random(ids.shape) < 0.2] = experts
    return ids.astype(np.int32)


def expected(ids, experts, block, rows, last):
    """The definition, pair by pair in a stable order."""
    flat = np.clip(ids.reshape(-1), 0, last)
    counts = np.bincount(flat, minlength=experts + 1)
    offsets = np.concatenate([[0], np.cumsum(-(-counts[:experts] // block) * block)])
    order, inverse, taken = np.full(rows, flat.size), np.empty(flat.size, int), offsets.copy()
    for pair, e in enumerate(flat):
        inverse[pair], order[taken[e]] = taken[e], pair
        taken[e] += 1
    return order, inverse.reshape(ids.shape), offsets


def run(machine, ids, experts, block, last):
    rows = ids.size if block == 1 else (-(-ids.size // block) + experts) * block
    out = machine.kernels.KERNELS["moe_plan"](machine.array(ids), experts=experts, block=block, rows=rows, last=last)
    return [machine.numpy(x) for x in out], expected(ids, experts, block, rows, last)


@pytest.mark.parametrize("nobody", [False, True])
@pytest.mark.parametrize("block", [1, 8])
@pytest.mark.parametrize("tokens, slots, experts", [(1, 1, 1), (3, 2, 4), (5, 1, 300), (700, 2, 8)], ids=str)
def test_plan(machine, tokens, slots, experts, block, nobody):
    got, want = run(machine, case(tokens, slots, experts, nobody), experts, block, experts)
    for name, a, b in zip(("order", "inverse", "offsets"), got, want):
        assert a.dtype == np.int32 and a.shape == b.shape, name
        np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.mark.parametrize("last", [2, 3])
def test_ids_out_of_range_are_moved_to_the_nearest(machine, last):
    got, want = run(machine, np.array([[0, 3], [-1, 2 ** 31 - 1], [1, 0], [-2 ** 31, 1]], np.int32), 3, 1, last)
    for a, b in zip(got, want):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("pairs", [1, 511, 512, 513, 131072, 131073, 10 ** 7])
def test_a_part_is_whole_tiles_and_parts_are_few(pairs):
    each = moe.pairs_of_a_part(pairs)
    assert each % moe.TILE == 0 and -(-pairs // each) <= 256


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens, slots, width", [(1, 1, 1), (5, 2, 33), (9, 3, 16)], ids=str)
def test_gather(machine, tokens, slots, width, dtype):
    rng = np.random.default_rng([tokens, slots, width])
    x = rng.standard_normal((tokens, width)).astype(DTYPES[dtype])
    order = np.append(rng.permutation(tokens * slots), [tokens * slots, -1]).astype(np.int32)
    inverse = np.zeros((tokens, slots), np.int32)
    y = machine.numpy(machine.kernels.KERNELS["moe_gather"](*map(machine.array, (x, order, inverse))))
    assert y.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(y[:-2], x[order[:-2] // slots])
    assert not y[-2:].astype(np.float32).any()


@pytest.mark.parametrize("shape", [(0, 2, 4), (3, 0, 4), (3, 2, 0)], ids=["no tokens", "no slots", "no columns"])
def test_nothing_to_gather(machine, shape):
    tokens, slots, width = shape
    given = np.ones((tokens, width), np.float16), np.zeros(tokens * slots, np.int32), np.zeros((tokens, slots), np.int32)
    y = machine.numpy(machine.kernels.KERNELS["moe_gather"](*map(machine.array, given)))
    assert y.shape == (tokens * slots, width) and y.dtype == np.float16


def test_rows_that_begin_anywhere(cuda):
    """What moves 16 bytes at once gets memory that allows it."""
    x = cuda.array(np.arange(25, dtype=np.float32))[1:].reshape(3, 8)
    assert x.data.ptr % 16
    y = cuda.numpy(cuda.kernels.KERNELS["moe_gather"](x, cuda.array(np.array([2, 0, 1], np.int32)), cuda.array(np.zeros((3, 1), np.int32))))
    np.testing.assert_array_equal(y, np.arange(1, 25).reshape(3, 8)[[2, 0, 1]])
