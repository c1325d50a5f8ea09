"""The order that is computed, not looked up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember_ml.data import Permutation
from ember_ml.errors import DataError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 50))
def test_every_number_once(count, seed, epoch):
    order = Permutation(count, seed, epoch)(np.arange(count))
    assert np.array_equal(np.sort(order), np.arange(count))


def test_any_place_of_any_size_at_any_time():
    whole = Permutation(1000, 7, 3)(np.arange(1000))
    one = Permutation(1000, 7, 3)
    assert [int(one(i)) for i in (999, 0, 500)] == whole[[999, 0, 500]].tolist()
    huge = Permutation(10**15, 1)
    places = huge(np.array([0, 10**15 - 1, 12345]))
    assert len(set(places.tolist())) == 3 and places.min() >= 0 and places.max() < 10**15


def test_seeds_and_epochs_differ_and_nothing_is_left_in_place():
    orders = [Permutation(500, s, e)(np.arange(500)) for s, e in ((0, 0), (0, 1), (1, 0))]
    for i, a in enumerate(orders):
        assert np.count_nonzero(a == np.arange(500)) < 10
        for b in orders[:i]:
            assert np.count_nonzero(a == b) < 10


def test_places_are_spread_evenly():
    """Where 0, 1, 2, 3 land over 1,600 seeds: chi-square of 16 equal cells, 15 degrees of freedom, 1e-6 quantile 56.5; and no
    correlation between neighbours (standard deviation 1/sqrt(1600) = 0.025)."""
    landed = np.array([Permutation(160, s)(np.arange(4)) for s in range(1600)])
    for column in landed.T:
        cells = np.bincount(column // 10, minlength=16)
        assert ((cells - 100.0) ** 2 / 100.0).sum() < 56.5
    assert abs(np.corrcoef(landed[:, 0], landed[:, 1])[0, 1]) < 0.125


def test_refuses_what_is_outside():
    with pytest.raises(DataError, match="places from 0 to 9, got 3 to 10"):
        Permutation(10, 0)([3, 10])
    with pytest.raises(DataError, match="count of at least 1"):
        Permutation(0, 0)
