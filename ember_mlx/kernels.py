"""Launches Ember's Metal kernels through mx.fast.metal_kernel: what the kernels' host side (`ember_ml.kernels`) asks of MLX."""

from __future__ import annotations

import re
from functools import cache, lru_cache, partial

import mlx.core as mx

from ember_ml.kernels import ALL_SPECS, source_text
from ember_ml.kernels.spec import Entry, TemplateEntry
from ember_mlx.turns import in_turns


def available() -> bool:
    """Whether kernels can run: there is Metal, and MLX has not been told to compute on the CPU."""
    return mx.metal.is_available() and mx.default_device() == mx.gpu


def body(entry: Entry) -> str:
    """The source that MLX wraps into a kernel: one call of the entry's function in the .metal file."""
    sizes = [f"uint({name}_shape[{axis}])" for name, axis in entry.sizes]
    shared = f"threadgroup {entry.stem}::{entry.shared} shared; " if entry.shared else ""
    arguments = [*entry.input_names, *entry.outputs, *sizes, *entry.numbers, *(["shared"] if shared else []), "thread_position_in_grid"]
    return f"{shared}{entry.stem}::{entry.function}({', '.join(arguments)});"


def template_body(entry: TemplateEntry, template: str, shared: int, outputs: tuple[str, ...]) -> str:
    """The same for an entry that is a template. An output that is not there is another one, which the kernel leaves alone."""
    memory = f"threadgroup float2 shared[{shared // 2}]; " if shared else ""
    strides = [f"{entry.stem}::Strides{{{', '.join(f'size_t({name}_strides[{axis}])' for axis in range(3))}}}"
               for name in entry.input_names[:entry.strided]]
    room = [] if not entry.shared else ["(threadgroup float*)shared"] if shared else ["nullptr"]
    arguments = [*entry.input_names, *(name if name in outputs else outputs[0] for name in entry.outputs), *entry.numbers, *strides, *room,
                 "threadgroup_position_in_grid.x", "thread_position_in_threadgroup.x"]
    return f"{memory}{entry.stem}::{entry.function}{f'<{template}>' if template else ''}({', '.join(arguments)});"


@cache
def _kernel(entry: Entry):
    """Made once: MLX builds its text anew from header and source at every call, and compiles by the kernel's name."""
    return mx.fast.metal_kernel(
        name=entry.name, input_names=(*entry.input_names, *entry.numbers), output_names=entry.outputs, source=body(entry),
        header=source_text("metal", entry.stem))


@cache
def _template(entry: TemplateEntry, template: str, shared: int, outputs: tuple[str, ...]):
    """Its name says all that the text depends on, and is short: files are named by it."""
    own = re.sub(r"\W+", "_", template.replace(f"{entry.stem}::", "")).strip("_")
    there = "".join(str(int(name in outputs)) for name in entry.outputs)
    return mx.fast.metal_kernel(
        name="_".join(filter(None, (entry.name, own, str(shared), there))), input_names=(*entry.input_names, *entry.numbers),
        output_names=outputs, source=template_body(entry, template, shared, outputs), header=source_text("metal", entry.stem),
        ensure_row_contiguous=False)


@lru_cache(maxsize=256)
def _number(value: int | float) -> mx.array:
    return mx.array(value, mx.float32 if isinstance(value, float) else mx.uint32)


@cache
def _constants(make, arguments: tuple) -> mx.array:
    return mx.array(make(*arguments), mx.float32)


def _in_device_memory(x: mx.array | None) -> mx.array | None:
    """x with 8 elements at least. Of fewer, MLX makes constants, and so of one kernel as many as there are cases."""
    return x if x is None or x.size >= 8 else mx.pad(x.reshape(-1), (0, 8 - x.size))


def _all_there(entry: TemplateEntry, inputs) -> list[mx.array]:
    """What is not there is another array, which nobody reads: so there are few kernels. Strided ones have three axes."""
    strided, plain = inputs[:entry.strided], [*map(_in_device_memory, inputs[entry.strided:])]
    spare = next(x for x in plain if x is not None)
    rows = next((x for x in strided if x is not None), None)
    rows = spare.reshape(1, 1, -1) if rows is None else rows
    return [*(rows if x is None else x for x in strided), *(spare if x is None else x for x in plain)]


class Metal:
    """`ember_ml.kernels.gpu.Gpu` for mx.arrays; lazy as they are."""

    language = "metal"

    def dtype(self, x: mx.array) -> str:
        return str(x.dtype).removeprefix("mlx.core.")

    def cast(self, x: mx.array, dtype: str) -> mx.array:
        return x.astype(getattr(mx, dtype))

    def zeros(self, shape, dtype: str, like: mx.array) -> mx.array:
        return mx.zeros(shape, getattr(mx, dtype))

    def copy(self, x: mx.array) -> mx.array:
        return x

    def contiguous(self, x: mx.array) -> mx.array:
        return mx.contiguous(x)

    def widened(self, x: mx.array, columns: int) -> mx.array:
        return mx.pad(x, ((0, 0), (0, columns - x.shape[1])))

    def constants(self, make, arguments: tuple, like: mx.array) -> mx.array:
        return _constants(make, arguments)

    in_turns = staticmethod(in_turns)

    def launch(self, entry: Entry, inputs, outputs, grid, numbers=(), filled=None) -> tuple[mx.array, ...]:
        entry.own_dtype([self.dtype(x) for x in inputs])
        threads, group = grid.metal
        return tuple(_kernel(entry)(
            inputs=[*inputs, *map(_number, numbers)], grid=threads, threadgroup=group, output_shapes=[shape for shape, _ in outputs],
            output_dtypes=[getattr(mx, dtype) for _, dtype in outputs], init_value=filled))

    def launch_template(self, entry: TemplateEntry, inputs, outputs, grid, numbers=(), *, types=(), template="", shared=0) -> tuple:
        threads, group = grid.metal
        made = {name: output for name, output in zip(entry.outputs, outputs) if output is not None}
        found = iter(_template(entry, template, shared, tuple(made))(
            inputs=[*_all_there(entry, inputs), *map(_number, numbers)], grid=threads, threadgroup=group,
            output_shapes=[shape for shape, _ in made.values()], output_dtypes=[getattr(mx, dtype) for _, dtype in made.values()]))
        return tuple(None if output is None else next(found) for output in outputs)


#: launcher by the name of its KernelSpec
KERNELS = {spec.name: partial(spec.launch, Metal()) for spec in ALL_SPECS}
