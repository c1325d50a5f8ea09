"""A state dict that says what it lacks, and knows what was read from it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from ember_ml.errors import WeightsError
from ember_ml.tensor import EmberTensor


class Asked(dict):
    """Tensors by their original names.

    Args:
        project: for messages. state: the tensors.

    Attributes: names, of those that were asked for; last, the latest of them.
    """

    def __init__(self, project: str, state: dict[str, EmberTensor]):
        super().__init__(state)
        self.project, self.names, self.last = project, set(), ""

    def __missing__(self, name: str):
        raise WeightsError(f"{self.project}: expected a tensor {name!r} in the checkpoint; it has {', '.join(list(self)[:4])}, ...")

    def __getitem__(self, name: str) -> EmberTensor:
        self.last = name
        self.names.add(name)
        return super().__getitem__(name)

    def all_read(self, what: str, ignored: Sequence[str] = ()):
        """Raises WeightsError naming tensors that nobody asked for and no glob of `ignored` fits; `what` has no place for them."""
        left = [n for n in sorted(set(self) - self.names) if not any(fnmatchcase(n, glob) for glob in ignored)]
        if left:
            raise WeightsError(f"{self.project}: the checkpoint has {', '.join(left[:4])}{', ...' if len(left) > 4 else ''}, which {what} "
                               "has no place for")
