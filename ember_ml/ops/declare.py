"""The one place of an op: `@op` turns a declaration into a public function.

A declaration is a function whose signature and docstring are the op's. Positional parameters are tensors (or scalars, or None);
keyword-only parameters are static. Its body is the composite definition in other ops, or `...` for a primitive,
which every engine's table must provide.

    @op(rule="float", vjp=(lambda g, y, _x: g * y,), operator=None)
    def exp(x):
        \"\"\"e**x ...\"\"\"
        ...

Resolution, once per op and engine: the engine's native function -> the composite body -> UnsupportedOp. A native function that
returns NotImplemented leaves that call to the body (two operands alone, the most frequent calls, are not asked).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

from ember_ml.errors import UnsupportedOp
from ember_ml.autodiff.tape import fit
from ember_ml.ops.dispatch import make_dispatch
from ember_ml.ops.kernel import body as composite
from ember_ml.ops.kernel import kernel_function
from ember_ml.tensor import EmberTensor

#: every op by name, in the order of declaration
REGISTRY: dict[str, Op] = {}


def _empty():
    """Tells how a function without a body compiles."""
    ...


class Op:
    """What is known of one op; `function` is what callers call.

    Args:
        name: its name in every engine's table.
        body: the declared function.
        rule: dtype rule, see `ember_ml.ops.dispatch.RULES`.
        vjp: tuple of one function per tensor input, `(g, out, *inputs, **static) -> gradient`, or one function that
            returns all of them as a tuple. Arguments whose names begin with an underscore are not kept for it.
            Broadcasting and dtype casts of the forward are undone by the caller.
        no_grad: why there is no gradient, for ops without a rule.
        owns_gradient: the rule is the gradient on every engine (less memory or a kernel), not only on the tape.
        kernel: the KernelSpec of an op that has Metal and CUDA kernels.
        ignores: keywords that are taken and dropped: what they choose, no caller can tell (whether a value is copied, say).
        public: the name of the function that people call, where that is another one, for messages.
    """

    def __init__(self, name, body, rule, vjp, no_grad, owns_gradient, kernel, ignores=(), public=None):
        self.name, self.body, self.rule, self.ignores, self.public = name, body, rule, ignores, public or name
        self.vjp, self.no_grad, self.owns_gradient, self.kernel = vjp, no_grad, owns_gradient, kernel
        self.is_composite = body.__code__.co_code != _empty.__code__.co_code
        self.signature = inspect.signature(body)
        self.parameters = [p.name for p in self.signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        self.resolved: dict = {}
        self._reads: set[int] | None = None
        self.reads_output = False
        if vjp is not None:
            self._find_reads()

    def _find_reads(self):
        reads, self.reads_output, everything = set(), False, False
        for fn in self.vjp if isinstance(self.vjp, tuple) else (self.vjp,):
            if fn is None:
                continue
            for i, p in enumerate(list(inspect.signature(fn).parameters.values())[1:]):
                if p.kind is p.VAR_POSITIONAL:
                    everything = True
                elif p.kind is p.POSITIONAL_OR_KEYWORD and not p.name.startswith("_"):
                    if i == 0:
                        self.reads_output = True
                    else:
                        reads.add(i - 1)
        self._reads = None if everything else reads

    def reads(self, i: int) -> bool:
        """Whether the rule reads input `i`, so that the tape must keep it."""
        return self._reads is None or i in self._reads

    def apply_rule(self, g, out, args, kw, needs, like) -> list:
        """Gradients for the inputs, None where `needs` is False. `like` holds (shape, dtype) per tensor input."""
        if isinstance(self.vjp, tuple):
            rules = self.vjp
            return [fn(g, out, *args, **kw) if need and fn is not None else None for fn, need in zip(rules, needs)]
        given = self.vjp(g, out, *args, **kw)
        return list(given) + [None] * (len(needs) - len(given))

    def resolve(self, backend) -> Callable | None:
        """The native function for this engine, None for "run the body". Raises UnsupportedOp if there is neither."""
        native = backend.table.get(self.name)
        if native is None and not self.is_composite:
            have = [n for n, b in _loaded_tables().items() if self.name in b]
            raise UnsupportedOp(f"{self.name}: the {backend.name} engine does not have it" + (
                f"; move the tensor to one that has, x.to({have[0]!r})" if have else
                ", nor does any that is loaded: it is declared as a primitive, so each engine's table needs a line for it, or it needs a body of other ops"))
        if self.owns_gradient:
            native = self.with_rule(backend, native)
        if self.kernel is not None:
            native = kernel_function(self, backend, native) or native
        if backend.remembered:
            self.resolved[backend] = native
        return native

    def with_rule(self, backend, native):
        """The body, or the native function if there is one, as a native function whose gradient in the engine is our rule."""
        op = self

        def run(*raw, **kw):
            where = [i for i, a in enumerate(raw) if isinstance(a, backend.array_types)]
            rest = [None if isinstance(a, backend.array_types) else a for a in raw]   # the rule lives on, and must not hold arrays

            def fill(natives):
                full = list(rest)
                for i, a in zip(where, natives):
                    full[i] = a
                return full

            def forward(*natives):
                full = fill(natives)
                found = NotImplemented if native is None else native(*full, **kw)
                return composite(op, backend, full, kw) if found is NotImplemented else found

            def rule(cotangents, outputs, natives, needs):
                wanted = [False] * len(rest)
                for i, need in zip(where, needs):
                    wanted[i] = need
                grads = op.native_rule(backend, fill(natives), kw, cotangents, outputs, wanted)
                return [grads[i] for i in where]

            return backend.runtime.with_rule(forward, rule, [raw[i] for i in where], op.reads_output)

        return run

    def native_rule(self, backend, args, kw, cotangents, outputs, needs) -> list:
        """`apply_rule` on the engine's own arrays: a native gradient, or None, for each of `args`."""
        def wrap(x):
            return EmberTensor(x, backend) if isinstance(x, backend.array_types) else x

        many = isinstance(outputs, (tuple, list))
        g, out = (tuple(map(wrap, x)) if many else wrap(x) for x in (cotangents, outputs))
        args = [wrap(a) for a in args]
        grads = self.apply_rule(g, out, args, kw, needs, None)
        return [None if x is None or not need else fit(x, a.shape, a.dtype).data for x, a, need in zip(grads, args, needs)]

    def path(self, backend, device: str | None = None) -> str:
        """"kernel", "native", "host" (through NumPy), "composite" or "none" on this engine's device (its default), for tables of support."""
        if self.kernel is not None and self.kernel.name in backend.launchers(device or backend.default_device):
            return "kernel"
        if self.name in backend.host:
            return "host"
        return "native" if self.name in backend.table else "composite" if self.is_composite else "none"


def _loaded_tables() -> dict:
    from ember_ml import backend
    return {name: b.table for name, b in backend._loaded.items()}


def op(*, rule: str | None = None, vjp=None, no_grad: str | None = None, owns_gradient: bool = False, kernel=None,
       operator: str | None = None, reflected: str | None = None, method: bool | str = False, ignores: tuple[str, ...] = (),
       public: str | None = None):
    """Declares an op. See `Op` for the arguments that describe it.

    Args:
        operator: special method of EmberTensor that it serves, such as "__add__".
        reflected: the special method with swapped operands, such as "__radd__".
        method: also a method of EmberTensor, under its own name or the given one.
    """
    def declare(body):
        if body.__name__ in REGISTRY:
            raise ValueError(f"op {body.__name__!r} is declared twice")
        record = Op(body.__name__, body, rule, vjp, no_grad, owns_gradient, kernel, ignores, public)
        REGISTRY[record.name] = record
        call = make_dispatch(record)
        call.__name__, call.__qualname__, call.__doc__, call.__module__ = (
            body.__name__, body.__name__, body.__doc__, body.__module__)
        call.__wrapped__, call.op = body, record
        if operator:
            setattr(EmberTensor, operator, call)
        if reflected:
            setattr(EmberTensor, reflected, lambda x, other: call(other, x))
        if method:
            setattr(EmberTensor, method if isinstance(method, str) else record.name, call)
        return call
    return declare


def support() -> dict[str, dict[str, str]]:
    """op name -> engine name -> "native", "host", "composite" or "none", over the engines that are installed and load."""
    from ember_ml import backend
    engines = [backend.get(n) for n in backend.available()]
    return {name: {b.name: record.path(b) for b in engines} for name, record in REGISTRY.items()}
