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


def _words(key: torch.Tensor, n: int) -> torch.Tensor:
    """n words as int32."""
    half = (n + 1) // 2
    low = torch.arange(half, dtype=torch.int32, device=key.device)
    high = low + half
    if n % 2:                                            # the odd word in the middle is paired with counter 0
        high = torch.where(low == half - 1, torch.zeros_like(high), high)
    x, y = _rounds(key, low, high)
    return torch.cat((x, y))[:n]


def _folded(key: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    return torch.cat(_rounds(key, torch.zeros_like(counter), counter))


# On the CPU torch.compile would spend ten seconds on C++ code for each draw, so it sees one op there. On a GPU the
# rounds are better fused.
_words_cpu = torch.library.custom_op("ember::threefry", _words, mutates_args=())
_folded_cpu = torch.library.custom_op("ember::threefry_fold", _folded, mutates_args=())
_words_cpu.register_fake(lambda key, n: key.new_empty((n,)))
_folded_cpu.register_fake(lambda key, counter: key.new_empty((2,)))


def random_bits(key, shape):
    """uint32 words of that shape; the counter layout is in `ember_ml.ops.random`."""
    draw = _words_cpu if key.device.type == "cpu" else _words
    return draw(key.view(torch.int32), math.prod(shape)).view(torch.uint32).reshape(shape)


def fold(key, number):
    """The key of a counter (0, number)."""
    draw = _folded_cpu if key.device.type == "cpu" else _folded
    return draw(key.view(torch.int32), number.to(torch.int64).to(torch.int32).reshape(1)).view(torch.uint32)


TABLE = {"random_bits": random_bits, "fold": fold}
