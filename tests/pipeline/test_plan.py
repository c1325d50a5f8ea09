"""What a plan says against what the run then takes, measured in the same test: MLX's allocator, FLOPs counted by hand."""

import dataclasses

import numpy as np
import pytest

from ember_ml.backend import get
from ember_ml.nn.pipeline.training import RunConfig, Rows, plan
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry import from_dict
from tests.conftest import require_engine

LENGTH, BATCH, WIDTH = 64, 16, 32

BLOCKS = {
    "attention": {"layer": "self_attention", "layer_config": {"heads": 4, "rope": {}}},
    "hyena": {"layer": "hyena", "layer_config": {"l_max": LENGTH, "filter": {"width": 8}}},
    "mamba": {"layer": "mamba", "layer_config": {"d_state": 4}},
    "lstm": {"layer": "lstm"},
    "moe": {"layer": "moe", "layer_config": {"num_experts": 4, "k": 2, "expert_config": {"d_inner": 64}}},
}


@pytest.fixture
def fasta(tmp_path):
    path = tmp_path / "x.fna"
    path.write_text(">x\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 9000)) + "\n")
    return str(path)


def job(fasta: str, block: dict, backend: str, **training) -> RunConfig:
    blocks = [{"d_input": WIDTH, "norm": "rms_norm", **block}, {"d_input": WIDTH, "norm": "rms_norm", "layer": "gated_mlp"}]
    return from_dict(RunConfig, {
        "data": {"kind": "dna", "fasta": fasta, "length": LENGTH, "batch": BATCH, "held_out": 100},
        "model": {"blocks": blocks, "norm": "rms_norm", "head": "tied"}, "optimizer": {"name": "adamw", "rate": 1e-3},
        "training": {"steps": 6, "log_every": 1, "eval_every": 6, "compile": False, **training}, "backend": backend})


def peak(run: RunConfig) -> int:
    """Of a whole run, as it logs it."""
    rows = Rows()
    SupervisedTraining(run, callbacks=[rows])()
    return max(row["memory"] for row in rows.rows if "memory" in row)


@pytest.mark.parametrize("kind", BLOCKS)
def test_peak_memory_is_within_15_percent_of_what_mlx_measures(fasta, kind, monkeypatch):
    require_engine("mlx")
    run = job(fasta, BLOCKS[kind], "mlx:cpu")
    counts = plan.count(run)
    predicted, found, limit = plan.memory(run, counts)
    assert [m.batch for m in found] == [BATCH // 4, BATCH] and predicted < limit
    measured = peak(run)
    assert abs(predicted / measured - 1.0) < 0.15, (predicted, measured)

    monkeypatch.setattr(type(get("mlx")), "memory", lambda self, device: int(0.8 * measured))    # a machine that is too small for it
    predicted, found, limit = plan.memory(run, counts)
    assert [m.batch for m in found] == [BATCH // 4, BATCH // 2] and predicted > limit
    assert abs(predicted / measured - 1.0) < 0.15, (predicted, measured)


def test_counts_are_those_of_the_model(fasta):
    run = job(fasta, BLOCKS["attention"], "numpy:cpu")
    counts, stage = plan.count(run), SupervisedTraining(run)
    sizes = [t.size for t in stage.model.parameters().values()]
    assert counts.parameters == counts.trainable == sum(sizes) and counts.parameter_bytes == 4 * sum(sizes)
    assert counts.state_bytes == pytest.approx(3 * counts.parameter_bytes, rel=0.01)           # weights and two moments of AdamW
    assert counts.batch == BATCH and counts.summary.length == LENGTH


def test_flops_of_a_stack_of_products_counted_by_hand(fasta):
    """Products alone: forward 2 n a weight and token, and twice that for the two gradients; the rest is below a tenth."""
    block = {"layer": "mlp", "norm": None, "layer_config": {"d_inner": 16 * WIDTH}}
    run = job(fasta, block, "numpy:cpu")
    fields = {**run.model, "norm": None, "blocks": [{**b, "norm": None} for b in run.model["blocks"]]}
    counts = plan.count(dataclasses.replace(run, model=fields))
    products = 3 * 2 * counts.parameters * BATCH * LENGTH
    assert products < counts.flops < 1.15 * products


def test_a_model_that_cannot_fit_is_told_without_being_made(fasta, monkeypatch):
    run = job(fasta, {"layer": "mlp", "layer_config": {"d_inner": 1 << 30}}, "numpy:cpu")      # 69 billion parameters
    monkeypatch.setattr(plan, "measure", lambda *_: pytest.fail("nothing may run"))
    counts = plan.count(run)
    predicted, found, limit = plan.memory(run, counts)
    assert counts.parameters > 6e10 and not found and predicted > limit
    assert predicted == plan.at_least(counts) >= 4 * 4 * counts.parameters


@pytest.mark.parametrize("peaks, tried, told", [
    ({4: 10, 16: 35}, [4, 16], 35),                          # 40 at most: room for the whole
    ({4: 30, 8: 50, 16: 95}, [4, 8, 16], 95),                # perhaps 120, but 90 by the line: tried
    ({4: 30, 8: 60}, [4, 8], 120),                           # 120 by the line, too
])
def test_whole_batches_are_tried_where_parts_leave_room(fasta, monkeypatch, peaks, tried, told):
    run = job(fasta, BLOCKS["attention"], "numpy:cpu")
    counts = dataclasses.replace(plan.count(run), state_bytes=1, parameter_bytes=1)
    monkeypatch.setattr(type(get("numpy")), "memory", lambda self, device: 100)
    monkeypatch.setattr(plan, "measure", lambda run, batch: plan.Measured(batch, peaks[batch], 1.0))
    predicted, found, limit = plan.memory(run, counts)
    assert [m.batch for m in found] == tried and predicted == told and limit == 100


@pytest.mark.parametrize("batch, expected", [(16, [4, 8]), (4, [1, 2]), (3, [1]), (2, [1]), (1, []), (10, [2, 5])])
def test_parts_of_a_batch(batch, expected):
    assert plan.parts(batch) == expected


def test_accumulated_batches_count_as_often(fasta):
    one, four = (plan.count(job(fasta, BLOCKS["attention"], "numpy:cpu", accumulate=n)) for n in (1, 4))
    assert 3.5 * one.flops < four.flops < 4.5 * one.flops and four.state_bytes == one.state_bytes


