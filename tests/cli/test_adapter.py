"""LoRA from the command: what is told, what the folder has, and that the fused model is a model like others."""

import json

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.adapters import adapters, load_peft
from tests.nn._help import close, get
from tests.pipeline.test_adapter import MODEL

JOB = """
backend = "numpy"

[data]
kind = "dna"
fasta = "x.fna"
length = 16
batch = 2
held_out = 100

[model]
file = "base.safetensors"

[adapter]
weights = "more.safetensors"
lora = { rank = 2, alpha = 4, targets = ["*.q_proj", "blocks.1"] }

[optimizer]
name = "adamw"
rate = 0.05

[training]
steps = 4
"""


def test_train_with_lora_then_generate(command, job):
    with em.using("numpy"):
        base = nn.Model.from_config(MODEL, key=em.random.key(9))
        base.save(job / "base.safetensors")
        em.weights.save(job / "more.safetensors", {"head.weight": base.head.weight * 2.0, "norm.scale": base.norm.weight})
    (job / "lora.toml").write_text(JOB)
    done = command("train", "lora.toml", "--out", "lora")
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert "of them trained (" in told and "LoRA of rank 2 counts 2 times" in told and "1 loaded," in told and "surplus 'norm.scale'" in told
    assert "LoRA fused: a divergence of" in told and (job / "lora/model_card.md").exists()
    assert json.loads((job / "lora/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "base.safetensors"
    fused, again = (nn.Model.load(job / name, device="numpy") for name in ("lora/model.safetensors", "base.safetensors"))
    again.load_weights(job / "more.safetensors", strict=False)
    load_peft(again, job / "lora/adapter")
    tokens = em.tensor([[0, 1, 2, 3, 2, 1]], device="numpy")
    assert adapters(again) and not adapters(fused)
    close(fused(tokens)[0], get(again(tokens)[0]), 1e-4)
    assert len(command("generate", "lora", "--length", "5", "--backend", "numpy").out.strip()) >= 5
