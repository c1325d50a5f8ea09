"""Memory and time of every recurrence, forward and backward: bytes over those of inputs and outputs, and the slope in L.

Each case runs in a process of its own (Linux). MLX counts what its allocator holds; for NumPy and torch it is the growth
of the process's largest resident size. "io" is what must be there anyhow: inputs, output, the output's cotangent, and the gradients
of the inputs. Target: peak <= 2 io + workspace at L = 4096, width 256, batch 4; time(65,536) / time(4096) near 16.

    python -m benchmarks.recurrence_memory            # all; or with names of cases
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import ember_ml as em
from ember_ml import ops
from ember_ml.ops.recurrence import cells, gated_scan

ENGINES = ("numpy", "torch:cpu", "mlx")


def normal(i, *shape):
    return em.random.normal(em.random.fold_in(em.random.key(0), i), shape)


def decay(i, *shape):
    return em.random.uniform(em.random.fold_in(em.random.key(1), i), shape, 0.9, 1.0)


def linear_scan(B, L, D):
    return [decay(0, B, L, D), normal(1, B, L, D)], lambda a, b: ops.linear_scan(a, b)[0]


def selective_scan(B, L, D, N=16):
    inputs = [normal(0, B, L, D), decay(1, B, L, D) * 0.1, -decay(2, D, N), normal(3, B, L, N), normal(4, B, L, N), normal(5, D)]
    return inputs, lambda *args: ops.selective_scan(*args)[0]


def wkv(B, L, D):
    return [normal(0, B, L, D), normal(1, B, L, D), decay(2, D), normal(3, D)], lambda *args: ops.wkv(*args)[0]


def heads(i, B, L, D, H=4):
    return normal(i, B, L, H, D // H) * (D // H) ** -0.5


def log_decay(i, *shape):
    return ops.log(decay(i, *shape))


def linear_attention(B, L, D):
    return [heads(i, B, L, D) for i in range(3)], lambda *args: ops.linear_attention(*args)[0]


def per_head(B, L, D):
    return [*(heads(i, B, L, D) for i in range(3)), log_decay(3, B, L, 4, 1)], lambda *args: ops.linear_attention(*args)[0]


def per_channel(B, L, D):
    return [*(heads(i, B, L, D) for i in range(3)), log_decay(3, B, L, 4, D // 4)], lambda *args: ops.linear_attention(*args)[0]


def gated_delta_rule(B, L, D):
    inputs = [*(heads(i, B, L, D) for i in range(3)), decay(3, B, L, 4), log_decay(4, B, L, 4)]
    return inputs, lambda *args: ops.gated_delta_rule(*args)[0]


def delta_rule(B, L, D):
    inputs = [*(heads(i, B, L, D) for i in range(4)), -heads(3, B, L, D), log_decay(4, B, L, 4, D // 4)]
    return inputs, lambda *args: ops.delta_rule(*args)[0]


def mlstm(B, L, D):
    return [*(heads(i, B, L, D) for i in range(3)), normal(3, B, L, 4), normal(4, B, L, 4) + 3.0], lambda *args: ops.mlstm(*args)[0]


def recurrent(fn, gates):
    """A layer with its input's product, weights as torch lays them."""
    def case(B, L, D):
        inputs = [normal(0, B, L, D), normal(1, gates * D, D) * D ** -0.5, normal(2, gates * D, D) * D ** -0.5, normal(3, gates * D)]
        return inputs, lambda *args: fn(*args)[0]
    return case


def slstm(B, L, D, H=4):
    """The scan alone: its input is what the input brings to the four gates."""
    R = normal(1, H, D // H, 4 * D // H) * (D // H) ** -0.5
    return [normal(0, B, L, 4 * D), R], lambda x, R: gated_scan(cells.SLSTM, x, R)[0]


def cfc(B, L, D):
    inputs = [normal(0, B, L, D), normal(1, D, 2 * D) * D ** -0.5, normal(2, D), normal(3, 4 * D, D) * D ** -0.5, normal(4, 4 * D)]
    return inputs, lambda x, w, b, heads, offset: ops.cfc(x, [(w, b)], (heads, offset))[0]


def ltc(B, L, D):
    """D / 8 neurons: each step forms a number for every pair of them, six times."""
    n = D // 8
    synapses = [decay(i, m, n) for m in (n, n) for i in range(4)]
    inputs = [normal(0, B, L, n), *synapses, *(decay(i, n) for i in range(4, 7))]
    return inputs, lambda x, *w: ops.ltc(x, w[:4], w[4:8], *w[8:])[0]


CASES = {"linear_scan": linear_scan, "selective_scan": selective_scan, "wkv": wkv, "linear_attention": linear_attention,
         "linear_attention, decay per head": per_head, "linear_attention, decay per channel": per_channel,
         "gated_delta_rule": gated_delta_rule, "delta_rule, decay per channel": delta_rule, "mlstm": mlstm,
         "rnn": recurrent(ops.rnn, 1), "lstm": recurrent(ops.lstm, 4), "gru": recurrent(ops.gru, 3), "slstm": slstm, "cfc": cfc, "ltc": ltc}


def measure(name: str, engine: str, batch: int, length: int, width: int) -> dict[str, float]:
    """Runs one gradient in this process."""
    with em.using(engine):
        warm, fn = CASES[name](1, 64, width)
        inputs, fn = CASES[name](batch, length, width)
        runtime = inputs[0].backend.runtime

        def gradient(inputs):
            cot = fn(*inputs).ones_like()
            return em.grad(lambda *args: (fn(*args) * cot).sum(), tuple(range(len(inputs))))(*inputs)

        runtime.synchronize([x.data for x in inputs])
        runtime.synchronize([g.data for g in gradient(warm)])
        if engine == "mlx":
            import mlx.core as mx
            mx.clear_cache()
            runtime.reset_peak_memory()
            before = 0
        else:
            Path("/proc/self/clear_refs").write_text("5")    # the largest resident size starts anew
            before = _status("VmRSS") - sum(_bytes(x) for x in inputs)
        start = time.perf_counter()
        grads = gradient(inputs)
        runtime.synchronize([g.data for g in grads])
        seconds = time.perf_counter() - start
        peak = runtime.peak_memory() if engine == "mlx" else _status("VmHWM")
        output = fn(*(x[:, :1] if x.ndim > 2 and x.shape[1] == length else x for x in inputs))
        io = 2 * sum(_bytes(x) for x in inputs) + 2 * _bytes(output) * length
        return {"seconds": seconds, "peak": peak - before, "io": io}


def _status(name: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def _bytes(x) -> int:
    return x.size * x.dtype.bits // 8


def alone(*args) -> dict[str, float]:
    """`measure` in a fresh process, on one thread: times of threads that wait for each other would say nothing about the slope."""
    out = subprocess.run([sys.executable, "-m", "benchmarks.recurrence_memory", "--one", json.dumps(args)], check=True,
                         stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    return json.loads(out.stdout.splitlines()[-1])


def main(names=()):
    from benchmarks.timing import save
    rows = []
    for name in names or CASES:
        for engine in ENGINES:
            big = alone(name, engine, 4, 4096, 256)
            short, long = alone(name, engine, 1, 4096, 64), alone(name, engine, 1, 65536, 64)
            rows.append({"case": f"{name}, {engine}", "peak_MB": big["peak"] / 1e6, "io_MB": big["io"] / 1e6,
                         "peak / io": big["peak"] / big["io"], "seconds": big["seconds"],
                         "time(65536) / time(4096)": long["seconds"] / short["seconds"],
                         "peak(65536) / peak(4096)": long["peak"] / short["peak"]})
            sys.stderr.write(f"{rows[-1]}\n")
    save("recurrence_memory", rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        sys.stdout.write(json.dumps(measure(*json.loads(sys.argv[2]))) + "\n")
    else:
        main(sys.argv[1:])
