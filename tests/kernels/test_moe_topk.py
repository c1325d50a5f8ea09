"""The choice of the k largest: both twins against NumPy's stable sort, with ties, NaN and infinities."""

import ml_dtypes
import numpy as np
import pytest

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def expected(x, k):
    least, wide = float(np.finfo(np.float32).min), x.astype(np.float64)
    wide = np.where(wide > least, wide, least)
    return np.argsort(-wide, axis=-1, kind="stable")[..., :k]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, width, k", [(1, 1, 1), (3, 4, 4), (9, 33, 2), (20, 8, 3), (2, 130, 7)])
def test_choice(machine, rows, width, k, dtype):
    rng = np.random.default_rng([rows, width, k])
    x = (rng.integers(-3, 4, size=(rows, width)) / 2.0).astype(DTYPES[dtype])         # ties in almost every row
    x.reshape(-1)[rng.random(x.size) < 0.2] = -np.inf
    x.reshape(-1)[rng.random(x.size) < 0.1] = np.nan
    x.reshape(-1)[rng.random(x.size) < 0.05] = np.inf
    ids = machine.numpy(machine.kernels.KERNELS["moe_topk"](machine.array(x), k=k))
    assert ids.dtype == np.int32 and (ids == expected(x, k)).all()


def test_rows_without_a_number_take_the_first_places(machine):
    x = np.array([[np.nan] * 5, [-np.inf] * 5], np.float32)
    assert machine.numpy(machine.kernels.KERNELS["moe_topk"](machine.array(x), k=3)).tolist() == [[0, 1, 2]] * 2


@pytest.mark.parametrize("shape", [(0, 4), (2, 0, 4)], ids=str)
def test_nothing_to_do(machine, shape):
    assert machine.numpy(machine.kernels.KERNELS["moe_topk"](machine.array(np.zeros(shape, np.float32)), k=2)).shape == (*shape[:-1], 2)
