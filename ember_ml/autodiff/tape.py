"""Ember's own reverse mode: a record of the ops that touched a watched tensor, and the walk back over it.

It is the gradient of NumPy and CuPy, and on every engine the second opinion to the native one. A node holds what its op's rule will
read, as it was then: an assignment after use cannot change a gradient.

    leaf:  a watched input. `outer` is its node in an enclosing gradient, for second order.
    pick:  one of several outputs of an op.
"""

from __future__ import annotations

import heapq
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import count

from ember_ml.errors import UnsupportedOp
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

_order = count()
_depth: ContextVar[int] = ContextVar("ember_tape_depth", default=0)


@contextmanager
def recording():
    """One gradient under way. Inside a second one, the walk back is itself recorded, so that it has gradients."""
    token = _depth.set(_depth.get() + 1)
    try:
        yield
    finally:
        _depth.reset(token)


def pull(fn, inputs: list[EmberTensor], cotangents: list[EmberTensor]) -> list[EmberTensor | None]:
    """Gradients of sum(output * cotangent) for the outputs of `fn(list of tensors)`, one per input, None without a path.

    For rules that run a function again to differentiate it: by the engine's own gradient if it has one for this and the rule serves that,
    else by the tape. Where inputs or cotangents are recorded themselves, by an enclosing gradient that will be differentiated, so is
    the walk back; else nothing is kept.
    """
    live, backend = any(x.node is not None for x in (*inputs, *cotangents)), inputs[0].backend
    if not live and not _depth.get() and backend.runtime.pull is not None:
        grads = backend.runtime.pull(lambda natives: [y.data for y in fn([EmberTensor(x, backend) for x in natives])],
                                     [x.data for x in inputs], [g.data for g in cotangents])
        if grads is not None:
            return [None if g is None else EmberTensor(g, backend) for g in grads]
    token = _depth.set(_depth.get() + 1 if live else 1)
    try:
        watched = [watch(x) if x.dtype.is_inexact else x for x in inputs]
        outputs = fn(watched)
        found = iter(backward(outputs, cotangents, [w.node for w in watched if w.dtype.is_inexact]))
        return [next(found) if w.dtype.is_inexact else None for w in watched]
    finally:
        _depth.reset(token)


class Node:
    """One recorded op: its rule, what the rule reads, and the nodes of its inputs."""

    __slots__ = ("op", "parents", "args", "kw", "out", "like", "index", "order", "outer")

    def __init__(self, op, parents, args=(), kw=None, out=None, like=(), index=None, outer=None):
        self.op, self.parents, self.args, self.kw, self.out = op, parents, args, kw, out
        self.like, self.index, self.outer, self.order = like, index, outer, next(_order)


def watch(x: EmberTensor) -> EmberTensor:
    """`x` as a leaf: gradients with respect to it can be asked for."""
    return EmberTensor(x.data, x.backend, Node(None, (x.node,) if x.node else (), outer=x.node))


def record(op, args, kw, out):
    """Links `out` (a fresh tensor, or a tuple of them) to the inputs of the op that made it."""
    parents = [a.node if type(a) is EmberTensor else None for a in args]
    keep = [EmberTensor(a.data, a.backend, a.node) if type(a) is EmberTensor and op.reads(i) else
            (None if type(a) is EmberTensor else a) for i, a in enumerate(args)]
    like = [(a.shape, a.dtype) if type(a) is EmberTensor else None for a in args]
    node = Node(op, parents, keep, kw, None, like)
    if isinstance(out, tuple):
        for i, o in enumerate(out):
            o.node = Node(None, (node,), index=i)
        node.out = tuple(EmberTensor(o.data, o.backend) for o in out)
    else:
        out.node = node
        if op.reads_output:                              # without its node: a cycle would keep the arrays until a collection
            node.out = EmberTensor(out.data, out.backend)


def enclosed() -> bool:
    """Whether the gradient that is being recorded lies inside another one."""
    return _depth.get() > 1


def fit(g: EmberTensor, shape: tuple, dtype) -> EmberTensor:
    """A gradient brought to its input's shape and dtype: what broadcasting and promotion did is undone."""
    if g.shape != shape:
        lead = g.ndim - len(shape)
        axes = tuple(range(lead)) + tuple(i + lead for i, n in enumerate(shape) if n == 1 and g.shape[i + lead] != 1)
        g = g.sum(axis=axes, keepdims=True).reshape(shape) if axes else g.reshape(shape)
    if g.dtype is not dtype:
        if g.dtype.kind == "complex" and dtype.kind != "complex":
            g = g.real()
        if g.dtype is not dtype:
            g = g.astype(dtype)
    return g


def backward(outputs, cotangents, leaves: list[Node]) -> list[EmberTensor | None]:
    """Gradients of sum(output * cotangent) with respect to the leaves; None where there is no path.

    Raises UnsupportedOp where the path leads through an op that has no rule.
    """
    nested = enclosed()
    targets = {id(n) for n in leaves}
    useful = _useful([o.node for o in outputs if o.node is not None], targets)
    grads: dict[int, object] = {}
    queue: list = []

    def give(node, g):
        if node is None or id(node) not in useful:
            return
        if id(node) in grads:
            grads[id(node)] = grads[id(node)] + g
        else:
            grads[id(node)] = g
            heapq.heappush(queue, (-node.order, id(node), node))

    for o, g in zip(outputs, cotangents):
        give(o.node, g)
    found: dict[int, EmberTensor] = {}
    while queue:
        node = heapq.heappop(queue)[2]
        g = grads.pop(id(node))
        if id(node) in targets:
            found[id(node)] = g
        elif node.index is not None:                     # a pick: hand over to the op, as a tuple with gaps
            op_node = node.parents[0]
            slots = grads.get(id(op_node))
            if slots is None:
                slots = grads[id(op_node)] = [None] * len(op_node.out)
                heapq.heappush(queue, (-op_node.order, id(op_node), op_node))
            have = slots[node.index]                     # a rule that read the output made a pick of its own
            slots[node.index] = g if have is None else have + g
        elif node.op is None:                            # a leaf of an inner gradient
            give(node.outer, g)
        else:
            for parent, gi in zip(node.parents, _apply(node, g, nested, useful)):
                if gi is not None:
                    give(parent, gi)
    return [found.get(id(n)) for n in leaves]


def _useful(roots, targets: set[int]) -> set[int]:
    """Ids of the nodes from which a target can be reached, targets included."""
    state: dict[int, bool] = {}
    stack = [(n, False) for n in roots]
    while stack:
        node, done = stack.pop()
        if done:
            state[id(node)] = any(state.get(id(p), False) for p in node.parents if p is not None)
        elif id(node) not in state:
            state[id(node)] = id(node) in targets
            if not state[id(node)]:
                stack.append((node, True))
                stack.extend((p, False) for p in node.parents if p is not None)
    return {key for key, useful in state.items() if useful}


def _apply(node: Node, g, nested: bool, useful: set[int]):
    op = node.op
    if op.vjp is None:
        raise UnsupportedOp(f"{op.public}: has no gradient{': ' + op.no_grad if op.no_grad else ''}")

    needs = [p is not None and id(p) in useful for p in node.parents]
    args, out = node.args, node.out
    if not nested:
        args = [EmberTensor(a.data, a.backend) if type(a) is EmberTensor else a for a in args]
        node.args, node.out = (), None                   # nobody reads them again: they go as the walk proceeds
    elif isinstance(out, tuple):
        out = tuple(EmberTensor(o.data, o.backend, Node(None, (node,), index=i)) for i, o in enumerate(out))
    elif out is not None:
        out = EmberTensor(out.data, out.backend, node)
    if isinstance(g, list):
        g = tuple(EmberTensor(o.data, o.backend).zeros_like() if gi is None else gi for gi, o in zip(g, out))
    grads = op.apply_rule(g, out, args, node.kw or {}, needs, node.like)
    return [None if gi is None or not need else fit(gi, *like) if like[1].is_inexact else None
            for gi, need, like in zip(grads, needs, node.like)]
