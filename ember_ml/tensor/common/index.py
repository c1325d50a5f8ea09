"""Static indices with places for tensors, as the indexing ops hand them to the engines."""

from __future__ import annotations


class Slot:
    """The place of a tensor in a static index."""

    __slots__ = ("i",)

    def __init__(self, i: int):
        self.i = i

    def __eq__(self, other) -> bool:
        return isinstance(other, Slot) and other.i == self.i

    def __hash__(self) -> int:
        return hash(("slot", self.i))


def fill(index, tensors):
    """The index with its slots filled by native arrays: what an engine's own `x[...]` takes."""
    return tuple(tensors[part.i] if isinstance(part, Slot) else part for part in index)
