"""The kernel of an op on one engine: launched where it was compared with the composite and agreed."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.errors import EmberError, is_out_of_memory
from ember_ml.kernels import selfcheck
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def kernel_function(op, backend, otherwise: Callable | None) -> Callable | None:
    """The native function that launches the op's kernel where it can, and elsewhere runs `otherwise`, or the body.

    "Can" is decided by the first argument's device and dtype, by the spec's `serves`, and by the first-use check of that
    device (see `ember_ml.kernels.selfcheck`). A launch that fails later, as one may that asks for more than the device has, counts as
    if the check had failed. None if the engine launches no such kernel on any device here.
    """
    spec = op.kernel
    if not any(spec.name in backend.launchers(device) for device in backend.devices()):
        return None

    def launch(*args, **kw):
        device = backend.device_of(args[0])
        if launchers[device] is not None:
            try:
                return launchers[device](*args, **kw)
            except EmberError:
                raise
            except Exception as error:                     # compilers and drivers raise what they like
                if is_out_of_memory(error):
                    raise                                  # the composite takes more
                out = body(op, backend, args, kw)          # raises too where it is the arguments that are wrong
                selfcheck.distrust(spec, backend.language, backend.name, *_machine(backend, device), error)
                launchers[device] = None
                return out
        return body(op, backend, args, kw)                 # a graph was recorded when the kernel was in use

    if backend.runtime.operator is not None:
        launch = backend.runtime.operator(op.name, op.signature, launch, lambda *args, **kw: body(op, backend, args, kw),
                                          op.vjp and (lambda *given: op.native_rule(backend, *given)),
                                          op.with_rule(backend, launch) if op.vjp else launch)
    elif op.owns_gradient:
        launch = op.with_rule(backend, launch)
    launchers: dict[str, Callable | None] = {}             # by device; None where the kernel is not in use

    def run(*args, **kw):
        first = args[0]
        if backend.dtype_of(first).name in spec.dtypes and spec.serves(*args, **kw):
            device = backend.device_of(first)
            if device not in launchers:
                launchers[device] = backend.launchers(device)[spec.name] if agrees(op, backend, device) else None
            if launchers[device] is not None:
                return launch(*args, **kw)
        return body(op, backend, args, kw) if otherwise is None else otherwise(*args, **kw)
    return run


def launches(x: EmberTensor, kernel: str) -> bool:
    """Whether the engine of x launches the kernel of that name on x's device, for what is worth doing only then."""
    return kernel in x.backend.launchers(x.backend.device_of(x.data))


def agrees(op, backend, device: str) -> bool:
    """Whether the op's kernel can be launched on the device and agreed with the composite when that was first asked."""
    launcher = backend.launchers(device).get(op.kernel.name)
    if launcher is None:
        return False

    def compare(dtype: str):
        args = [backend.from_python(v, dt.dtype(k), device) for v, k in zip(op.kernel.sample(), op.kernel.kinds(dtype))]
        static = op.kernel.static
        pairs = zip(_tuple(launcher(*args, **static)), _tuple(body(op, backend, args, static)))
        return [(f"output {i}", _numbers(a, backend), _numbers(b, backend)) for i, (a, b) in enumerate(pairs)]

    with backend.runtime.untraced():
        return selfcheck.trusted(op.kernel, backend.language, backend.name, *_machine(backend, device), compare)


def _machine(backend, device: str) -> tuple[str, str]:
    """(the device's name, the engine's version), as outcomes are known by them."""
    about = backend.runtime.describe()
    return f"{device}, {about['device']}" if device not in about["device"] else about["device"], about["version"]


def body(op, backend, args, kw):
    """The op's composite on native arrays."""
    out = op.body(*(EmberTensor(a, backend) if isinstance(a, backend.array_types) else a for a in args), **kw)
    return tuple(None if o is None else o.data for o in out) if isinstance(out, tuple) else out.data


def _tuple(out) -> tuple:
    return out if isinstance(out, tuple) else (out,)


def _numbers(x, backend) -> list[float]:
    return EmberTensor(x, backend).astype(dt.float32).reshape(-1).tolist()
