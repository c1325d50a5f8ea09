"""Runs Metal and CUDA kernels on the CPU, every thread of them, and checks each load and store.

    build.py       compiles, with the clang of the `ziglang` wheel, into a cache folder
    executor.c     runs threads as fibers, to barriers and simdgroup operations; finds divergence
    checker.c      looks at each load and store: races, bounds, uninitialised and misaligned memory
    executor.py    launches a compiled kernel, turns faults into KernelFault
    image.py       which source line an instruction is of
    metal.py       stands in for mx.fast.metal_kernel; metal/ is what Metal's compiler brings
    cuda.py        stands in for cupy; cuda/ is what NVIDIA's compiler brings

It holds what Ember's kernels use, and grows with them. docs/kernels.md tells how to work with it.
"""

from tests.simt.build import CompileError, unavailable
from tests.simt.executor import KernelFault, Launch, counted, using

__all__ = ["CompileError", "KernelFault", "Launch", "counted", "unavailable", "using"]
