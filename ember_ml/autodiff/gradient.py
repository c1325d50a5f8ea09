"""Gradients of functions over trees: the engine's own where it has them, Ember's tape elsewhere.

Functions in, functions out; there is no `.backward()` and no flag on tensors. Gradients are taken with respect to the
floating-point leaves of the chosen arguments; other leaves pass through as constants and get None.
"""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.autodiff import tape, tree
from ember_ml.autodiff.transform import transforming
from ember_ml.errors import ShapeError, memory_told
from ember_ml.tensor import EmberTensor

MODES = ("auto", "tape")


def value_and_grad(fn: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, mode: str = "auto") -> Callable:
    """A function that returns `(value, gradients)` of `fn`, a function with one scalar result.

    Args:
        fn: `fn(*args)` returning a scalar tensor, or `(scalar, aux)` with `has_aux`; aux is any tree.
        argnums: which positional arguments to differentiate; each may be a tree of tensors.
        has_aux: return `((value, aux), gradients)`.
        mode: "auto" takes the engine's gradients where it has any; "tape" takes Ember's own on every engine.

    Returns:
        `(value, gradients)`: gradients have the form of the argument (a tuple of them for a tuple of argnums), with
        the shape and dtype of each leaf. With respect to complex leaves the gradient is dL/dRe + i dL/dIm.

    Raises:
        ShapeError: `fn` does not return a scalar. TypeError: no floating-point tensor among the arguments.
    """
    if not callable(fn):
        raise TypeError(f"value_and_grad: expected a function, got {type(fn).__name__}")
    if mode not in MODES:
        raise ValueError(f"value_and_grad: expected mode among {MODES}, got {mode!r}")
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)

    def run(*args, **kw):
        if not all(-len(args) <= i < len(args) for i in numbers):
            raise TypeError(f"value_and_grad: expected argnums among the {len(args)} positional arguments of the call, got {argnums}")
        leaves, structure = tree.flatten([args[i] for i in numbers])
        where = [i for i, x in enumerate(leaves) if isinstance(x, EmberTensor) and x.dtype.is_inexact]
        if not where:
            raise TypeError("value_and_grad: expected a floating-point tensor among the differentiated arguments, got "
                            f"{[str(getattr(x, 'dtype', type(x).__name__)) for x in leaves]}")

        def call(tensors):
            full = list(leaves)
            for i, x in zip(where, tensors):
                full[i] = x
            chosen = dict(zip(numbers, tree.unflatten(structure, full)))
            out = fn(*(chosen.get(i, a) for i, a in enumerate(args)), **kw)
            value, aux = out if has_aux else (out, None)
            _check_scalar(value)
            return value, aux

        inputs = [leaves[i] for i in where]
        runtime = inputs[0].backend.runtime
        with transforming():
            if mode == "tape" or not runtime.has_gradients:
                value, aux, grads = _taped(call, inputs)
            else:
                value, aux, grads = _native(call, inputs, runtime)
        full = [None] * len(leaves)
        for i, g in zip(where, grads):
            full[i] = g
        result = tree.unflatten(structure, full)
        return ((value, aux) if has_aux else value), (result[0] if isinstance(argnums, int) else tuple(result))
    return run


def grad(fn: Callable, argnums: int | tuple[int, ...] = 0, has_aux: bool = False, mode: str = "auto") -> Callable:
    """Like `value_and_grad`, returning the gradients alone (or `(gradients, aux)`)."""
    both = value_and_grad(fn, argnums, has_aux, mode)

    def run(*args, **kw):
        value, grads = both(*args, **kw)
        return (grads, value[1]) if has_aux else grads
    return run


def vjp(fn: Callable, *primals, mode: str = "auto") -> tuple:
    """`(outputs, pullback)`: `pullback(cotangents)` gives the gradients of sum(outputs * cotangents), one tree per primal.

    Args:
        fn: function of trees that returns a tree of tensors.
        primals: its arguments.
        mode: as in `value_and_grad`.

    Raises ShapeError if the cotangents do not have the outputs' form and shapes.
    """
    outputs = fn(*primals)

    def pullback(cotangents):
        def weighted(*args):
            out = tree.tensors(fn(*args))
            given = tree.tensors(cotangents)
            if [x.shape for x in out] != [c.shape for c in given]:
                raise ShapeError(f"vjp: expected cotangents of shapes {[x.shape for x in out]}, "
                                 f"got {[c.shape for c in given]}")
            total = None
            for x, c in zip(out, given):
                # the gradient convention is dL/dRe + i dL/dIm, so the pairing is Re(x * conj(c))
                term = ((x * c.conj()).real() if x.dtype.kind == "complex" else x * c).sum()
                total = term if total is None else total + term
            return total
        return grad(weighted, tuple(range(len(primals))), mode=mode)(*primals)
    return outputs, pullback


def stop_gradient(x):
    """The same values as constants: no gradient flows through. Takes a tensor or a tree of tensors."""
    def stop(leaf):
        if not isinstance(leaf, EmberTensor):
            return leaf
        return EmberTensor(leaf.backend.runtime.stop_gradient(leaf.data), leaf.backend)
    return stop(x) if type(x) is EmberTensor else tree.map(stop, x)      # most often one tensor, in every step of a loop


def _check_scalar(value):
    if not isinstance(value, EmberTensor):
        raise TypeError(f"value_and_grad: expected the function to return a scalar EmberTensor, got {type(value).__name__}; "
                        "for (scalar, aux) pass has_aux=True")
    if value.shape != ():
        raise ShapeError(f"value_and_grad: expected the function to return a scalar, got shape {value.shape}; "
                         "reduce it with .sum() or .mean()")
    if not value.dtype.kind == "float":
        raise TypeError(f"value_and_grad: expected a real floating-point scalar, got dtype {value.dtype}")


def _taped(call, inputs):
    with tape.recording():
        watched = [tape.watch(x) for x in inputs]
        value, aux = call(watched)
        one = EmberTensor(value.data, value.backend).ones_like()
        grads = tape.backward([value], [one], [w.node for w in watched])
        grads = [EmberTensor(x.data, x.backend).zeros_like() if g is None else g for x, g in zip(inputs, grads)]
        if tape.enclosed():                              # it goes on from here, also to what `call` has from outside
            return value, aux, grads
    return (EmberTensor(value.data, value.backend), tree.map(_without_node, aux), [_without_node(g) for g in grads])


def _without_node(x):
    return EmberTensor(x.data, x.backend) if isinstance(x, EmberTensor) and x.node is not None else x


def _native(call, inputs, runtime):
    backend = inputs[0].backend
    form = {}

    def raw(natives):
        value, aux = call([EmberTensor(a, backend) for a in natives])
        leaves, form["structure"] = tree.flatten(aux)
        form["static"] = [None if isinstance(x, EmberTensor) else x for x in leaves]
        form["is_tensor"] = [isinstance(x, EmberTensor) for x in leaves]
        return value.data, [x.data for x in leaves if isinstance(x, EmberTensor)]

    with memory_told(backend.name, lambda: "the gradient"):
        value, aux, grads = runtime.value_and_grad(raw, [x.data for x in inputs])
    rest = iter(aux)
    leaves = [EmberTensor(next(rest), backend) if t else s for t, s in zip(form["is_tensor"], form["static"])]
    return (EmberTensor(value, backend), tree.unflatten(form["structure"], leaves),
            [EmberTensor(g, backend) for g in grads])
