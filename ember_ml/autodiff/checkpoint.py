"""Trading time for memory: keep a function's inputs only, and compute its inside again for the gradient."""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.autodiff import tape, tree
from ember_ml.tensor import EmberTensor


def checkpoint(fn: Callable) -> Callable:
    """`fn` with the same values and gradients, whose intermediate results are not kept but computed twice.

    Args:
        fn: a pure function of trees of tensors that returns a tree of tensors. Tensors that it reads from outside
            its arguments are constants to the gradient on every engine: pass parameters as arguments.

    Source: Chen et al. 2016, Training Deep Nets with Sublinear Memory Cost.
    """
    if not callable(fn):
        raise TypeError(f"checkpoint: expected a function, got {type(fn).__name__}")

    def run(*args):
        leaves, structure = tree.flatten(args)
        where = [i for i, x in enumerate(leaves) if isinstance(x, EmberTensor)]
        inputs = [leaves[i] for i in where]
        form = {}

        def flat(tensors):
            full = list(leaves)
            for i, x in zip(where, tensors):
                full[i] = x
            out, form["structure"] = tree.flatten(fn(*tree.unflatten(structure, full)))
            return out

        if any(x.node is not None for x in inputs):
            return tree.unflatten(*_swap(_taped(flat, inputs), form))
        backend = inputs[0].backend
        natives = backend.runtime.checkpoint(
            lambda *raw: tuple(o.data for o in flat([EmberTensor(a, backend) for a in raw])))(*(x.data for x in inputs))
        return tree.unflatten(form["structure"], [EmberTensor(o, backend) for o in natives])
    return run


def _swap(outputs, form):
    return form["structure"], outputs


class _Recompute:
    """The op that the tape records for a checkpointed function: its rule runs the function again, recorded."""

    name, no_grad, reads_output, vjp = "checkpoint", None, False, True

    def __init__(self, flat):
        self.flat = flat

    def reads(self, i: int) -> bool:
        return True

    def apply_rule(self, g, out, args, kw, needs, like):
        return tape.pull(self.flat, args, list(g))


def _taped(flat, inputs):
    outputs = tuple(flat([EmberTensor(x.data, x.backend) for x in inputs]))
    outputs = tuple(EmberTensor(o.data, o.backend) for o in outputs)
    tape.record(_Recompute(flat), inputs, {}, outputs)
    return list(outputs)
