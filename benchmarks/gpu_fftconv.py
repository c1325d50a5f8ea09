"""The CUDA kernels of the long convolution against torch.fft on an NVIDIA GPU.

    python benchmarks/gpu_fftconv.py results.json [--seconds 110] [--skip-variants] [--skip-compile]

First every length is checked against float64 on fresh random numbers, outputs being filled with NaN before; then plans are
compared with each other, then with torch: CUDA events, medians of interleaved runs, inputs that are larger than the L2
cache. Needs torch, CuPy, and this checkout on PYTHONPATH. Its parts are in fftconv_gpu/.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import cupy
import torch

from benchmarks.fftconv_gpu.cases import HEADS, LENGTHS, ROWS, case
from benchmarks.fftconv_gpu.check import check
from benchmarks.fftconv_gpu.marks import compiled, marks
from benchmarks.fftconv_gpu.measure import bandwidth, elapsed, free, say
from benchmarks.fftconv_gpu.report import print_tables, say_errors
from benchmarks.fftconv_gpu.special import check_special, special
from benchmarks.fftconv_gpu.variants import compare_plans, compare_workspaces
from benchmarks.fftconv_gpu.warm import compile_all, warm_calls


class Run:
    """Fills `out` stage by stage, as long as time is left, and keeps it after each."""

    def __init__(self, results: str, seconds: float):
        self.path, self.seconds = Path(results), seconds
        self.out: dict = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "cupy": cupy.__version__}

    def keep(self):
        self.out["seconds"] = elapsed()
        self.path.write_text(json.dumps(self.out, indent=1, default=str))

    def stage(self, name: str, fn: Callable, reserve: float = 0.0):
        if elapsed() > self.seconds - reserve:
            return say(f"{name}: no time left")
        try:
            self.out[name] = fn()
        except Exception as error:
            self.out[name + "_failed"] = traceback.format_exc()
            say(f"{name} failed: {type(error).__name__}: {str(error)[:300]}")
        self.keep()
        say(f"{name} done")

    def table(self, name: str, lengths: tuple[int, ...], kinds: list[tuple]):
        """A stage with a row for each length and (gated, step, dtype)."""
        def fill():
            rows = []
            for gated, step, dtype in kinds:
                for length in lengths:
                    if elapsed() > self.seconds - 5:
                        return rows
                    try:
                        row = case(*((1, 256) if length == 1 << 20 else (ROWS // HEADS, HEADS)), length, dtype, gated, step,
                                   7 if length < 32768 else 3)
                    except Exception as error:
                        say(f"L={length} {dtype} gated={gated} step={step}: {type(error).__name__}: {str(error)[:150]}")
                        free()
                        continue
                    rows += [row] if row else []
                self.keep()
            return rows
        self.stage(name, fill)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results")
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--skip-variants", action="store_true")
    parser.add_argument("--skip-compile", action="store_true")
    args = parser.parse_args()
    run = Run(args.results, args.seconds)
    out = run.out
    say(f"{out['device']}, torch {out['torch']}, cupy {out['cupy']}")
    run.stage("compile", lambda: compile_all(warm_calls(args.skip_variants)))
    run.stage("check", lambda: check() + check_special())
    run.stage("copy_GBs", bandwidth)
    say_errors(out.get("check", []))

    full, half = torch.float32, torch.bfloat16
    gates = [(True, True, full), (True, False, full)]
    others = [(False, False, full), (False, True, full), (True, True, half), (False, False, half), (True, False, half),
              (False, True, half)]
    run.table("table_long", LENGTHS[4:], gates + others)
    run.table("table_gated", LENGTHS[:4], gates)
    run.stage("marks", marks)
    run.stage("special", special)
    if not args.skip_variants:
        run.stage("plans", compare_plans, 15)
        run.stage("workspaces", compare_workspaces, 10)
    run.table("table_short", LENGTHS[:4], others)
    if not args.skip_compile:
        run.stage("torch_compile", compiled, 15)

    print_tables(out)
    bad = sum(not r["ok"] for r in out.get("check", []))
    say(f"copy {out.get('copy_GBs', float('nan')):.0f} GB/s, {bad} errors beyond the contract")
    run.keep()
    sys.exit(1 if bad or not out.get("check") else 0)


if __name__ == "__main__":
    main()
