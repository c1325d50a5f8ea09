"""Windows: shifted targets, every token met, an order that depends on seed and position alone."""

import numpy as np
import pytest

from ember_ml.data import Windows, in_order
from ember_ml.errors import DataError

TOKENS = np.arange(1000, dtype=np.int64)


def test_targets_are_the_next_tokens():
    x, y = Windows(TOKENS, 16, 4).batch(3)
    assert x.shape == y.shape == (4, 16) and x.dtype == y.dtype == np.int32
    assert np.array_equal(x + 1, y)                          # the tokens count upwards


def test_any_batch_can_be_asked_for_at_any_time():
    forward = Windows(TOKENS, 16, 4, seed=5)
    expected = [forward.batch(i)[0] for i in range(40)]
    shuffled = Windows(TOKENS, 16, 4, seed=5)
    for i in (39, 0, 17, 16, 15, 38, 1):
        assert np.array_equal(shuffled.batch(i)[0], expected[i])
    assert not np.array_equal(Windows(TOKENS, 16, 4, seed=6).batch(0)[0], expected[0])


def test_an_epoch_visits_each_window_once_and_epochs_differ():
    windows = Windows(TOKENS, 16, 4)
    starts = [np.concatenate([windows.batch(e * windows.per_epoch + i)[0][:, 0] for i in range(windows.per_epoch)])
              for e in range(3)]
    for s in starts:
        assert len(set(s)) == len(s) and len(set(s % 16)) == 1
    assert len({tuple(s) for s in starts}) == 3 and len({s[0] % 16 for s in starts}) > 1


def test_held_out_order_is_complete():
    got = list(in_order(TOKENS[:100], 9, 4))
    assert np.array_equal(np.concatenate([y.ravel() for _, y in got]), np.arange(1, 100))
    assert [x.shape[0] for x, _ in got] == [4, 4, 3]


@pytest.mark.parametrize("length, batch, words", [(1000, 1, "at least"), (16, 100, "at least"), (0, 1, "at least 1"),
                                                  (16, 0, "at least 1")])
def test_refuses_what_does_not_fit(length, batch, words):
    with pytest.raises(DataError, match=words):
        Windows(TOKENS, length, batch)
    with pytest.raises(DataError, match="at least"):
        list(in_order(TOKENS[:5], 16, 1))
