"""Products of matrices."""

from __future__ import annotations

import numpy as np

from ember_ml import ops
from ember_ml.parity.cases.case import draws, row

real, ints = draws(5)
X = real(3, 4)

row("matmul", ops.matmul, [X, real(4, 5)], np.matmul, also="ic", empty=(0,))
row("matmul", ops.matmul, [np.zeros((3, 0)), np.zeros((0, 2))], np.matmul, (), label="over nothing", also="ic")
for _label, _x, _y in [("batch with matrix", real(2, 3, 4), real(4, 5)), ("batches broadcast", real(2, 1, 3, 4), real(5, 4, 2)),
                       ("vector first", real(4), real(2, 4, 3)), ("vector second", real(2, 3, 4), real(4)), ("vectors", real(4), real(4))]:
    row("matmul", ops.matmul, [_x, _y], np.matmul, label=_label, also="ic")
row("addmm", ops.addmm, [real(3, 5), X, real(4, 5)], lambda c, x, y: c + x @ y, also="ic", empty=(0, 1))
row("addmm", ops.addmm, [real(5), real(2, 3, 4), real(4, 5)], lambda c, x, y: c + x @ y, label="c broadcasts")
row("linear_rows", ops.linear, [X, real(5, 4), real(5)], lambda x, w, b: x @ w.T + b, also="ic", empty=(0,))
row("linear_rows", ops.linear, [real(2, 3, 4), real(5, 4)], lambda x, w: x @ w.T, label="without bias")
row("linear_rows", ops.linear, [real(2, 40, 4), real(5, 4), real(5)], lambda x, w, b: x @ w.T + b, label="many rows")
