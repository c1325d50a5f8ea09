"""How the benchmarks measure and keep their results: interleaved runs, medians, ratios, one JSON a machine."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

RESULTS = Path(__file__).with_name("results")


def compare(ours: Callable, peer: Callable, rounds: int = 21, warmup: int = 3) -> dict[str, float]:
    """Times two functions in turn.

    Returns: ours_s and peer_s, median seconds; ratio, the median of the pairwise ratios ours / peer, which noise that
    lasts longer than a pair does not touch.
    """
    for _ in range(warmup):
        ours()
        peer()
    a, b = [], []
    for _ in range(rounds):
        for fn, times in ((ours, a), (peer, b)):
            start = time.perf_counter()
            fn()
            times.append(time.perf_counter() - start)
    return {"ours_s": statistics.median(a), "peer_s": statistics.median(b),
            "ratio": statistics.median(x / y for x, y in zip(a, b))}


def gpu_seconds(fn: Callable, calls: int) -> float:
    """Seconds of one call on torch's GPU, by CUDA events around `calls` of them."""
    import torch
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        fn()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")), cpu)
    found = {"cpu": cpu, "cores": str(os.cpu_count()), "system": platform.system(), "python": platform.python_version()}
    for package in ("numpy", "torch", "mlx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def save(name: str, rows: list[dict]):
    """Prints the rows as a table and writes them to results/<name>-<system>-<cores>cores.json."""
    about = machine()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = [columns] + [[_cell(row.get(c, "")) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        sys.stdout.write("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() + "\n")
    sys.stdout.write("\n")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{about['system'].lower()}-{about['cores']}cores.json"
    path.write_text(json.dumps({"benchmark": name, "date": datetime.date.today().isoformat(), "machine": about, "rows": rows},
                               indent=1) + "\n", encoding="utf-8")


def _cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
