"""Where memory is at its end: told as what it is, with what was asked for, on every engine that raises."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import OutOfMemory, ShapeError, is_out_of_memory, memory_told

#: rows whose outer product takes 4 PiB, which no machine has
LONG = 1 << 25

#: (what an engine raises, the amount as it is told); MLX's first line is of Metal, its second of a CPU
RAISED = [
    (MemoryError("Unable to allocate 4.00 PiB for an array with shape (33554432, 33554432) and data type float32"), "asked for 4 PiB"),
    (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"), "asked for 2.5 GiB"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                  "1125899906842624 bytes. Error code 12"), "asked for 1 PiB"),
    (MemoryError("Out of memory allocating 8,000,000 bytes (allocated so far: 512 bytes)."), "asked for 7.629 MiB"),
    (RuntimeError("[metal::malloc] Attempting to allocate 99 bytes which is greater than the maximum allowed buffer size of 9 bytes."),
     "asked for 99 bytes"),
    (RuntimeError("[malloc] Unable to allocate 1 bytes."), "asked for 1 bytes"),
    (RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"), ""),
    (MemoryError(), ""),
]


@pytest.fixture(params=["numpy", "torch"])
def raising(request):
    """Engines that raise here. On a CPU under Linux MLX ends the process instead."""
    with em.using(request.param):
        yield request.param


@pytest.mark.parametrize("call, where", [
    (lambda: em.ones((LONG, 1)) * em.ones((1, LONG)), r"multiply, given x=float32\[33554432, 1\], y=float32\[1, 33554432\]"),
    (lambda: em.ops.matmul(em.ones((LONG, 1)), em.ones((1, LONG))), "matmul, given"),
    (lambda: em.zeros((LONG, LONG)), r"full, a tensor of float32\[33554432, 33554432\]"),
    (lambda: em.grad(lambda x: (x * em.ones((1, LONG))).sum(), mode="tape")(em.ones((LONG, 1))), "multiply, given"),
])
def test_an_op_that_asks_for_too_much(raising, call, where):
    with pytest.raises(OutOfMemory, match=rf"{where}.*: out of memory on {raising}, asked for 4 PiB; take a smaller batch.*checkpoint"):
        call()


@pytest.mark.parametrize("error, asked", RAISED, ids=lambda x: str(x)[:24])
def test_what_engines_raise_is_understood(error, asked):
    with pytest.raises(OutOfMemory, match="the gradient: out of memory on mlx") as told, memory_told("mlx", lambda: "the gradient"):
        raise error
    assert asked in str(told.value) and ("asked for" in str(told.value)) == bool(asked)
    assert told.value.__cause__ is error and isinstance(told.value, MemoryError) and is_out_of_memory(told.value)


@pytest.mark.parametrize("error", [RuntimeError("sizes differ"), ValueError("cannot allocate a name"), ShapeError("out of memory")], ids=str)
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as left, memory_told("torch", lambda: "an op"):
        raise error
    assert left.value is error


def test_a_matrix_that_does_not_fit_is_still_of_a_wrong_shape(raising):
    with pytest.raises(ShapeError, match="matmul: expected arguments"):
        em.ops.matmul(em.tensor(np.ones((2, 3), np.float32)), em.ones((2, 3)))
