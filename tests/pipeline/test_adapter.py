"""The [adapter] table of a run: where it starts from, what it freezes, LoRA from a file to a fused model."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, DataError, WeightsError
from ember_ml.nn.adapters import adapters, load_peft
from ember_ml.nn.pipeline.training import RunConfig, RunFolder
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.registry import from_dict
from tests.conftest import require_engine
from tests.nn._help import close, get

BLOCKS = [{"layer": "self_attention", "self_attention_config": {"heads": 2}}, {"layer": "gated_mlp", "gated_mlp_config": {"d_inner": 6}}]
MODEL = {"vocab_size": 6, "head": "dense", "norm": "rms_norm", "defaults": {"d_input": 8, "norm": "rms_norm"}, "blocks": BLOCKS}


@pytest.fixture
def fasta(tmp_path):
    (tmp_path / "x.fna").write_text(">x\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 3000)) + "\n")
    return str(tmp_path / "x.fna")


def run(fasta, model, adapter, engine="numpy", steps=6):
    return from_dict(RunConfig, {
        "data": {"kind": "dna", "fasta": fasta, "length": 16, "batch": 2, "held_out": 100}, "model": model, "adapter": adapter,
        "optimizer": {"name": "adamw", "rate": 0.05}, "seed": 3, "backend": engine,
        "training": {"steps": steps, "log_every": 3, "eval_every": 3, "checkpoint_every": 3, "compile": False}})


@pytest.fixture
def base(tmp_path):
    with em.using("numpy"):
        nn.Model.from_config(MODEL, key=em.random.key(9)).save(tmp_path / "base.safetensors")
    return str(tmp_path / "base.safetensors")


LORA = {"lora": {"rank": 2, "targets": ["*.q_proj", "blocks.1"]}}


@pytest.mark.parametrize("backend", ["numpy", "torch"])      # MLX compiles what evaluates; tests/nn/test_lora.py trains and resumes there
def test_a_model_in_a_file_is_adapted_resumed_and_fused(fasta, base, tmp_path, backend):
    """6 updates in one go, and 3, a new process' worth of forgetting, and 3 more: the same adapter and the same fused model."""
    require_engine(backend)
    config = run(fasta, {"file": base}, LORA, backend)
    configs.write(tmp_path / "run.toml", config)
    assert configs.read(tmp_path / "run.toml") == config
    whole = SupervisedTraining(config, RunFolder(tmp_path / "a"))
    first = adapters(whole.model)
    model = whole()
    assert first and not adapters(model) and 0 <= whole.fused.changed < 1e-5 < whole.fused.without
    again = nn.Model.load(base, device=backend)
    load_peft(again, tmp_path / "a/adapter")
    batch = em.tensor(next(iter(whole.data.held_out()))[0], device=backend)
    close(again(batch)[0], get(model(batch)[0]), 1e-4)
    part = SupervisedTraining(run(fasta, {"file": base}, LORA, backend, steps=3), RunFolder(tmp_path / "b"))
    part.trainer.train()
    rest = SupervisedTraining(config, RunFolder(tmp_path / "b", resume=True), resume=True)()
    assert {k: t.tolist() for k, t in rest.tensors().items()} == {k: t.tolist() for k, t in model.tensors().items()}
    names = ("adapter_config.json", "adapter_model.safetensors")
    assert all((tmp_path / "a/adapter" / n).read_bytes() == (tmp_path / "b/adapter" / n).read_bytes() for n in names)


def test_a_base_that_changed_is_not_resumed_from(fasta, base, tmp_path):
    SupervisedTraining(run(fasta, {"file": base}, LORA, steps=3), RunFolder(tmp_path / "a")).trainer.train()
    with em.using("numpy"):
        nn.Model.from_config(MODEL, key=em.random.key(8)).save(base)
    with pytest.raises(DataError, match="base.safetensors: has changed since the run began"):
        SupervisedTraining(run(fasta, {"file": base}, LORA), RunFolder(tmp_path / "a", resume=True), resume=True)


def test_another_head_starts_from_what_fits_and_what_is_frozen_stays(fasta, base, tmp_path):
    table = {**MODEL, "head": "tied"}
    stage = SupervisedTraining(run(fasta, table, {"weights": base, "freeze": ["embedding", "blocks.0.*"]}))
    assert stage.report.surplus == ["head.weight", "head.bias"][:len(stage.report.surplus)] and not stage.report.missing
    assert "1 surplus" in str(stage.report) and "'head.weight'" in str(stage.report)
    before = {name: get(t) for name, t in stage.model.tensors().items()}
    moved = {name for name, t in stage().tensors().items() if np.abs(get(t) - before[name]).max() > 0}
    assert moved == {name for name in before if not name.startswith(("embedding.", "blocks.0."))}
    held = nn.Model.load(base, device="numpy").tensors()
    assert all(np.array_equal(before[name], get(held[name])) for name in before)


@pytest.mark.parametrize("model, adapter, error, message", [
    ({"file": "base", "head": "tied"}, {}, ConfigError, "expected file alone"), (MODEL, {"freze": []}, ConfigError, "did you mean freeze"),
    (MODEL, {"freeze": ["blocks.7"]}, WeightsError, "no parameter matches 'blocks.7'"), (MODEL, {"lora": {"rank": 0}}, ConfigError, "rank"),
    (MODEL, {"lora": {"targets": ["*.qproj"]}}, ConfigError, r"no linear map matches '\*.qproj'")])
def test_misuse_is_told_before_anything_is_trained(fasta, base, model, adapter, error, message):
    model = {**model, "file": base} if "file" in model else model
    with pytest.raises(error, match=message):
        SupervisedTraining(run(fasta, model, adapter))


def test_a_model_with_too_few_tokens_is_told(fasta, tmp_path):
    with em.using("numpy"):
        nn.Model.from_config({**MODEL, "vocab_size": 2}).save(tmp_path / "small.safetensors")
    with pytest.raises(ConfigError, match=r"file .*small.safetensors: the data is for a model with vocab_size=\d+ or more; this one has 2"):
        SupervisedTraining(run(fasta, {"file": str(tmp_path / "small.safetensors")}, {}))
