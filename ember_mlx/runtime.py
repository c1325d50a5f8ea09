"""What MLX does its own way: lazy evaluation, gradients, custom rules, compilation, memory, wired limit."""

from __future__ import annotations

import platform
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path

import mlx.core as mx


def _floating(args):
    """(places of the floating-point arguments, function of new ones for them that gives all arguments).

    MLX differentiates with respect to every argument of a function, and random bits, say, have no gradient in their key.
    """
    places = [i for i, a in enumerate(args) if mx.issubdtype(a.dtype, mx.inexact)]

    def full(primals):
        out = list(args)
        for i, p in zip(places, primals):
            out[i] = p
        return out
    return places, full


_inside: ContextVar[bool] = ContextVar("ember_mlx_gradient", default=False)


class MlxRuntime:
    """Lazy, with native gradients and mx.compile. Arrays are computed when `synchronize` or a read asks for them."""

    compiles = "step"
    has_gradients = True
    operator = None
    pull = None

    def __init__(self):
        self._before: list = []                          # of the update before, see `pace`

    def value_and_grad(self, fn, leaves):
        """(value, aux, gradients), lazily."""
        token = _inside.set(True)
        try:
            (value, aux), grads = mx.value_and_grad(lambda inputs: fn(inputs))(list(leaves))
        finally:
            _inside.reset(token)
        return value, aux, grads

    def with_rule(self, forward, rule, args, keeps_output=True):
        """mx.custom_function over the floating-point arrays."""
        floating, full = _floating(args)
        if not floating:
            return forward(*args)

        @mx.custom_function
        def run(*primals):
            return forward(*full(primals))

        @run.vjp
        def run_vjp(primals, cotangents, outputs):
            primals = primals if isinstance(primals, (tuple, list)) else (primals,)
            inputs = full(primals)
            grads = rule(cotangents, outputs, inputs, [i in floating for i in range(len(args))])
            return tuple(mx.zeros_like(inputs[i]) if grads[i] is None else grads[i] for i in floating)

        return run(*(args[i] for i in floating))

    def is_watched(self, x) -> bool:
        return _inside.get()                             # of all arrays alike: MLX does not tell

    def read(self, x) -> list | None:
        return None

    def untraced(self):
        return nullcontext()

    def inference(self):
        return nullcontext()

    def checkpoint(self, fn):
        def run(*args):
            floating, full = _floating(args)
            return mx.checkpoint(lambda *primals: fn(*full(primals)))(*(args[i] for i in floating))
        return run

    def compile(self, fn):
        return mx.compile(fn)

    def stop_gradient(self, x):
        return mx.stop_gradient(x)

    def after(self, natives, on):
        return mx.depends(natives, on) if natives and on else natives

    def buffer(self, like, shape):
        return None

    def synchronize(self, natives):
        mx.eval(natives)

    def pace(self, natives):
        arrays = natives()
        mx.async_eval(arrays)
        mx.eval(self._before)
        self._before = arrays[-1:]

    @contextmanager
    def long_run(self):
        """Metal keeps as much memory resident as the chip recommends, and of what was freed a quarter of that at most.

        Without the first the system may page weights out between updates; without the second the cache of freed buffers grows
        until the machine swaps, where batches have many different shapes.
        """
        if mx.metal.is_available():
            working_set = mx.device_info()["max_recommended_working_set_size"]
            wired, cache = mx.set_wired_limit(working_set), mx.set_cache_limit(working_set // 4)
        try:
            yield
        finally:
            self._before = []
            if mx.metal.is_available():
                mx.synchronize()
                mx.set_wired_limit(wired)
                mx.set_cache_limit(cache)

    def peak_memory(self) -> int:
        """Largest number of bytes that MLX's allocator had in use since the reset."""
        return mx.get_peak_memory()

    def reset_peak_memory(self):
        mx.reset_peak_memory()

    def describe(self) -> dict[str, str]:
        metal = mx.metal.is_available()
        info = {"version": mx.__version__, "device": str(mx.default_device()), "metal": "yes" if metal else "no", "blas": _blas(),
                "convolution": "kernels" if mx.default_device() == mx.gpu else "NumPy's blocks on MLX's memory; a graph in "
                               "compiled steps and for few numbers"}
        if metal:
            device = mx.device_info()
            info.update(chip=str(device.get("device_name")), memory=f"{device.get('memory_size', 0) / 2**30:.0f} GiB",
                        wired_limit=f"{device.get('max_recommended_working_set_size', 0) / 2**30:.0f} GiB")
        return info


def _blas() -> str:
    """Which BLAS multiplies MLX's matrices on the CPU: "Accelerate", "OpenBLAS", "MKL", "BLIS", "reference" or "unknown".

    The first library with BLAS's own symbols serves them all, and a preloaded one comes first. NumPy's OpenBLAS has prefixed symbols.
    """
    if platform.system() == "Darwin":
        return "Accelerate"
    maps = Path("/proc/self/maps")
    loaded = {line.rpartition("/")[2] for line in maps.read_text().splitlines() if "/" in line} if maps.exists() else set()
    for stem, name in (("libopenblas", "OpenBLAS"), ("libmkl_rt", "MKL"), ("libblis", "BLIS"), ("libblas", "reference")):
        if any(file.startswith(stem) for file in loaded):
            return name
    return "unknown"
