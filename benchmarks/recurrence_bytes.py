"""What every recurrence asks of a GPU, forward and backward: launches and bytes moved by the composite, counted on MLX's graph.

Nothing is computed: MLX is lazy, and the functions of its table are counted as they build the graph, each as one launch
that reads its inputs and writes its outputs once. Views (reshape, slices, broadcasts) count nothing. "least" is what one fused kernel
for the forward and one for the backward would move: inputs twice, output twice, cotangent and gradients once; the last column is
their quotient, the most that a kernel can gain where memory is the limit. mx.compile joins elementwise functions and lies in between.
"with scan" are the same counts where the elementwise scan is one launch, as it is with Ember's kernels on a GPU.

    python -m benchmarks.recurrence_bytes
"""

from __future__ import annotations

import mlx.core as mx

import ember_ml as em
from benchmarks.recurrence_memory import CASES
from benchmarks.timing import save
from ember_ml.ops import REGISTRY

#: no launch: MLX makes no copy for these, or one that the next function's kernel does as it reads
VIEWS = {"reshape", "permute_dims", "broadcast_to", "cut", "split_all"}


class Counter:
    """Counts the calls of an engine's table."""

    def __init__(self, backend):
        self.launches = self.bytes = 0
        for name, fn in list(backend.table.items()):
            if name not in VIEWS:
                backend.table[name] = self.counted(fn, backend.array_types)

    def counted(self, fn, types):
        def call(*args, **kw):
            out = fn(*args, **kw)
            arrays = [*args, *(out if isinstance(out, (tuple, list)) else [out])]
            self.launches += 1
            self.bytes += sum(a.nbytes for a in arrays if isinstance(a, types))
            return out
        return call


#: the launchers' signatures without their work
SCAN = {"linear_scan_rows": lambda a, b, initial: (mx.zeros_like(b), mx.zeros_like(initial)),
        "linear_scan_grad": lambda g, g_final, a, h, initial: (mx.zeros_like(a), mx.zeros_like(g), mx.zeros_like(initial))}


def count(name: str, counter: Counter, batch: int = 4, length: int = 4096, width: int = 256) -> dict[str, float]:
    """Of one gradient: launches, bytes moved, bytes of the inputs and outputs of one kernel forward and one backward."""
    inputs, fn = CASES[name](batch, length, width)
    out = fn(*inputs)
    counter.launches = counter.bytes = 0
    em.grad(lambda *args: (fn(*args) * out).sum(), tuple(range(len(inputs))), mode="tape")(*inputs)
    least = 3 * sum(x.data.nbytes for x in inputs) + 3 * out.data.nbytes
    return {"launches": counter.launches, "moved_MB": counter.bytes / 1e6, "least_MB": least / 1e6, "moved / least": counter.bytes / least}


def main():
    with em.using("mlx"):
        backend = em.ones((1,)).backend
        backend.runtime.compile = lambda fn: fn          # a compiled function would be counted once for all its calls
        counter = Counter(backend)
        rows = [{"case": name, **count(name, counter)} for name in CASES]
        for name, fn in SCAN.items():
            backend.table[name] = counter.counted(fn, backend.array_types)
            REGISTRY[name].resolved.clear()
        for row in rows:
            found = count(row["case"], counter)
            if found["launches"] < row["launches"]:
                row |= {"launches with scan": found["launches"], "moved / least with scan": found["moved / least"]}
        save("recurrence_bytes", rows)


if __name__ == "__main__":
    main()
