"""The kernel of an op on one engine: launched where it was compared with the composite and agreed, else None."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.kernels import selfcheck
from ember_ml.kernels.spec import DTYPES
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def kernel_function(op, backend) -> Callable | None:
    """The native function that launches the op's kernel; for dtypes that the kernel does not serve it runs the body.

    None if the engine launches no such kernel here, or if its first-use check failed (see `ember_ml.kernels.selfcheck`).
    """
    launcher = backend.launchers().get(op.kernel.name)
    if launcher is None:
        return None

    def compare(dtype: str):
        kinds = [dtype if kind == "T" else kind for _, kind in op.kernel.entries[0].inputs]
        args = [backend.from_python(v, dt.dtype(k), None) for v, k in zip(op.kernel.sample(), kinds)]
        return [(f"output {i}", _numbers(a, backend), _numbers(b, backend))
                for i, (a, b) in enumerate(zip(_tuple(launcher(*args)), _tuple(_body(op, backend, args))))]

    about = backend.runtime.describe()
    if not selfcheck.trusted(op.kernel, backend.language, backend.name, about["device"], about["version"], compare):
        return None

    def run(*args, **kw):
        if backend.dtype_of(args[0]).name in DTYPES:
            return launcher(*args, **kw)
        return _body(op, backend, args, **kw)
    return run


def _body(op, backend, args, **kw):
    out = op.body(*(EmberTensor(a, backend) if isinstance(a, backend.array_types) else a for a in args), **kw)
    return tuple(o.data for o in out) if isinstance(out, tuple) else out.data


def _tuple(out) -> tuple:
    return out if isinstance(out, tuple) else (out,)


def _numbers(x, backend) -> list[float]:
    return EmberTensor(x, backend).astype(dt.float32).reshape(-1).tolist()
