"""Keys, the words that belong to them, and uniform numbers: Threefry-2x32 in MLX's layout, so one key gives one result on every engine.

A key is two uint32 words. The same key always gives the same numbers: split it for more.

Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3; the counter layout is mlx.core.random's.
"""

from __future__ import annotations

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import check_shape, tensor
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import minimum
from ember_ml.ops.shape import cut, reshape
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: the largest float32 below 1
BELOW_ONE = 1.0 - 2.0 ** -24


@op(vjp=CONSTANT)
def random_bits(key, *, shape):
    """Independent uint32 words of that shape. Words i and i + ceil(n/2) of n come from counter (i, i + ceil(n/2))."""
    ...


def key(seed: int, device: str | None = None) -> EmberTensor:
    """The key of a seed: (high, low) 32 bits of it, uint32 of shape (2,). Raises ValueError unless 0 <= seed < 2^64."""
    if not hasattr(seed, "__index__") or not 0 <= seed < 1 << 64:
        raise ValueError(f"random.key: expected a whole number, 0 <= seed < 2**64, got {seed!r}")
    return tensor([seed >> 32, seed & 0xFFFFFFFF], dtype=dt.uint32, device=device)


def split(key: EmberTensor, num: int = 2) -> list[EmberTensor]:
    """`num` new keys from one, which should not be used again itself."""
    check_key(key)
    if not hasattr(num, "__index__") or num < 1:
        raise ValueError(f"random.split: expected a number of keys of at least 1, got {num!r}")
    words = random_bits(key, shape=(num, 2))
    return [reshape(cut(words, i, i + 1, axis=0), (2,)) for i in range(num)]


def fold_in(key: EmberTensor, number: EmberTensor | int) -> EmberTensor:
    """The key that belongs to `number` under this key: a step counter, the index of a layer.

    Args:
        number: a Python int, or an integer scalar tensor (so that a compiled step can count).
    """
    check_key(key)
    if not isinstance(number, EmberTensor):
        number = tensor(number & 0xFFFFFFFF, dtype=dt.uint32, like=key)
    return fold(key, number)


@op(vjp=CONSTANT)
def fold(key, number):
    """Threefry of the counter (0, number) under the key: a new key."""
    ...


def bits(key: EmberTensor, shape) -> EmberTensor:
    """Uniform uint32 words of that shape."""
    check_key(key)
    return random_bits(key, shape=check_shape(shape))


def uniform(key: EmberTensor, shape=(), low: float = 0.0, high: float = 1.0, dtype=dt.float32) -> EmberTensor:
    """Uniform numbers in [low, high): float32 from 32 bits each, then cast to `dtype`."""
    unit = minimum(bits(key, shape).astype(dt.float32) * 2.0 ** -32, BELOW_ONE)
    if (low, high) != (0.0, 1.0):
        unit = unit * (high - low) + low
    return unit.astype(dtype)


def check_key(key: EmberTensor):
    if not isinstance(key, EmberTensor) or key.shape != (2,) or key.dtype is not dt.uint32:
        got = f"{key.dtype} {key.shape}" if isinstance(key, EmberTensor) else type(key).__name__
        raise ShapeError(f"random: expected a key, uint32 of shape (2,), as em.random.key(seed) makes; got {got}")


class _Stream:
    """The convenience stream: a seed, and how many keys were drawn from it."""

    seed, drawn = 0, 0


def seed(value: int):
    """Restarts the stream of keys that modules draw from when they are built without one."""
    _Stream.seed, _Stream.drawn = value, 0


def next_key() -> EmberTensor:
    """The next key of the stream, on the current engine. Explicit keys are better where results must repeat."""
    _Stream.drawn += 1
    return fold_in(key(_Stream.seed), _Stream.drawn)
