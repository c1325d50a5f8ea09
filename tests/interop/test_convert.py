"""`ember convert`: folders as projects publish them, and what is told of damaged, hostile and foreign ones."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import ConfigError, UnsupportedDtype, WeightsError
from ember_ml.interop.convert import conversion, convert, read
from ember_ml.interop.transformers import FAMILIES
from tests.interop._folder import AREAS, OTHERS, case, hyena_dna, mad, ncps, other, publish

ROOT = Path(__file__).parents[2]


def llama(folder, **changes):
    return publish(case("hf", "llama"), folder / "llama", "llama", **changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_converted_and_runs(family, tmp_path):
    c = case(AREAS.get(family, "hf"), family)
    source = publish(c, tmp_path / "original", family, shards=3)
    convert(source, tmp_path / "model.safetensors")
    for engine in ("numpy", "torch"):
        if em.backend.installed(engine):
            model = nn.Model.load(tmp_path / "model.safetensors", device=engine)
            logits, _ = model(em.tensor(c.inputs["input_ids"].astype(np.int32), device=engine))
            np.testing.assert_allclose(logits.numpy(), c.expected["logits"], rtol=1e-4, atol=c.tolerance["forward"]["atol"])


def test_xlstm_in_its_fused_layout(tmp_path):
    """transformers cannot initialise it, but reads it: rows of several maps in one."""
    c = case("hf", "xlstm")
    tensors, fused = dict(c.weights), {}
    for i in range(c.config["num_hidden_layers"]):
        for place, whole, parts in (("mlstm_layer", "qkv_opreact.weight", ("q.weight", "k.weight", "v.weight", "ogate_preact.weight")),
                                    ("mlstm_layer", "ifgate_preact.weight", ("igate_preact.weight", "fgate_preact.weight")),
                                    ("mlstm_layer", "ifgate_preact.bias", ("igate_preact.bias", "fgate_preact.bias")),
                                    ("ffn", "proj_up_gate_z.weight", ("proj_up_gate.weight", "proj_up.weight"))):
            at = f"backbone.blocks.{i}.{place}."
            fused[at + whole] = np.concatenate([tensors.pop(at + part) for part in parts])
    folder = publish(c, tmp_path / "x", "xlstm", tensors={**tensors, **fused}, weight_mode="fused")
    logits, _ = read(folder)[0](em.tensor(c.inputs["input_ids"].astype(np.int32), device="numpy"))
    np.testing.assert_allclose(logits.numpy(), c.expected["logits"], rtol=1e-4, atol=2e-4)


def test_hyena_dna_from_its_published_form(tmp_path):
    c, folder = case("hyena", "hyenadna_lm"), hyena_dna(tmp_path / "dna")
    model, name = read(folder)
    assert name == "hyena_dna"
    logits, _ = model(em.tensor(c.inputs["input_ids"].astype(np.int32), device="numpy"))
    np.testing.assert_allclose(logits.numpy(), c.expected["logits"], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("made, project, output", [("striped_hyena", "striped_hyena", "logits"), ("evo2", "evo2", "logits"),
                                                   ("xlstm_lm", "xlstm", "logits_steps"), ("xlstm_large", "xlstm", "logits")])
def test_models_of_other_projects(made, project, output, tmp_path):
    area, name, config = OTHERS[made]
    c = case(area, name)
    source = other(tmp_path / "original", area, name, config, shards=2)
    model, found = read(source)
    assert found == project
    logits, _ = model(em.tensor(c.inputs["input_ids"].astype(np.int32), device="numpy"))
    np.testing.assert_allclose(logits.numpy(), c.expected[output], **c.tolerance["forward"])


@pytest.mark.parametrize("name", ["ltc_sequence_autoncp", "cfc_pure", "wired_cfc"])
def test_ncps_layers(name, tmp_path):
    c = case("liquid", name)
    source = ncps(tmp_path / "original", name)
    convert(source, tmp_path / "m.safetensors")
    y, _ = nn.Model.load(tmp_path / "m.safetensors", device="numpy")(em.tensor(c.inputs["x"], device="numpy"))
    np.testing.assert_allclose(y.numpy(), c.expected["y_zero_state"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("names", ["old", "new"])
def test_mad_with_numbered_and_named_parts(names, tmp_path):
    c = case("mad", "language_model")
    parts = {"0": "norm", "1": "layer"}

    def new(n):
        n = re.sub(r"^(model\.\d+)\.([01])\.", lambda m: f"{m[1]}.{parts[m[2]]}.", n)
        return n.replace("unembed.0.", "unembed.norm.").replace("unembed.1.", "unembed.lm_head.")

    folder = mad(tmp_path / "x", new if names == "new" else str)
    model, found = read(folder)
    assert found == "mad"
    logits, _ = model(em.tensor(c.inputs["input_ids"].astype(np.int32), device="numpy"))
    np.testing.assert_allclose(logits.numpy(), c.expected["logits"], **c.tolerance["forward"])


def test_torch_files_are_read_and_code_is_refused(tmp_path):
    torch = pytest.importorskip("torch", reason="reads torch's own files")
    c = case("hf", "mamba")
    folder = publish(c, tmp_path / "m", "mamba")
    (folder / "model.safetensors").unlink()
    state = {n: torch.tensor(w) for n, w in c.weights.items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "pytorch_model.bin")
    logits, _ = read(folder)[0](em.tensor(c.inputs["input_ids"].astype(np.int32), device="numpy"))
    np.testing.assert_allclose(logits.numpy(), c.expected["logits"], rtol=1e-4, atol=2e-4)

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": state, "hook": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds more than tensors and numbers, which is refused"):
        read(folder)
    assert not (tmp_path / "ran").exists()
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(WeightsError, match="is damaged"):
        read(folder)


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "gpt2"}, "convert: expected the configuration of HyenaDNA.*or of transformers with model_type .*received model_type 'gpt2'"),
    ({"hidden_size": "big"}, "llama: expected hidden_size to be a number from 1 .*received 'big'"),
    ({"hidden_size": None}, "expected hidden_size"),
    ({"model_type": ["llama"]}, r"received model_type \['llama'\]"),
    ({"hidden_act": "xielu"}, "llama: expected hidden_act to be one of silu.*received 'xielu'"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "expected rope_type to be default, linear or llama3; received 'yarn'"),
    ({"num_hidden_layers": 10 ** 9}, "expected num_hidden_layers to be a number from 1 to 4000"),
    ({"hidden_size": 2 ** 30}, "does not describe a model of the"),
    ({"intermediate_size": 2 ** 30}, "does not describe a model of the"),
    ({"vocab_size": 33}, r"embedding\.weight.* expected \[33, 16\], got \[32, 16\]"),
    ({"num_hidden_layers": 1}, "the checkpoint has model.layers.1.*which a model of its configuration has no place for"),
    ({"num_hidden_layers": 3}, "expected a tensor 'model.layers.2"),
    ({"attention_bias": True}, "expected a tensor 'model.layers.0.self_attn.q_proj.bias'"),
])
def test_wrong_configurations(changes, message, tmp_path):
    source = publish(case("hf", "llama"), tmp_path / "x", **{"model_type": "llama", **changes})
    with pytest.raises((ConfigError, WeightsError), match=message):
        convert(source, tmp_path / "model.safetensors")
    assert not list(tmp_path.glob("*.safetensors*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("value", [[], "recurrent", [["x"]]])
def test_block_types_that_are_none(value, tmp_path):
    source = publish(case("hf", "recurrent_gemma"), tmp_path / "x", "recurrent_gemma", block_types=value)
    with pytest.raises(ConfigError, match="recurrent_gemma: expected block_types to be 1 of recurrent, attention"):
        read(source)


def test_numbers_of_another_kind_are_refused(tmp_path):
    c = case("hf", "llama")
    tensors = {**c.weights, "model.norm.weight": np.ones(c.weights["model.norm.weight"].shape, np.int32)}
    source = publish(c, tmp_path / "x", "llama", tensors=tensors)
    with pytest.raises(WeightsError, match=r"norm\.weight' expected float32, got int32"):
        convert(source, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedDtype, match="expected a floating-point dtype to store.*received int32"):
        convert(llama(tmp_path), tmp_path / "model.safetensors", dtype="int32")
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("config", [{"attn_layer_idxs": [], "num_layers": 2 ** 63}, {"embedding_dim": 8, "num_blocks": 2 ** 63},
                                    {"attn_layer_idxs": [], "num_layers": "x"}])
def test_a_count_of_layers_cannot_keep_a_reader_busy(config):
    with pytest.raises(ConfigError, match="expected num_(layers|blocks) to be a number from 1 to 4000; received"):
        conversion(config)


def edit_index(folder, change):
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    change(index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_indices_that_lie(tmp_path):
    source = llama(tmp_path, shards=2)

    def refused(change, message):
        before = (source / "model.safetensors.index.json").read_text()
        edit_index(source, change)
        with pytest.raises(WeightsError, match=message):
            read(source)
        (source / "model.safetensors.index.json").write_text(before)

    first = "model-00001-of-00002.safetensors"
    refused(lambda m: m.update({"lm_head.weight": "../../etc/passwd.safetensors"}), "expected files beside it, got '../../etc")
    refused(lambda m: m.update({"lm_head.weight": "/etc/hostname"}), "expected files beside it")
    refused(lambda m: m.update({"lm_head.weight": "gone.safetensors"}), "gone.safetensors is missing")
    refused(lambda m: m.update({"no.such": first}), "does not hold the tensors that are listed for it; they differ in no.such")
    refused(lambda m: m.pop("lm_head.weight"), "differ in lm_head.weight")
    (source / "model.safetensors.index.json").write_text('{"weight_map": []}')
    with pytest.raises(WeightsError, match="expected an index with a weight_map"):
        read(source)


def test_truncated_and_missing_files(tmp_path):
    source = llama(tmp_path)
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[:-8])
    with pytest.raises(WeightsError, match="truncated"):
        convert(source, tmp_path / "model.safetensors")
    (source / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="expected model.safetensors, pytorch_model.bin, or one file of weights; it has none"):
        read(source)
    (source / "config.json").write_text("{")
    with pytest.raises(ConfigError, match="config.json: is no JSON"):
        read(source)
    (source / "config.json").unlink()
    with pytest.raises(WeightsError, match="there is no config.json"):
        read(source)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_target_is_replaced_only_when_asked(tmp_path):
    source, target = llama(tmp_path), tmp_path / "model.safetensors"
    target.write_bytes(b"mine")
    with pytest.raises(WeightsError, match="is there already; give --overwrite"):
        convert(source, target)
    assert target.read_bytes() == b"mine"
    convert(source, target, dtype="bfloat16", overwrite=True)
    assert {t.dtype.name for t in nn.Model.load(target, device="numpy").tensors().values()} == {"bfloat16"}
    with pytest.raises(WeightsError, match=r"ends in \.safetensors"):
        convert(source, tmp_path / "model.bin")


def test_the_command(tmp_path):
    llama(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [sys.executable, "-c", "from ember_ml.cli import main; main()", "convert", "llama"]
    done = subprocess.run([*run, "model.safetensors"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "gated_mlp" in done.stdout and "FLOPs/token" in done.stdout and (tmp_path / "model.safetensors").exists()
    again = subprocess.run([*run, "model.safetensors"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("ember: ") and "--overwrite" in again.stderr
