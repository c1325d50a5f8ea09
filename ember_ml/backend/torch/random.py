"""Threefry-2x32 on torch, which has no uint32 arithmetic: int32 words that wrap around, read as uint32 at the end."""

from __future__ import annotations

import torch


def _right(x, r: int):
    """Logical shift right of int32: torch's own shift drags the sign along."""
    return (x >> r) & ((1 << (32 - r)) - 1)


def _signed(x: int) -> int:
    return x - (1 << 32) if x >= 1 << 31 else x


def _rounds(key, x, y):
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    first, second = key[0], key[1]
    words = (first, second, first ^ second ^ _signed(0x1BD11BDA))
    x, y = x + words[0], y + words[1]
    for i in range(5):
        for r in rotations[i % 2]:
            x = x + y
            y = x ^ ((y << r) | _right(y, 32 - r))
        x, y = x + words[(i + 1) % 3], y + words[(i + 2) % 3] + (i + 1)
    return x, y


def random_bits(key, shape):
    """uint32 words of that shape; the counter layout is in `ember_ml.ops.random`."""
    n = 1
    for length in shape:
        n *= length
    half = (n + 1) // 2
    low = torch.arange(half, dtype=torch.int32, device=key.device)
    high = low + half
    if n % 2:                                            # the odd word in the middle is paired with counter 0
        high = torch.where(low == half - 1, torch.zeros_like(high), high)
    x, y = _rounds(key.view(torch.int32), low, high)
    return torch.cat((x, y))[:n].view(torch.uint32).reshape(shape)


def fold(key, number):
    """The key of a counter (0, number)."""
    counter = number.to(torch.int64).to(torch.int32).reshape(1)
    x, y = _rounds(key.view(torch.int32), torch.zeros_like(counter), counter)
    return torch.cat((x, y)).view(torch.uint32)


TABLE = {"random_bits": random_bits, "fold": fold}
