"""Batches made ahead: the same ones, bounded, with their errors, and no thread left behind."""

import threading
import time

import numpy as np
import pytest

from ember_ml.data import Prefetch, Windows
from ember_ml.errors import ConfigError, DataError


def threads():
    return [t for t in threading.enumerate() if t.name == "ember-prefetch"]


def test_same_batches_in_any_order():
    source = Windows(np.arange(500), 16, 4)
    with Prefetch(source.batch, ahead=3) as batch:
        for i in (3, 4, 5, 6, 0, 1, 20, 19, 19):
            assert all(np.array_equal(a, b) for a, b in zip(batch(i), Windows(np.arange(500), 16, 4).batch(i)))
        assert len(threads()) == 1
    assert not threads()
    assert np.array_equal(batch(7)[0], source.batch(7)[0])       # a call after the end starts another
    batch.close()
    assert not threads()


def test_no_more_are_made_than_may_wait():
    made = []
    with Prefetch(lambda i: made.append(i) or i, ahead=2) as batch:
        assert batch(0) == 0
        for _ in range(200):
            if len(made) == 4:
                break
            time.sleep(0.005)
        time.sleep(0.05)
        assert made == [0, 1, 2, 3]                  # one handed out, two wait, one is held until there is room


def test_an_error_comes_with_its_batch_and_can_be_got_over():
    broken = {5}

    def source(i):
        if i in broken:
            raise DataError(f"line {i}")
        return i

    with Prefetch(source, ahead=4) as batch:
        assert [batch(i) for i in range(5)] == list(range(5))
        for _ in range(2):
            with pytest.raises(DataError, match="line 5"):
                batch(5)
        broken.clear()
        assert [batch(5), batch(6)] == [5, 6]
    assert not threads()


def test_work_goes_on_meanwhile():
    """The thread makes batch 1 while the caller is busy: it is there at once."""
    entered = threading.Event()

    def source(i):
        if i == 1:
            entered.set()
        return i

    with Prefetch(source) as batch:
        batch(0)
        assert entered.wait(5.0)                    # without a call for it
        assert batch(1) == 1


def test_closing_does_not_wait_for_room():
    batch = Prefetch(lambda i: i, ahead=1)
    batch(0)
    time.sleep(0.01)
    batch.close()
    batch.close()
    assert not threads()
    with pytest.raises(ConfigError, match="at least 1"):
        Prefetch(lambda i: i, ahead=0)
