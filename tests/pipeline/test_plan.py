"""What a plan says against what the run then takes, measured in the same test: MLX's allocator, FLOPs counted by hand."""

import dataclasses

import numpy as np
import pytest

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


@pytest.mark.parametrize("kind", BLOCKS)
def test_peak_memory_is_within_15_percent_of_what_mlx_measures(fasta, kind):
    require_engine("mlx")
    run = job(fasta, BLOCKS[kind], "mlx:cpu")
    predicted, found, limit = plan.memory(run, plan.count(run))
    assert [m.batch for m in found] == [BATCH // 4, BATCH // 2] and predicted < limit
    rows = Rows()
    SupervisedTraining(run, callbacks=[rows])()
    measured = max(row["memory"] for row in rows.rows if "memory" in row)
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


def test_a_part_that_already_tells_too_much_stops_the_plan(fasta, monkeypatch):
    run = job(fasta, BLOCKS["attention"], "numpy:cpu")
    tried = []
    monkeypatch.setattr(plan, "measure", lambda run, batch: tried.append(batch) or plan.Measured(batch, 1 << 50, 1.0))
    predicted, found, limit = plan.memory(run, plan.count(run))
    assert tried == [BATCH // 4] and predicted > limit


@pytest.mark.parametrize("batch, expected", [(16, (4, 8)), (4, (1, 2)), (3, (3,)), (1, (1,)), (10, (2, 5))])
def test_parts_of_a_batch(batch, expected):
    assert plan.parts(batch) == expected


def test_accumulated_batches_count_as_often(fasta):
    one, four = (plan.count(job(fasta, BLOCKS["attention"], "numpy:cpu", accumulate=n)) for n in (1, 4))
    assert 3.5 * one.flops < four.flops < 4.5 * one.flops and four.state_bytes == one.state_bytes


