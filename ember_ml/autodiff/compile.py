"""`em.compile`: a pure function over trees, traced and fused by the engine that its tensors live on."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.autodiff import tree
from ember_ml.autodiff.transform import transforming
from ember_ml.errors import BackendMismatch
from ember_ml.tensor import EmberTensor


def compile(fn: Callable) -> Callable:  # noqa: A001 - the field's name for it
    """A faster `fn`: mx.compile on MLX, torch.compile on torch, `fn` as it is on NumPy and CuPy.

    Args:
        fn: a pure function of trees: all state comes in as arguments and goes out as results. Tensors it reads from
            outside are constants of the trace. Leaves that are no tensors are static: another value traces again.

    Returns:
        A function of the same arguments. It traces once per form of the arguments, their shapes, and static leaves.

    A whole training step can be compiled, its gradient included. On torch the first call records the ops that run and
    generates code for them, which takes from seconds to minutes (torch keeps the code on disk for the next process);
    where torch finds no C++ compiler the function runs as it is, and `ember doctor` says so.
    """
    if not callable(fn):
        raise TypeError(f"compile: expected a function, got {type(fn).__name__}")
    traces: dict = {}

    def run(*args, **kw):
        leaves, structure = tree.flatten((args, kw))
        where = tuple(i for i, x in enumerate(leaves) if isinstance(x, EmberTensor))
        engines = {leaves[i].backend for i in where}
        if len(engines) != 1:
            raise BackendMismatch(f"compile: expected tensors of one engine among the arguments, got "
                                  f"{', '.join(sorted(b.name for b in engines)) or 'none'}; move them with x.to(...)")
        backend = engines.pop()
        if backend.runtime.compiles is None or any(leaves[i].node is not None for i in where):
            return fn(*args, **kw)                         # nothing to gain, and the tape has to see the parts
        static = tuple(x for i, x in enumerate(leaves) if i not in where)
        key = (structure, where, static)
        if key not in traces:
            traces[key] = _trace(fn, backend, structure, where, leaves)
        native, form = traces[key]
        out = iter(native(*[leaves[i].data for i in where]))
        return tree.unflatten(form["structure"], [EmberTensor(next(out), backend) if is_tensor else x
                                                  for is_tensor, x in form["leaves"]])
    return run


def _trace(fn, backend, structure, where, leaves):
    """(compiled native function, form of its output, which the first call fills in)."""
    template = [None if i in where else x for i, x in enumerate(leaves)]
    form: dict = {}

    def flat(*natives):
        full = list(template)
        for i, a in zip(where, natives):
            full[i] = EmberTensor(a, backend)
        args, kw = tree.unflatten(structure, full)
        with transforming(tracing=True):
            out, form["structure"] = tree.flatten(fn(*args, **kw))
        form["leaves"] = [(isinstance(x, EmberTensor), None if isinstance(x, EmberTensor) else x) for x in out]
        return [x.data for x in out if isinstance(x, EmberTensor)]

    return backend.runtime.compile(flat), form
