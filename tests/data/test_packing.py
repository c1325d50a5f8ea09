"""Packed and padded batches: every token judged once, in its own document, at its true place."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember_ml.data import IGNORED, Buckets, Documents, Packed, Padded
from ember_ml.data.packing import best_fit
from ember_ml.errors import DataError


def numbered(lengths, prompts=None):
    """Documents whose tokens are all different, so that each tells where it comes from."""
    return Documents(np.arange(1, sum(lengths) + 1), np.array(lengths), prompts)


def judged(batches):
    """(input, target) of every judged position."""
    pairs = []
    for x, y, *_ in batches:
        at = y != IGNORED
        pairs += zip(x[at].tolist(), y[at].tolist())
    return pairs


LENGTHS = [5, 12, 3, 30, 7, 1, 9, 2, 16, 4]


@pytest.mark.parametrize("kind", [Packed, Padded])
def test_every_token_but_the_first_of_a_document_is_a_target_once(kind):
    documents = numbered(LENGTHS)
    pairs = judged(kind(documents, 12, 1).in_order(3))
    inside = [t for i in range(len(documents)) for t in documents[i][1:].tolist()]
    assert sorted(y for _, y in pairs) == sorted(inside)
    assert all(y == x + 1 for x, y in pairs)


@pytest.mark.parametrize("kind", [Packed, Padded])
def test_an_epoch_is_the_same_as_in_order_and_any_batch_can_be_asked_for(kind):
    source = kind(numbered(LENGTHS), 12, 2, seed=3)
    epochs = [[source.batch(e * source.per_epoch + i) for i in range(source.per_epoch)] for e in range(2)]
    again = kind(numbered(LENGTHS), 12, 2, seed=3)
    for i in reversed(range(2 * source.per_epoch)):
        for a, b in zip(again.batch(i), epochs[i // source.per_epoch][i % source.per_epoch]):
            assert np.array_equal(a, b)
    first, second = (judged(e) for e in epochs)
    assert first != second and len(set(first)) == len(first)
    whole = judged(source.in_order(2))
    assert set(first) <= set(whole) and len(first) >= len(whole) - 12


def test_segments_tell_documents_apart_and_mark_padding():
    source = Packed(numbered([5, 4, 3, 2]), 8, 1)
    for x, y, segments in source.in_order(4):
        assert x.dtype == y.dtype == segments.dtype == np.int32 and x.shape == y.shape == segments.shape
        for row, targets, marks in zip(x, y, segments):
            assert np.array_equal(marks == 0, targets == IGNORED)
            present = marks[marks > 0]
            assert present[0] == 1 and set(np.diff(present)) <= {0, 1}          # 1, 1, 2, 3, 3 ...
            for mark in set(present.tolist()):
                tokens = row[marks == mark]
                assert (np.diff(tokens) == 1).all()                             # one document, whole
    assert source.fill == 10 / 16                                               # 4 + 3 + 1, and 2 inputs, in two rows of 8


def test_a_prompt_is_read_and_not_judged():
    documents = numbered([6, 8], prompts=[3, 0])
    for kind in (Packed, Padded):
        pairs = judged(kind(documents, 20, 1).in_order(2))
        assert sorted(y for _, y in pairs) == [4, 5, 6, 8, 9, 10, 11, 12, 13, 14]
    cut = judged(Packed(documents, 2, 1).in_order(2))                           # the prompt reaches into the second piece
    assert sorted(y for _, y in cut) == [4, 5, 6, 8, 9, 10, 11, 12, 13, 14]


def test_the_first_tokens_of_documents():
    first = numbered([4, 5, 6], prompts=[1, 2, 3]).first(7)
    assert (first.tokens.tolist(), first.lengths.tolist(), first.prompts.tolist()) == (list(range(1, 8)), [4, 3], [1, 2])
    assert numbered([4, 5]).first(4).lengths.tolist() == [4] and numbered([4, 5]).first(100).lengths.tolist() == [4, 5]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80))
def test_best_fit_holds_its_bound(sizes):
    """At most 11/9 OPT + 1 bins, where OPT is at least the volume and at least the number of things above half a bin."""
    sizes = np.array(sizes)
    bins = best_fit(sizes, 50)
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    assert all(sizes[b].sum() <= 50 for b in bins)
    least = max(-(-int(sizes.sum()) // 50), int((sizes > 25).sum()))
    assert len(bins) == least or len(bins) <= 11 / 9 * (least + 1) + 1
    naive = 1
    room = 50
    for s in sizes:                                                             # next fit, in the order that they come
        naive, room = (naive, room - s) if s <= room else (naive + 1, 50 - s)
    assert len(bins) <= naive


def test_batches_by_true_length_waste_little():
    lengths = np.random.default_rng(0).integers(2, 400, 2000)
    source = Padded(numbered(lengths.tolist()), 400, 16)
    sizes = [y for i in range(source.per_epoch) for y in [source.batch(i)[1]]]
    share = sum(int((y != IGNORED).sum()) for y in sizes) / sum(y.size for y in sizes)
    assert share > 0.95                                                         # rows drawn at random would be about half full
    assert all(y.shape[1] % 8 == 0 for y in sizes)
    assert len({y.shape[1] for y in sizes[:10]}) > 3                            # short and long batches come mixed


def test_buckets_keep_neighbours_together():
    lengths = np.random.default_rng(1).integers(1, 100, 101)
    buckets = Buckets(lengths, 10, seed=4)
    rows = [buckets.rows(i) for i in range(10)]
    assert len(set(np.concatenate(rows).tolist())) == 100
    spans = sorted((lengths[r].min(), lengths[r].max()) for r in rows)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))


@pytest.mark.parametrize("call, words", [
    (lambda: Packed(numbered([5, 5]), 20, 2), "at least one batch of 2 rows of 20, got 1 rows from 2 documents; lower batch"),
    (lambda: Padded(numbered([5, 5]), 20, 3), "at least one batch of 3, got 2"),
    (lambda: best_fit(np.array([0, 3]), 4), "sizes from 1 to 4, got 0 to 3"),
    (lambda: Documents(np.arange(5), np.array([2, 2])), "add up to 5 tokens, got 4"),
])
def test_refuses_what_does_not_fit(call, words):
    with pytest.raises(DataError, match=words):
        call()
