"""From a call to an engine: unwrap, apply the dtype rule, run, wrap, and record on the tape where one is watching.

This is the hot path: every op of every eager step passes here, so the two common shapes (one tensor; two operands)
have a version of their own. Errors of the engines leave here as ShapeError, TypeError or OutOfMemory with the op's name and shapes.
"""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.autodiff.tape import record
from ember_ml.errors import BackendMismatch, EmberError, ShapeError, UnsupportedDtype, is_out_of_memory, out_of_memory
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: dtype rules: None takes what comes; "float" casts integers and bools to float32; "promote" brings all tensor inputs to
#: their common dtype, scalars staying weak; "promote_rest" leaves the first input (a condition) out of that;
#: "float_promote" does both
RULES = (None, "float", "promote", "promote_rest", "float_promote")

#: the `vjp` of ops whose output is constant almost everywhere (comparisons, rounding, indices): no gradient flows back
CONSTANT = ()

#: what engines raise at arguments that do not fit, and where memory is at its end
_FROM_ENGINES = (ValueError, RuntimeError, IndexError, TypeError, AttributeError, MemoryError)

_SCALARS = (bool, int, float, complex)
_REAL = (float, int)


def make_dispatch(op) -> Callable:
    """The public function of an op."""
    if op.rule not in RULES:
        raise ValueError(f"op {op.name}: expected a dtype rule among {RULES}, got {op.rule!r}")
    if len(op.parameters) == 2 and op.rule in ("promote", "float_promote") and not _has_default(op, 1):
        return _binary(op, op.rule == "float_promote")
    return _general(op)


def _has_default(op, i: int) -> bool:
    p = op.signature.parameters[op.parameters[i]]
    return p.default is not p.empty


def _binary(op, to_float: bool) -> Callable:
    resolved = op.resolved

    def call(x, y, **kw):
        if type(x) is EmberTensor:
            backend, a = x.backend, x.data
            if type(y) is EmberTensor:
                if y.backend is not backend:
                    raise _mismatch(op, (x, y))
                b = y.data
                if a.dtype != b.dtype:
                    a, b = backend.promote_pair(a, b)
                taped = x.node is not None or y.node is not None
            else:
                a, b = _with_scalar(op, backend, a, y)
                taped = x.node is not None
        elif type(y) is EmberTensor:
            backend = y.backend
            b, a = _with_scalar(op, backend, y.data, x)
            taped = y.node is not None
        else:
            raise _no_tensor(op, (x, y))
        if to_float:
            a, b = _floats(backend, a), _floats(backend, b)
        native = resolved.get(backend, op)
        if native is op:
            native = op.resolve(backend)
        if native is None or taped:
            return _slow(op, native, backend, (x, y), (a, b), kw, taped)
        try:
            return EmberTensor(native(a, b, **kw), backend)
        except _FROM_ENGINES as e:
            raise _explain(op, e, (x, y), kw) from e
    return call


def _general(op) -> Callable:
    resolved, rule = op.resolved, op.rule
    names = frozenset((*op.parameters, *op.ignores))

    def call(*args, **kw):
        if kw and not names.isdisjoint(kw):
            args, kw = _positional(op, args, kw)
        backend, taped, raw, kind, mixed = None, False, [], None, rule == "promote_rest"
        for x in args:
            if type(x) is EmberTensor:
                a = x.data
                if backend is None:
                    backend, kind = x.backend, a.dtype
                elif x.backend is not backend:
                    raise _mismatch(op, args)
                elif a.dtype != kind:
                    mixed = True
                if x.node is not None:
                    taped = True
                raw.append(a)
            else:
                raw.append(x)
                if x is not None:
                    mixed = True
        if backend is None:
            raise _no_tensor(op, args)
        if rule is not None and (mixed or rule != "promote" and kind not in backend.inexact):   # else there is nothing to cast
            raw = _apply_dtype_rule(op, rule, backend, args, raw)
        native = resolved.get(backend, op)
        if native is op:
            native = op.resolve(backend)
        if native is None or taped:
            return _slow(op, native, backend, args, raw, kw, taped)
        try:
            out = native(*raw, **kw)
        except _FROM_ENGINES as e:
            raise _explain(op, e, args, kw) from e
        if out is NotImplemented:
            return op.body(*_rewrap(args, raw, backend, False), **kw)
        if type(out) is tuple:
            return tuple([None if o is None else EmberTensor(o, backend) for o in out])
        return EmberTensor(out, backend)
    return call


def _slow(op, native, backend, args, raw, kw, taped):
    """Composite bodies, and everything that the tape records."""
    if not taped:
        return op.body(*_rewrap(args, raw, backend, False), **kw)
    if op.vjp is None and op.is_composite and not op.no_grad:    # its parts have rules: record those instead
        return op.body(*_rewrap(args, raw, backend, True), **kw)
    if native is None:
        out = op.body(*_rewrap(args, raw, backend, False), **kw)
    else:
        try:
            out = native(*raw, **kw)
        except _FROM_ENGINES as e:
            raise _explain(op, e, args, kw) from e
        if out is NotImplemented:
            out = op.body(*_rewrap(args, raw, backend, False), **kw)
        else:
            out = tuple(None if o is None else EmberTensor(o, backend) for o in out) if isinstance(out, tuple) else EmberTensor(out, backend)
    if op.vjp != CONSTANT:
        record(op, args, kw, out)
    return out


def _rewrap(args, raw, backend, keep_node: bool):
    """The inputs after the dtype rule, as tensors again; a cast of a recorded tensor is recorded too."""
    out = []
    for x, a in zip(args, raw):
        if type(x) is not EmberTensor:
            out.append(x)
        elif not keep_node or x.node is None:
            out.append(EmberTensor(a, backend))
        else:
            out.append(x if a is x.data else x.astype(backend.dtype_of(a)))
    return out


def _with_scalar(op, backend, a, scalar):
    if type(scalar) in _REAL and a.dtype in backend.weak_floats:   # the common case, decided by one look-up
        return a, scalar
    if isinstance(scalar, _SCALARS):
        return backend.weak_scalar(a, scalar.item() if hasattr(scalar, "item") else scalar)
    if hasattr(scalar, "item") and getattr(scalar, "ndim", None) == 0 and not hasattr(scalar, "backend"):
        return backend.weak_scalar(a, scalar.item())
    raise TypeError(f"{op.public}: expected EmberTensors or Python numbers, got {type(scalar).__name__}; "
                    f"wrap arrays with em.tensor(...)")


def _floats(backend, a):
    if type(a) in _SCALARS:
        return a
    return a if a.dtype in backend.inexact else backend.astype(a, dt.float32)


def _apply_dtype_rule(op, rule, backend, args, raw):
    if rule == "float":
        return [_floats(backend, a) if type(x) is EmberTensor else a for x, a in zip(args, raw)]
    first = 1 if rule == "promote_rest" else 0
    if first and not (type(args[0]) is EmberTensor and args[0].dtype.kind == "bool"):      # engines differ in what else they take
        got = f"one of {args[0].dtype}" if type(args[0]) is EmberTensor else type(args[0]).__name__
        raise UnsupportedDtype(f"{op.public}: expected {op.parameters[0]} to be an EmberTensor of dtype bool, got {got}; compare, as in x != 0")
    common = None
    for x in args[first:]:
        if type(x) is EmberTensor:
            common = x.dtype if common is None else dt.promote(common, x.dtype)
    scalars = [x for x in args[first:] if isinstance(x, _SCALARS)]
    if common is None:                                   # numbers alone, under a condition
        common = dt.of_scalar(scalars.pop())
    for x in scalars:
        common = dt.weak_result(common, x)
    if rule == "float_promote" and not common.is_inexact:
        common = dt.float32
    return list(raw[:first]) + [
        backend.astype(a, common) if type(x) is EmberTensor and x.dtype is not common
        else backend.scalar(x, common) if isinstance(x, _SCALARS) else a for x, a in zip(args[first:], raw[first:])]


def _positional(op, args, kw):
    """Tensor parameters that were given by keyword, moved to their place; keywords that the op ignores are gone."""
    args, kw = list(args), {k: v for k, v in kw.items() if k not in op.ignores}
    for name in op.parameters[len(args):]:
        default = op.signature.parameters[name].default
        if name not in kw and default is op.signature.empty:
            raise TypeError(f"{op.name}: misses the argument {name!r}; it is called as {op.name}{op.signature}")
        args.append(kw.pop(name, default))
    return args, kw


def expect_tensors(name: str, optional: dict | None = None, **given):
    """Raises TypeError for what is no tensor: for functions that look at shapes before they call an op.

    Args:
        name: the function's, for the message. given: its arguments by name. optional: those that may be None.
    """
    for what, x in (*given.items(), *(pair for pair in (optional or {}).items() if pair[1] is not None)):
        if not isinstance(x, EmberTensor):
            raise TypeError(f"{name}: expected {what} to be an EmberTensor, got {type(x).__name__}; make one with em.tensor(...)")


def _mismatch(op, args) -> BackendMismatch:
    found = list(dict.fromkeys(x.backend.name for x in args if type(x) is EmberTensor))
    return BackendMismatch(f"{op.public}: expected tensors of one engine, got {' and '.join(found)}; "
                           f"move one of them, for example x.to({found[0]!r})")


def _no_tensor(op, args) -> TypeError:
    return TypeError(f"{op.public}: expected at least one EmberTensor, got {', '.join(type(a).__name__ for a in args) or 'nothing'}; "
                     f"wrap arrays with em.tensor(...)")


def _explain(op, error: Exception, args, kw) -> Exception:
    """The engine's error, told in the terms of the op."""
    if isinstance(error, EmberError):
        return error
    foreign = next((a for a in args if hasattr(a, "dtype") and hasattr(a, "shape") and type(a) is not EmberTensor), None)
    if foreign is not None:
        return _no_tensor(op, (foreign,))
    given = ", ".join(f"{n}={_describe(a)}" for n, a in zip(op.parameters or [f"x{i}" for i in range(len(args))], args))
    static = "".join(f", {k}={v!r}" for k, v in kw.items())
    if is_out_of_memory(error):
        return out_of_memory(f"{op.public}, given {given}{static}", next(a.backend.name for a in args if type(a) is EmberTensor), error)
    kind = TypeError if isinstance(error, (TypeError, AttributeError)) else ShapeError
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    fit = f"{op.name}{op.signature}" if op.public == op.name else "together"      # an inner op's signature is nobody's business
    return kind(f"{op.public}: expected arguments that fit {fit}; got {given}{static}: {reason}")


def _describe(a) -> str:
    return f"{a.dtype}{list(a.shape)}" if type(a) is EmberTensor else repr(a)
