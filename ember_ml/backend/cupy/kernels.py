"""Launches Ember's CUDA kernels through cupy.RawModule: what the kernels' host side (`ember_ml.kernels`) asks of CuPy.

Takes and returns cupy.ndarrays, or arrays of a library that `arrays.use` has made known, on the current device and stream. CuPy keeps
on disk what NVRTC has compiled.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import cupy
import numpy as np

from ember_ml.backend.cupy.arrays import C_TYPES, library_of
from ember_ml.kernels import ALL_SPECS, source_text
from ember_ml.kernels.spec import Entry, TemplateEntry

#: a cupy.ndarray, or what `arrays.use` has made known
Array = Any

_NULL = np.uint64(0)

#: bytes of shared memory that a block may ask for without more ado
_SHARED_MEMORY = 48 << 10


def _compiled(stem: str, expressions: list[str]):
    return cupy.RawModule(code=source_text("cuda", stem), options=("-std=c++17",), name_expressions=expressions)


@cache
def _module(stem: str, typed: bool, dtype: str):
    """The kernels of a file that are made for a dtype, or for none: compiled together, as most of the time goes into CUDA's headers."""
    entries = [entry for spec in ALL_SPECS if spec.stem == stem for entry in spec.entries if entry.typed == typed]
    return _compiled(stem, [_expression(entry, dtype) for entry in entries])


def _expression(entry: Entry, dtype: str) -> str:
    return f"{entry.name}<{C_TYPES[dtype]}>" if entry.typed else entry.name


@cache
def _kernel(entry: Entry, dtype: str):
    return _module(entry.stem, entry.typed, dtype if entry.typed else "").get_function(_expression(entry, dtype))


@cache
def _template(entry: TemplateEntry, types: tuple[str, ...], template: str, most_shared: int, device: int):
    """One kernel, compiled by itself: a process needs few of the many. It may ask for so many bytes of shared memory.

    `device`, the current one: CuPy sets what a kernel may ask for there alone.
    """
    arguments = ", ".join(filter(None, (*(C_TYPES[dtype] for dtype in types), template)))
    expression = f"{entry.name}<{arguments}>" if arguments else entry.name
    kernel = _compiled(entry.stem, [expression]).get_function(expression)
    kernel.max_dynamic_shared_size_bytes = most_shared     # belongs to the kernel, whoever launches it
    return kernel


@cache
def _own_dtype(entry: Entry, *dtypes: str) -> str:
    return entry.own_dtype(dtypes)


@cache
def _sizes(entry: Entry) -> list[tuple[int, int]]:
    """(number of the input, axis) of each size."""
    return [(entry.input_names.index(name), axis) for name, axis in entry.sizes]


_tables: dict[tuple, Array] = {}


def _made(outputs, like: Array) -> list[Array | None]:
    library = library_of(like)
    return [library.empty(*output, like) if isinstance(output, tuple) else output for output in outputs]


def _strided(library, x: Array | None, count: int) -> tuple[Array | None, tuple]:
    """(array, `count` of its strides) for a kernel: none is negative, and where it is told two of three, the last is 1."""
    if x is None:
        return None, (_NULL,) * count
    strides = library.strides(x)
    if strides is None or count == 2 and strides[2] != 1 and x.shape[2] > 1:
        x = library.aligned(x)
        strides = library.strides(x)
    return x, tuple(map(np.uint64, strides[:count]))


class Cuda:
    """`ember_ml.kernels.gpu.Gpu` for arrays of every library that `arrays` knows."""

    language = "cuda"

    def dtype(self, x: Array) -> str:
        return library_of(x).name(x)

    def cast(self, x: Array, dtype: str) -> Array:
        return library_of(x).cast(x, dtype)

    def zeros(self, shape, dtype: str, like: Array) -> Array:
        return library_of(like).full(shape, 0, dtype, like)

    def copy(self, x: Array) -> Array:
        return library_of(x).copy(x)

    def contiguous(self, x: Array) -> Array:
        return library_of(x).aligned(x)

    def widened(self, x: Array, columns: int) -> Array:
        wide = self.zeros((x.shape[0], columns), self.dtype(x), x)
        wide[:, :x.shape[1]] = x
        return wide

    def constants(self, make, arguments: tuple, like: Array) -> Array:
        library = library_of(like)
        key = library, library.device(like), make, arguments
        if key not in _tables:
            _tables[key] = library.floats(make(*arguments), like)
        return _tables[key]

    def in_turns(self, compute, some, few, axes, rows, filters, masks) -> tuple:
        return compute(**rows, **filters, **masks)

    def launch(self, entry: Entry, inputs, outputs, grid, numbers=(), filled=None) -> tuple[Array, ...]:
        library, like = library_of(inputs[0]), inputs[0]
        dtype = _own_dtype(entry, *map(library.name, inputs))
        inputs = [*map(library.aligned, inputs)]
        (shape, kind), *others = outputs
        made = _made(outputs, like) if filled is None else [library.full(shape, filled, kind, like), *_made(others, like)]
        sizes = [np.uint32(inputs[i].shape[axis]) for i, axis in _sizes(entry)]
        sizes += [np.float32(n) if isinstance(n, float) else np.uint32(n) for n in numbers]
        _kernel(entry, dtype)(*grid.cuda, (*map(library.argument, (*inputs, *made)), *sizes))
        return tuple(made)

    def launch_template(self, entry: TemplateEntry, inputs, outputs, grid, numbers=(), *, types=(), template="", shared=0) -> tuple:
        like = next(x for x in inputs if x is not None)
        library, made = library_of(like), _made(outputs, like)
        strided = [_strided(library, x, entry.strides) for x in inputs[:entry.strided]]
        arrays = [*(x for x, _ in strided), *inputs[entry.strided:], *made]
        _template(entry, types, template, max(4 * shared, _SHARED_MEMORY), library.device(like))(
            *grid.cuda, (*(_NULL if x is None else library.argument(x) for x in arrays), *map(np.uint32, numbers),
                         *(s for _, strides in strided for s in strides)), shared_mem=4 * shared)
        return tuple(made)


#: launcher by the name of its KernelSpec
KERNELS = {spec.name: partial(spec.launch, Cuda()) for spec in ALL_SPECS}
