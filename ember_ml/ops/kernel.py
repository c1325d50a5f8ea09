"""The kernel of an op on one engine: launched where it was compared with the composite and agreed."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from ember_ml.errors import EmberError, is_out_of_memory
from ember_ml.kernels import selfcheck
from ember_ml.kernels.spec import Form, Prepared, Sample
from ember_ml.ops.fftconv_filter import PreparedFilter
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt


def kernel_function(op, backend, otherwise: Callable | None) -> Callable | None:
    """The native function that launches the op's kernel where it can, and elsewhere runs `otherwise`, or the body.

    "Can" is decided by the first argument's device and dtype, by the spec's `form` of the call, and by the check at the first use of that
    form there (see `ember_ml.kernels.selfcheck`). A launch that fails later, as one may that asks for more than the device has, counts as
    if the check had failed. None if the engine launches no such kernel on any device here.
    """
    spec = op.kernel
    if not any(spec.name in backend.launchers(device) for device in backend.devices()):
        return None

    def launch(*args, **kw):
        device = backend.device_of(args[0])
        if not given_up or (device, *asked_for(args, kw)) not in given_up:
            try:
                return launchers[device](*args, **kw)
            except EmberError:
                raise
            except Exception as error:                     # compilers and drivers raise what they like
                if is_out_of_memory(error):
                    raise                                  # the composite takes more
                out = body(op, backend, args, kw)          # raises too where it is the arguments that are wrong
                dtype, form = asked_for(args, kw)
                selfcheck.distrust(spec, form, dtype, backend.language, backend.name, *_machine(backend, device), error)
                in_use[device, dtype, form] = False
                given_up.add((device, dtype, form))
                return out
        return body(op, backend, args, kw)                 # a graph was recorded when the form was in use

    def asked_for(args, kw) -> tuple[str, Form | None]:
        return backend.dtype_of(args[0]).name, spec.form(*args, **kw)

    if backend.runtime.operator is not None:
        launch = backend.runtime.operator(op.name, op.signature, launch, lambda *args, **kw: body(op, backend, args, kw),
                                          op.vjp and (lambda *given: op.native_rule(backend, *given)),
                                          op.with_rule(backend, launch) if op.vjp else launch)
    elif op.owns_gradient:
        launch = op.with_rule(backend, launch)
    launchers: dict[str, Callable] = {}                    # by device
    in_use: dict[tuple[str, str, Form], bool] = {}         # by device, dtype and form
    given_up: set[tuple[str, str, Form]] = set()           # those that failed after their check

    def run(*args, **kw):
        dtype = backend.dtype_of(args[0]).name
        form = spec.form(*args, **kw) if dtype in spec.dtypes else None
        if form is not None:
            device = backend.device_of(args[0])
            usable = in_use.get((device, dtype, form))
            if usable is None:
                launchers[device] = backend.launchers(device).get(spec.name)
                usable = in_use[device, dtype, form] = agrees(op, backend, device, dtype, form)
            if usable:
                return launch(*args, **kw)
        return body(op, backend, args, kw) if otherwise is None else otherwise(*args, **kw)
    return run


def launches(x: EmberTensor, kernel: str) -> bool:
    """Whether the engine of x launches the kernel of that name on x's device, for what is worth doing only then."""
    return kernel in x.backend.launchers(x.backend.device_of(x.data))


def agrees(op, backend, device: str, dtype: str, form: Form) -> bool:
    """Whether the op's kernel can be launched on the device, and in this form agreed with the composite when that was first asked."""
    launcher = backend.launchers(device).get(op.kernel.name)
    if launcher is None:
        return False

    def compare():
        args, static = sample_call(op, backend, device, dtype, op.kernel.sample(form))
        wide = [backend.astype(a, dt.float32) if isinstance(a, backend.array_types) and backend.dtype_of(a).kind == "float" else a for a in args]
        pairs = zip(_tuple(launcher(*args, **static)), _tuple(body(op, backend, wide, static)))
        return [(f"output {i}", _difference(a, b, backend)) for i, (a, b) in enumerate(pairs) if a is not None or b is not None]

    with backend.runtime.untraced():
        return selfcheck.trusted(op.kernel, form, dtype, backend.language, backend.name, *_machine(backend, device), compare)


def _machine(backend, device: str) -> tuple[str, str]:
    """(the device's name, the engine's version), as outcomes are known by them."""
    about = backend.runtime.describe()
    return f"{device}, {about['device']}" if device not in about["device"] else about["device"], about["version"]


def sample_call(op, backend, device: str | None, dtype: str, sample: Sample) -> tuple[list, dict]:
    """(native arguments, keywords) of a kernel's sample, those that are made for any dtype in this one."""
    def native(values, kind):
        return None if values is None else backend.from_python(values, kind, device)

    def argument(values, kind):
        if isinstance(values, Prepared):
            k, k_reverse = (native(v, kind) for v in values)
            return PreparedFilter(EmberTensor(k, backend), None if k_reverse is None else EmberTensor(k_reverse, backend))
        return native(values, kind)

    return [argument(values, dt.dtype(kind)) for values, kind in zip(sample.arrays, op.kernel.kinds(dtype))], dict(sample.static)


def body(op, backend, args, kw):
    """The op's composite on native arrays."""
    out = op.body(*(EmberTensor(a, backend) if isinstance(a, backend.array_types) else a for a in args), **kw)
    return tuple(None if o is None else o.data for o in out) if isinstance(out, tuple) else out.data


def _tuple(out) -> tuple:
    return out if isinstance(out, tuple) else (out,)


def _difference(got, expected, backend) -> float:
    """Largest difference over the largest element, computed by the engine; infinite where sizes differ or a number is not finite."""
    if got is None or expected is None or tuple(got.shape) != tuple(expected.shape):
        return inf
    a, b = (EmberTensor(x, backend).astype(dt.float32) for x in (got, expected))
    if not a.size:
        return 0.0
    sizes = [x.abs() for x in (a, b, a - b)]
    if not all((x < inf).all().item() for x in sizes):    # NaN is not, either
        return inf
    largest, difference = (x.max().item() for x in sizes[1:])
    return difference / (largest or 1.0)
