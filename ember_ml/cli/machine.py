"""What `ember doctor` finds out about the machine: compilers, how fast matrix products are, and what to do about it."""

from __future__ import annotations

import shutil
import time

from ember_ml import backend as engines
from ember_ml.ops import full, matmul

#: what each compiler is for
COMPILERS = {"c++": ("c++", "g++", "clang++"), "nvcc": ("nvcc",)}


def compilers() -> dict[str, str | None]:
    """Where the compilers are that engines call: a C++ compiler (torch.compile, MLX on a CPU), nvcc (kernel tests)."""
    return {name: next((path for c in choices if (path := shutil.which(c))), None) for name, choices in COMPILERS.items()}


def gflops(device: str, size: int = 512) -> float:
    """10^9 operations a second of a float32 matrix product of that size, the best of five: enough to tell BLAS libraries apart."""
    x = full((size, size), 1.0 / size, device=device)
    runtime, best = x.backend.runtime, float("inf")
    for _ in range(5):
        start = time.perf_counter()
        runtime.synchronize([matmul(x, x).data])
        best = min(best, time.perf_counter() - start)
    return 2.0 * size ** 3 / best / 1e9


def advice(found: dict) -> list[str]:
    """What could be better here, a sentence or two each, from doctor's findings."""
    said, devices, mlx = [], found["devices"], found["engines"].get("mlx", {})
    if mlx.get("blas") == "reference":
        rate = devices["mlx:cpu"]["gflops"]
        said.append(f"MLX's wheel for Linux brings a reference BLAS (matrix products at {rate:.0f} GFLOP/s, measured now). Preload a fast "
                    "one: apt install libopenblas0-pthread, then LD_PRELOAD=libopenblas.so.0 ember ...; or train with --backend torch.")
    if not found["compilers"]["c++"] and ({"torch:cpu", "mlx:cpu"} & devices.keys()):
        said.append("No C++ compiler: torch.compile runs as it is, and MLX on a CPU cannot compile. Install g++ or clang.")
    if not any(engines.installed(name) for name in ("mlx", "torch", "cupy")):
        said.append('NumPy is the only engine: it is the reference, and slow. Install one that trains: pip install "ember-ml[torch]" '
                    'or "ember-ml[mlx]".')
    return said
