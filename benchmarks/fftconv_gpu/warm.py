"""Compiles ahead, on all cores, what the other stages launch: NVRTC does one kernel at a time in a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import cupy
import ml_dtypes

from benchmarks.fftconv_gpu import kernels
from benchmarks.fftconv_gpu.cases import LENGTHS, pair
from benchmarks.fftconv_gpu.check import check_cases
from benchmarks.fftconv_gpu.measure import say
from benchmarks.fftconv_gpu.variants import by_points, variants
from ember_ml.backend.cupy import kernels as launching

#: compiles kernels into CuPy's cache on disk
_WORKER = """
import json, sys
from ember_ml.backend.cupy import kernels
from ember_ml.kernels.spec import TemplateEntry
for name, types, template, *of_launch in json.load(sys.stdin):
    try:
        kernels._template(TemplateEntry(name, (), (), ()), tuple(types), template, *of_launch)
    except Exception as error:
        print(name, template, type(error).__name__, str(error)[:300].replace(chr(10), " "))
"""


def compile_all(work: list):
    """Compiles the kernels that the given calls launch, on all cores: NVRTC does one at a time in a process."""
    found, real = {}, launching._template

    def note(entry, *key):
        found[entry.name, *key] = None
        return lambda *_a, **_k: None
    launching._template = note
    for call in work:
        call()
    launching._template = real
    keys = sorted(found, key=lambda key: -max(int(n) for n in re.findall(r"\b\d+\b", key[2]) if int(n) <= 20))  # long ones first
    workers = []
    count = min(os.cpu_count() or 1, 16)
    for i in range(count):
        worker = subprocess.Popen([sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        worker.stdin.write(json.dumps(keys[i::count]))
        worker.stdin.close()
        workers.append(worker)
    for worker in workers:
        sys.stdout.write(worker.stdout.read())
        worker.wait()
    say(f"{len(found)} kernels compiled")


def warm_calls(skip_variants: bool) -> list:
    calls = []

    def add(two, length, dtype, gated):
        def call():
            x = cupy.zeros((1, 1, length), dtype)
            gates = {n: x for n in ("v", "q")} if gated else {}
            k = cupy.zeros((1, length), cupy.float32)
            f = kernels.spectrum(two[0], k, None) if all(two) and not gated else k
            if two[0]:
                kernels.forward(two[0], x, f, **gates)
            if two[1]:
                kernels.backward(two[1], x, x, f, length, **gates)
        calls.append(call)
    for length in (512, *LENGTHS):
        two = pair(length, length)
        for dtype in (cupy.float32, ml_dtypes.bfloat16):
            for gated in (False, True):
                if two is not None:
                    add(two, length, dtype, gated)

    def add_check(two, length, taps, full, reversed_, dtype):
        def call():
            x, one = cupy.zeros((1, 1, length), dtype), cupy.zeros((1, 1), cupy.float32)
            k = cupy.zeros((1, taps), cupy.float32)
            f = kernels.spectrum(two[0], k, k if reversed_ else None)
            extra = dict(D=one[0], v=x, q=x, mask=one, gelu=True) if full else {}
            kernels.forward(two[0], x, f, **extra)
            kernels.backward(two[1], x, x, f, taps, taps if reversed_ else 0, **extra)
        calls.append(call)
    for number, (length, taps, full, reversed_) in enumerate(check_cases()):
        if pair(length, taps) is not None:
            add_check(pair(length, taps), length, taps, full, reversed_,
                      (cupy.float32, cupy.float16, ml_dtypes.bfloat16)[number % 3])
    if not skip_variants:
        for m, (forward, backward) in variants().items():
            for p in by_points(forward, backward).values():
                calls.append(lambda p=p: kernels.spectrum(p, cupy.zeros((1, 1), cupy.float32), None))
            for p in forward:
                add((p, None), 1 << m, cupy.float32, False)
                add((p, None), 1 << m, cupy.float32, True)
            for p in backward:
                add((None, p), 1 << m, cupy.float32, True)
    return calls
