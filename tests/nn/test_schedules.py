"""Learning rates against their formulas, and inside a compiled step."""

import math

import pytest

import ember_ml as em
from ember_ml.errors import ConfigError
from ember_ml.nn.optimizers import AdamConfig, Schedule

PEAK, FLOOR, WARMUP, TOTAL = 0.4, 0.05, 3, 11
SHAPES = {"cosine": lambda p: (1 + math.cos(math.pi * p)) / 2, "linear": lambda p: 1 - p, "constant": lambda p: 1.0}


def formula(shape, step, warmup):
    if step < warmup:
        return PEAK * (step + 1) / warmup
    return FLOOR + (PEAK - FLOOR) * SHAPES[shape](min((step - warmup) / (TOTAL - warmup), 1.0))


@pytest.mark.parametrize("warmup", [0, WARMUP])
@pytest.mark.parametrize("shape", SHAPES)
def test_formula(shape, warmup, backend):
    schedule = Schedule(PEAK, TOTAL, warmup, FLOOR, shape)
    for step in (0, 1, 2, 3, 4, 7, 10, 11, 12, 1000):
        rate = schedule(em.tensor(step))
        assert rate.dtype is em.float32 and rate.shape == ()
        assert rate.item() == pytest.approx(formula(shape, step, warmup), rel=2e-6, abs=1e-8), step


def test_a_schedule_as_long_as_its_warm_up(backend):
    schedule = Schedule(1.0, total=4, warmup=4)
    assert [schedule(em.tensor(s)).item() for s in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_unknown_shapes_are_refused():
    with pytest.raises(ConfigError, match="shape: expected 'cosine', 'linear' or .*; received 'cosinus'; did you mean 'cosine'"):
        Schedule(1.0, 10, shape="cosinus")


def test_a_table_in_a_file_becomes_a_schedule():
    config = AdamConfig(rate={"peak": 0.1, "total": 100, "warmup": 10})
    assert config.rate == Schedule(0.1, 100, 10)
