"""Time and memory of work on the GPU, in torch and in CuPy."""

from __future__ import annotations

import statistics
import sys
import time

import cupy
import ml_dtypes
import torch

START = time.perf_counter()


def elapsed() -> float:
    return time.perf_counter() - START


def say(text: str):
    sys.stdout.write(f"[{elapsed():5.1f} s] {text}\n")
    sys.stdout.flush()


def native(x: torch.Tensor | None):
    """The same memory as a cupy.ndarray."""
    if x is None:
        return None
    if x.dtype == torch.bfloat16:
        return cupy.from_dlpack(x.detach().view(torch.int16)).view(ml_dtypes.bfloat16)
    return cupy.from_dlpack(x.detach())


def to_torch(x):
    if x is None:
        return None
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_dlpack(x.view(cupy.int16)).view(torch.bfloat16)
    return torch.from_dlpack(x)


def free():
    """Gives cached memory back, so that the other library can have it."""
    torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()


def measure(functions: dict, rounds: int = 7) -> dict[str, list[float]]:
    """Milliseconds of each function in each round; a function takes the round's number, to change its inputs."""
    times: dict[str, list] = {name: [] for name in functions}
    for name, fn in list(functions.items()):
        try:
            fn(0), fn(1)
            torch.cuda.synchronize()
        except (torch.OutOfMemoryError, cupy.cuda.memory.OutOfMemoryError):
            say(f"{name}: out of memory")
            del functions[name]
            free()
    for i in range(rounds):
        for name, fn in functions.items():
            torch.cuda._sleep(1_000_000)                   # the host runs ahead, so that its own time does not count
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            fn(i)
            after.record()
            times[name].append((before, after))
    torch.cuda.synchronize()
    return {name: [a.elapsed_time(b) for a, b in pairs] for name, pairs in times.items()}


def median(times: dict, name: str) -> float:
    return statistics.median(times[name]) if times.get(name) else float("nan")


def ratio(times: dict, peer: str, ours: str) -> float:
    if not times.get(peer) or not times.get(ours):
        return float("nan")
    return statistics.median(p / o for p, o in zip(times[peer], times[ours]))


def bandwidth() -> float:
    a = torch.randn(1 << 29, device="cuda")
    b = torch.empty_like(a)
    return 8 * a.numel() / median(measure({"copy": lambda i: b.copy_(a)}), "copy") / 1e6


def our_peak(fn, output_bytes: int) -> int:
    """Bytes that a call takes from CuPy's pool beyond its outputs."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    out = fn()
    torch.cuda.synchronize()
    peak = pool.total_bytes() - before - output_bytes
    del out
    return max(peak, 0)


def torch_peak(fn, output_bytes: int) -> int:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = fn()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before - output_bytes
    del out
    return max(peak, 0)
