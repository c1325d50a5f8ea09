"""How the long convolution's kernels cut each length up: the least that holds it, and what the chips have room for."""

import pytest

from ember_ml.kernels import fftconv_plan as plans


def test_when_a_few_numbers_are_mended():
    assert plans.transform_size(1026, 1026, False) == (10, True) and plans.transform_size(1026, 1026, True) == (11, False)
    assert plans.transform_size(1024, 1024, False) == (10, False) and plans.transform_size(1029, 1029, False) == (11, False)
    assert plans.transform_size(34, 34, False) == (5, True) and plans.transform_size(18, 18, False) == (5, False)
    for length in range(1, 300):
        for taps in {1, length // 2 + 1, length}:
            size, tailed = plans.transform_size(length, taps, False)
            assert (length + taps - 1 <= 2 << size) != tailed and length <= 2 << size


def test_the_smallest_transform_that_holds_the_convolution():
    for length in range(1, 300):
        for taps in {1, length // 2 + 1, length}:
            m = 1 << plans.log_m(length, taps)
            assert 2 * m >= length + taps - 1
            assert m <= 2 or m < length + taps - 1


@pytest.mark.parametrize("batch, heads", [(1, 1), (5, 256), (7, 300), (16, 1024), (3, 5000)])
def test_no_part_of_a_batch_is_empty(batch, heads):
    parts = plans.Plan(6, 3).parts(batch, heads)
    assert 1 <= parts <= batch and (parts - 1) * -(-batch // parts) < batch <= parts * -(-batch // parts)


@pytest.mark.parametrize("log_m", range(5, 14))
def test_metal_plans_fit_the_chip(log_m):
    plan = plans.metal_plan(log_m)
    assert plan.log_m == log_m and sum(plan.passes) == log_m and max(plan.passes) <= plan.log_points
    assert plan.threads <= 256 and plan.threads % 32 == 0 and 4 * plan.rows * plan.row_floats <= 32 << 10


def test_longer_rows_are_columns_that_a_thread_holds_or_eight_share():
    for plan_of, columns in ((plans.metal_plan, 128), (lambda m: plans.cuda_plans(m)[0], 64)):
        plan = plan_of(plans.LONGEST)
        assert isinstance(plan, plans.LongPlan) and plan.log_m == plans.LONGEST == 20 and 1 << plan.outer == columns
    for log_m in range(14, 21):
        plan = plans.metal_plan(log_m)
        assert plan.log_m == log_m and bool(plan.tiles) == (log_m > 18)
        if plan.tiles:
            assert sum(plan.tiles) == log_m and max(plan.tiles[:2]) <= plan.tile_points <= 4 and 4 * 256 << plan.tile_points <= 16 << 10


@pytest.mark.parametrize("log_m", range(5, 15))
def test_plans_fit_the_chip(log_m):
    forward, backward = plans.cuda_plans(log_m)
    assert forward.log_points == backward.log_points       # one spectrum serves both
    for plan in (forward, backward):
        assert plan.log_m == log_m and sum(plan.passes) == log_m and max(plan.passes) <= plan.log_points
        assert plan.threads <= 1024 and plan.threads % 32 == 0
        assert 4 * plan.shared_floats(plan.keep) * plan.blocks <= 227 << 10
        assert plan.threads * plan.blocks <= 2048


def test_beyond_the_longest_there_is_no_plan():
    assert plans.metal_plan(plans.LONGEST + 1) is None and plans.cuda_plans(plans.LONGEST + 1) is None
