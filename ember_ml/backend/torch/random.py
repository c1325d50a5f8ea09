"""Threefry-2x32 on torch, which has no uint32 arithmetic: int32 words that wrap around, read as uint32 at the end."""

from __future__ import annotations

import math

import torch


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x


def _rounds(key, x, y):
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    first, second = key[0], key[1]
    words = (first, second, first ^ second ^ _signed(0x1BD11BDA))
    x, y, high = x + words[0], y + words[1], torch.empty_like(y)
    for i in range(5):
        for r in rotations[i % 2]:
            x += y
            torch.bitwise_left_shift(y, r, out=high)
            y >>= 32 - r                                 # torch's shift drags the sign along: the mask takes it off
            y &= (1 << r) - 1
            y |= high
            y ^= x
        x += words[(i + 1) % 3]
        y += words[(i + 2) % 3] + (i + 1)
    return x, y


@torch.library.custom_op("ember::threefry", mutates_args=())
def _words(key: torch.Tensor, n: int) -> torch.Tensor:
    """n words as int32. One op to torch.compile, which takes ten seconds to generate code for the rounds."""
    half = (n + 1) // 2
    low = torch.arange(half, dtype=torch.int32, device=key.device)
    high = low + half
    if n % 2:                                            # the odd word in the middle is paired with counter 0
        high = torch.where(low == half - 1, torch.zeros_like(high), high)
    x, y = _rounds(key, low, high)
    return torch.cat((x, y))[:n]


@torch.library.custom_op("ember::threefry_fold", mutates_args=())
def _fold(key: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    return torch.cat(_rounds(key, torch.zeros_like(counter), counter))


@_words.register_fake
def _(key, n):
    return key.new_empty((n,))


@_fold.register_fake
def _(key, counter):
    return key.new_empty((2,))


def random_bits(key, shape):
    """uint32 words of that shape; the counter layout is in `ember_ml.ops.random`."""
    return _words(key.view(torch.int32), math.prod(shape)).view(torch.uint32).reshape(shape)


def fold(key, number):
    """The key of a counter (0, number)."""
    return _fold(key.view(torch.int32), number.to(torch.int64).to(torch.int32).reshape(1)).view(torch.uint32)


TABLE = {"random_bits": random_bits, "fold": fold}
