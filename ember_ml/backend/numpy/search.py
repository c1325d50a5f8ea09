"""Search and sets on an array module with NumPy's interface."""

from __future__ import annotations


def build(xp) -> dict:
    """op name -> function."""

    def unique(x):
        values, indices, inverse, counts = xp.unique(x, return_index=True, return_inverse=True, return_counts=True, equal_nan=False)
        return values, indices.astype("int32"), inverse.reshape(x.shape).astype("int32"), counts.astype("int32")

    return {
        "nonzero_places": lambda x: tuple(i.astype("int32") for i in xp.nonzero(x)),
        "unique_parts": unique,
        "searchsorted_rows": lambda x, values, right=False: xp.asarray(
            xp.searchsorted(x, values, side="right" if right else "left")).astype("int32"),
    }
