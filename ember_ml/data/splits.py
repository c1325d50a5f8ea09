"""What is trained on and what is held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from ember_ml.data.documents import Documents
from ember_ml.errors import DataError


def by_hash(contents: Iterable[bytes], share: float) -> np.ndarray:
    """bool (documents,), True for those that are held out: blake2b(content) < share 2^64.

    The side of a document depends on nothing but its content: new documents move no old one, and equal ones stay together.
    """
    bound = int(share * 2.0**64)
    return np.array([int.from_bytes(hashlib.blake2b(c, digest_size=8).digest(), "big") < bound for c in contents], bool)


def split_by_hash(documents: Documents, contents: Iterable[bytes], share: float) -> tuple[Documents, Documents]:
    """(train, held out) by `by_hash` of what each document says. Raises DataError if a side stays empty."""
    held = by_hash(contents, share)
    if not held.any() or held.all():
        raise DataError(f"data: the hash puts {int(held.sum())} of {len(held)} documents into the held-out part of {share:g}; use "
                        'split = "tail", another share, or more documents')
    return documents.take(np.flatnonzero(~held)), documents.take(np.flatnonzero(held))


def split_tail(documents: Documents, share: float) -> tuple[Documents, Documents]:
    """(train, held out): the fewest last documents that have at least this share of all tokens; a lone document is cut in two."""
    wanted = max(1, int(np.ceil(share * documents.tokens.size)))
    first = int(np.searchsorted(documents.starts, documents.tokens.size - wanted, "right")) - 1
    if len(documents) == 1:
        cut = documents.tokens.size - wanted
        return (Documents(documents.tokens[:cut], np.array([cut])), Documents(documents.tokens[cut:], np.array([wanted])))
    if first < 1:
        raise DataError(f"data: the last documents with {share:g} of all tokens are all {len(documents)} of them; hold out less")
    return documents.take(np.arange(first)), documents.take(np.arange(first, len(documents)))
