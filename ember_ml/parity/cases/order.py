"""Sorting and top-k. Ties go to the lower index on every engine."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.parity.cases.case import draws, row

real, ints = draws(4)

row("argsort", ops.argsort, [ints(4, 6)], lambda x: np.argsort(x, -1, kind="stable"), (), empty=(0,))
row("argsort", ops.argsort, [real(4, 6)], lambda x: np.argsort(x, -1, kind="stable"), (), label="numbers", empty=(0,))
row("argsort", lambda x: ops.argsort(x, axis=0, descending=True), [ints(6, 3, high=3)],
    lambda x: np.argsort(-x, 0, kind="stable"), (), label="descending, ties")
row("topk_indices", lambda x: ops.topk(x, 3)[0], [real(3, 4)], lambda x: -np.sort(-x, -1)[:, :3], (), empty=(0,))
row("topk_indices", lambda x: ops.topk(x * 0.5, 3)[1], [ints(9, 6, high=3).astype(float)],
    lambda x: np.argsort(-x, -1, kind="stable")[:, :3].astype(np.int32), (), label="ties")
row("topk_indices", lambda x: ops.topk(x * 0.5, 3)[1], [ints(3, 1500, high=3).astype(float)],
    lambda x: np.argsort(-x, -1, kind="stable")[:, :3].astype(np.int32), (), label="ties among many")
