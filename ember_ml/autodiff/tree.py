"""Trees: nested dicts, lists and tuples of tensors, as states, parameters and gradients are.

Anything that is no dict, list or tuple is a leaf. Everything that crosses into a native transform (gradients, compile)
is flattened here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable

from ember_ml.tensor import EmberTensor

LEAF = "*"


def flatten(tree) -> tuple[list, object]:
    """(leaves, structure): leaves in order; the structure is hashable and equal for trees of the same form."""
    leaves: list = []
    return leaves, _walk(tree, leaves)


def _walk(tree, leaves: list):
    if isinstance(tree, dict):
        return (dict, tuple(tree), tuple(_walk(v, leaves) for v in tree.values()))
    if isinstance(tree, (list, tuple)):
        return (type(tree), None, tuple(_walk(v, leaves) for v in tree))
    leaves.append(tree)
    return LEAF


def unflatten(structure, leaves) -> object:
    """The tree of that structure with these leaves."""
    return _build(structure, iter(leaves))


def _build(structure, leaves):
    if structure == LEAF:
        return next(leaves)
    kind, keys, children = structure
    values = [_build(child, leaves) for child in children]
    if kind is dict:
        return dict(zip(keys, values))
    return kind(*values) if hasattr(kind, "_fields") else kind(values)


def map(fn: Callable, tree, *rest):  # noqa: A001 - the field's name for it
    """A tree of `fn(leaf, *leaves of rest)`. Raises ValueError where the trees differ in form."""
    leaves, structure = flatten(tree)
    others = []
    for other in rest:
        more, form = flatten(other)
        if form != structure:
            raise ValueError(f"tree.map: expected trees of one form, got {structure} and {form}")
        others.append(more)
    return unflatten(structure, [fn(*group) for group in zip(leaves, *others)])


def tensors(tree) -> list[EmberTensor]:
    """The leaves that are tensors, in order."""
    return [leaf for leaf in flatten(tree)[0] if isinstance(leaf, EmberTensor)]


def named(tree, prefix: str = "") -> dict[str, object]:
    """Leaves by dotted path: {"a": [x, y]} gives {"a.0": x, "a.1": y}."""
    if not isinstance(tree, (dict, list, tuple)):
        return {prefix: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    out: dict[str, object] = {}
    for key, value in items:
        out.update(named(value, f"{prefix}.{key}" if prefix else str(key)))
    return out
