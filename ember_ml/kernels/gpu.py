"""What the host side of the kernels asks of an engine. It stands once, beside the specs (`moe`, `route`, `scan`), for both machines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from ember_ml.kernels.spec import LANES, THREADS, Entry, TemplateEntry

#: a native array of the engine
Array = Any

#: shape and dtype of an array that a launch makes
Output = tuple[Sequence[int], str]


class Rows(NamedTuple):
    """`width` threads for each of `count` rows, in groups of `group` (along a row, rows)."""

    count: int
    width: int
    group: tuple[int, int]

    @property
    def metal(self) -> tuple[tuple, tuple]:
        """(threads, threads of a group)."""
        return (self.width, self.count, 1), (*self.group, 1)

    @property
    def cuda(self) -> tuple[tuple, tuple]:
        """(blocks, threads of a block). blockIdx.x counts rows: the other two end at 65,535."""
        return (-(-self.count // self.group[1]), -(-self.width // self.group[0])), self.group


class Channels(NamedTuple):
    """A group for every LANES channels of every sequence, with `segments` rows of LANES threads."""

    batch: int
    channels: int
    segments: int

    @property
    def metal(self) -> tuple[tuple, tuple]:
        """As that of Rows."""
        return (-(-self.channels // LANES) * LANES, self.segments, self.batch), (LANES, self.segments, 1)

    @property
    def cuda(self) -> tuple[tuple, tuple]:
        """As that of Rows."""
        return (-(-self.channels // LANES) * self.batch, 1), (LANES, self.segments)


class Groups(NamedTuple):
    """So many groups of so many threads."""

    count: int
    threads: int

    @property
    def metal(self) -> tuple[tuple, tuple]:
        """As that of Rows."""
        return (self.count * self.threads, 1, 1), (self.threads, 1, 1)

    @property
    def cuda(self) -> tuple[tuple, tuple]:
        """As that of Rows."""
        return (self.count,), (self.threads,)


Grid = Rows | Channels | Groups


def rows(count: int, width: int) -> Rows:
    """A thread for each of `width` elements of a row: groups as wide as a row needs, in whole simdgroups."""
    x = LANES
    while x < min(width, THREADS):
        x *= 2
    return Rows(count, width, (x, THREADS // x))


def simdgroups(count: int) -> Rows:
    """A simdgroup, or warp, for every row."""
    return Rows(count, LANES, (LANES, THREADS // LANES))


class Gpu(Protocol):
    """An engine's arrays and launches, on its current device and stream, lazy where the engine is."""

    #: "metal" or "cuda": which of the twins it launches
    language: str

    def dtype(self, x: Array) -> str:
        """The dtype's name."""

    def cast(self, x: Array, dtype: str) -> Array: ...

    def zeros(self, shape: Sequence[int], dtype: str, like: Array) -> Array:
        """An array on the device of `like`."""

    def copy(self, x: Array) -> Array:
        """x as an array that may be given out beside x."""

    def contiguous(self, x: Array) -> Array:
        """x row by row in one piece of memory."""

    def widened(self, x: Array, columns: int) -> Array:
        """x (H, K) with zeros in further columns."""

    def constants(self, make: Callable[..., list[float]], arguments: tuple, like: Array) -> Array:
        """`make(*arguments)` in float32, made once for each device."""

    def in_turns(self, compute: Callable[..., tuple], some: int, few: int, axes: tuple[int, ...], rows: dict, filters: dict,
                 masks: dict) -> tuple:
        """`compute(**rows, **filters, **masks)`; where every array is written once (MLX), for `some` heads and `few` rows of each at a time.

        See `ember_mlx.turns`.
        """

    def launch(self, entry: Entry, inputs: Sequence[Array], outputs: Sequence[Output], grid: Grid, numbers: Sequence[int | float] = (),
               filled: int | None = None) -> tuple[Array, ...]:
        """New arrays, by one launch of the kernel, which takes any strides: what is not contiguous is copied.

        Elements of the first output that the kernel leaves alone are `filled`, if it leaves any.

        Raises UnsupportedDtype if the kernel does not take the inputs' dtypes.
        """

    def launch_template(self, entry: TemplateEntry, inputs: Sequence[Array | None], outputs: Sequence[Output | Array | None], grid: Grid,
                        numbers: Sequence[int] = (), *, types: Sequence[str] = (), template: str = "",
                        shared: int = 0) -> tuple[Array | None, ...]:
        """The same for a template: None stands for inputs and outputs that are not there.

        Args:
            inputs: those that the entry calls strided in any memory order, the others contiguous.
            outputs: with CUDA also arrays that are there, to be updated or filled further.
            types: dtypes that CUDA's template begins with; Metal finds them itself.
            template: the arguments of the template after these.
            shared: floats of threadgroup memory.
        """
