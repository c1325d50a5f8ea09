"""Random numbers from keys: Threefry-2x32 in MLX's layout, so one key gives one result on every engine.

A key is two uint32 words. The same key always gives the same numbers: split it for more. Bits, float32 uniforms, integers,
bernoulli draws and permutations are equal to the bit on all engines; normals agree to 1e-6 (their erfinv differs).

Source: Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3; the counter layout is mlx.core.random's.
"""

from __future__ import annotations

import math

from ember_ml.errors import ShapeError
from ember_ml.ops.creation import tensor
from ember_ml.ops.declare import op
from ember_ml.ops.dispatch import CONSTANT
from ember_ml.ops.elementwise import clip, erfinv, log, minimum
from ember_ml.ops.reduce import argmax
from ember_ml.ops.shape import cut, reshape
from ember_ml.ops.sort import argsort
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt

#: the largest float32 below 1
_BELOW_ONE = 1.0 - 2.0 ** -24


@op(vjp=CONSTANT)
def random_bits(key, *, shape):
    """Independent uint32 words of that shape. Words i and i + ceil(n/2) of n come from counter (i, i + ceil(n/2))."""
    ...


def key(seed: int, device: str | None = None) -> EmberTensor:
    """The key of a seed: (high, low) 32 bits of it, uint32 of shape (2,). Raises ValueError unless 0 <= seed < 2^64."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"random.key: expected 0 <= seed < 2**64, got {seed}")
    return tensor([seed >> 32, seed & 0xFFFFFFFF], dtype=dt.uint32, device=device)


def split(key: EmberTensor, num: int = 2) -> list[EmberTensor]:
    """`num` new keys from one, which should not be used again itself."""
    _check(key)
    words = random_bits(key, shape=(num, 2))
    return [reshape(cut(words, i, i + 1, axis=0), (2,)) for i in range(num)]


def fold_in(key: EmberTensor, number: EmberTensor | int) -> EmberTensor:
    """The key that belongs to `number` under this key: a step counter, the index of a layer.

    Args:
        number: a Python int, or an integer scalar tensor (so that a compiled step can count).
    """
    _check(key)
    if not isinstance(number, EmberTensor):
        number = tensor(number & 0xFFFFFFFF, dtype=dt.uint32, like=key)
    return fold(key, number)


@op(vjp=CONSTANT)
def fold(key, number):
    """Threefry of the counter (0, number) under the key: a new key."""
    ...


def bits(key: EmberTensor, shape) -> EmberTensor:
    """Uniform uint32 words of that shape."""
    _check(key)
    return random_bits(key, shape=_shape(shape))


def uniform(key: EmberTensor, shape=(), low: float = 0.0, high: float = 1.0, dtype=dt.float32) -> EmberTensor:
    """Uniform numbers in [low, high): float32 from 32 bits each, then cast to `dtype`."""
    unit = minimum(bits(key, shape).astype(dt.float32) * 2.0 ** -32, _BELOW_ONE)
    if (low, high) != (0.0, 1.0):
        unit = unit * (high - low) + low
    return unit.astype(dtype)


def normal(key: EmberTensor, shape=(), mean: float = 0.0, std: float = 1.0, dtype=dt.float32) -> EmberTensor:
    """Normal numbers: mean + std * sqrt(2) * erfinv(u), u uniform in (-1, 1)."""
    low = -1.0 + 2.0 ** -24
    u = clip(uniform(key, shape) * (1.0 - low) + low, min=low, max=_BELOW_ONE)
    return (erfinv(u) * (math.sqrt(2.0) * std) + mean).astype(dtype)


def bernoulli(key: EmberTensor, p: float, shape=()) -> EmberTensor:
    """bool, true with probability p."""
    return uniform(key, shape) < p


def randint(key: EmberTensor, shape, low: int, high: int, dtype=dt.int32) -> EmberTensor:
    """Integers low <= i < high; uniform up to a bias of (high - low) / 2^32."""
    if not low < high:
        raise ValueError(f"random.randint: expected low < high, got {low} and {high}")
    u = uniform(key, shape) * float(high - low)
    return (u.astype(dt.int32) + low).astype(dtype)


def permutation(key: EmberTensor, n: int) -> EmberTensor:
    """0 ... n-1 in random order, int32: the stable order of n random words."""
    return argsort(bits(key, (n,)).astype(dt.int64))


def categorical(key: EmberTensor, logits: EmberTensor) -> EmberTensor:
    """int32 draws from softmax(logits) over the last axis, by the Gumbel maximum: shape logits.shape[:-1]."""
    u = uniform(key, logits.shape) + 2.0 ** -33
    return argmax(logits - log(-log(u)), axis=-1)


def _shape(shape) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _check(key: EmberTensor):
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
