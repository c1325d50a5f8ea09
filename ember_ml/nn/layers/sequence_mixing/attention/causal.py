"""The past of causal attention: a cache of keys and values that grows, or moves on with a window."""

from __future__ import annotations

from ember_ml.nn.packing import current
from ember_ml.ops import arange, concat, expand_dims, zeros
from ember_ml.ops.shape import cut
from ember_ml.tensor import EmberTensor

#: {"k", "v"}: (B, heads, positions, width) each; "position": (B,) int32, the number of positions so far
Cache = dict[str, EmberTensor]


def empty_cache(batch: int, heads: int, width: int, dtype, like: EmberTensor) -> Cache:
    """The cache before the first position."""
    cache = {name: zeros((batch, heads, 0, width), dtype, like=like) for name in ("k", "v")}
    return cache | {"position": zeros((batch,), "int32", like=like)}


def positions(batch: int, length: int, cache: Cache | None, like: EmberTensor) -> EmberTensor:
    """The numbers of `length` new positions, int32 (B, L); (1, L) for a sequence from its beginning. In packed rows a document's from 0."""
    packing = current()
    if packing is not None:
        return packing.positions
    if cache is None:
        return expand_dims(arange(length, like=like), 0)
    first = expand_dims(cache["position"], 1)
    return first if length == 1 else first + expand_dims(arange(length, like=like), 0)


def extend_cache(cache: Cache, k: EmberTensor, v: EmberTensor, window: int | None) -> tuple[EmberTensor, EmberTensor, Cache]:
    """(all keys, all values, next cache) after new ones, (B, heads, L, width) each.

    With a window the next cache keeps the last window - 1 positions: what the next query sees beside its own.
    """
    after = {"position": cache["position"] + k.shape[2]}
    joined = [concat([cache[name], new.astype(cache[name].dtype)], axis=2) for name, new in (("k", k), ("v", v))]
    for name, x in zip("kv", joined):
        keys = x.shape[2]
        after[name] = x if window is None or keys < window else cut(x, keys - window + 1, keys, axis=2)
    return *joined, after
