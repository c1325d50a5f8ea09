"""Long filters in evaluation: made once for each value of the parameters behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ember_ml.autodiff import is_transforming
from ember_ml.tensor import EmberTensor


class FrozenFilters:
    """Remembers the filters of one layer, in the form that it uses. A layer holds it as a private attribute; it is no part of its state."""

    def __init__(self):
        self._made: tuple | None = None                    # (values of the sources, length, filters)

    def get(self, sources: Sequence[EmberTensor], length: int,
            make: Callable[[], list]) -> list | None:
        """`make()`, or what it gave last time if the sources are the same values and it was long enough.

        Args:
            sources: the tensors that the filters are computed from.
            length: taps that are needed; a causal filter serves shorter inputs too.
            make: gives the filters.

        Returns: the filters; None where a gradient or a compilation is under way, which must see how they are made.
        """
        if is_transforming(sources):
            return None
        values = [_value(x) for x in sources]
        if self._made is not None:
            before, enough, filters = self._made
            if enough >= length and len(before) == len(values) and all(a is b and m == n for (a, m), (b, n)
                                                                       in zip(before, values)):
                return filters
        filters = make()
        self._made = (values, length, filters)
        return filters


def _value(x: EmberTensor) -> tuple:
    """A tensor's native array, and how often torch has changed it in place (an optimizer that is not Ember's does)."""
    return x.data, getattr(x.data, "_version", 0)
