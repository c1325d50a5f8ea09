"""The Python time that Ember's front end adds to one op: the public function against the engine's own entry, tiny arrays.

    python -m benchmarks.op_overhead
"""

from __future__ import annotations

import os

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import statistics
import subprocess
import sys
import timeit

import ember_ml as em
from benchmarks.timing import save
from ember_ml import ops
from ember_ml.ops import index, shape

CALLS, ROUNDS = 2000, 9


def cases(x, y):
    """(op's name, public function, arguments, static arguments), each an op with an entry in every engine's table."""
    condition = x > 0
    rows = [(name, getattr(ops, name), (x, y), {}) for name in (
        "add", "subtract", "multiply", "divide", "maximum", "minimum", "pow", "matmul", "equal", "less")]
    rows += [(name, getattr(ops, name), (x,), {}) for name in (
        "negative", "abs", "exp", "log", "sqrt", "sin", "cos", "tanh", "erf", "floor", "sign", "conj", "isfinite")]
    rows += [(name, getattr(ops, name), (x,), {"axis": -1}) for name in ("sum", "mean", "max", "min", "argmax", "cumsum", "flip")]
    rows += [("reshape", ops.reshape, (x, (4,)), {}), ("permute_dims", ops.permute_dims, (x, (1, 0)), {}),
             ("broadcast_to", ops.broadcast_to, (x, (3, 2, 2)), {}), ("cut", shape.cut, (x, 0, 1), {"axis": 0}),
             ("where", ops.where, (condition, x, y), {}), ("pad", ops.pad, (x, ((1, 0), (0, 0))), {}),
             ("rfft", ops.rfft, (x,), {}), ("get_at", index.get_at, (x,), {"index": (0,)})]
    return rows


def overhead(engine: str) -> tuple[float, float]:
    """(median, largest) seconds added per op."""
    with em.using(engine):
        x, y = em.tensor([[1.0, 2.0], [3.0, 4.0]]), em.tensor([[0.5, 2.5], [1.5, 0.25]])
    table, added = x.backend.table, []
    for name, public, args, static in cases(x, y):
        native = table[name]
        raw = [a.data if isinstance(a, em.EmberTensor) else a for a in args]
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(timeit.timeit(lambda: public(*args, **static), number=CALLS) / CALLS)
            theirs.append(timeit.timeit(lambda: native(*raw, **static), number=CALLS) / CALLS)
        added.append(statistics.median(ours) - statistics.median(theirs))
    return statistics.median(added), max(added)


def import_time() -> float:
    """Seconds of `import ember_ml` in a fresh process, NumPy included; the median of five."""
    code = ("import sys, time; t = time.perf_counter(); import ember_ml; t = time.perf_counter() - t; "
            "assert not {'mlx', 'torch', 'cupy'} & set(sys.modules); print(t)")
    return statistics.median(float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                                                  check=True).stdout) for _ in range(5))


def main():
    rows = []
    for engine in em.available():
        median, largest = overhead(engine)
        rows.append({"case": f"{engine}: added per op, microseconds", "median": median * 1e6, "largest": largest * 1e6,
                     "target": 1.5})
    rows.append({"case": "import ember_ml, seconds", "median": import_time(), "target": 0.3})
    save("op_overhead", rows)


if __name__ == "__main__":
    main()
