"""A model learns one pattern whole, then another with LoRA alone: few parameters, packed documents, peft's files, and fused again."""

import tempfile

import numpy as np

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.adapters import LoRAConfig, add_lora, fuse, save_peft
from ember_ml.nn.pipeline.training import Trainer, TrainingConfig
from ember_ml.nn.pipeline.training.objectives import next_token_loss

CONFIG = {"vocab_size": 8, "head": "tied", "norm": "rms_norm", "defaults": {"d_input": 32, "norm": "rms_norm"},
          "blocks": [{"block": "transformer", "heads": 4, "rope": {}}]}


def packed(step: int):
    """Rows of three documents, 0, step, 2 step, ... of 16 tokens each: inputs, targets, segments."""
    starts = np.random.default_rng(0).integers(0, 8, (4, 3, 1))
    text = ((starts + step * np.arange(17)) % 8).astype(np.int32)
    segments = np.repeat(np.arange(1, 4, dtype=np.int32), 16)
    return text[:, :, :-1].reshape(4, 48), text[:, :, 1:].reshape(4, 48), np.tile(segments, (4, 1))


def train(model, batch, steps: int) -> float:
    trainer = Trainer(model, next_token_loss, nn.optimizers.Adam(nn.optimizers.AdamConfig(rate=1e-2)), lambda i: batch,
                      TrainingConfig(steps=steps, log_every=steps))
    return trainer.train()["loss"]


with em.using("numpy"):
    model = nn.Model.from_config(CONFIG, key=em.random.key(0))
    print(f"steps of one, {model.count():,} parameters: loss {train(model, packed(1), 60):.3f} nats")
    names = add_lora(model, LoRAConfig(rank=4, alpha=8.0), em.random.key(1))
    trained = sum(p.size for p in model.parameters(trainable=True).values())
    print(f"steps of three, {trained:,} parameters in {len(names)} pairs: loss {train(model, packed(3), 60):.3f} nats")
    with tempfile.TemporaryDirectory() as folder:
        save_peft(model, folder)
    found = fuse(model, em.tensor(packed(3)[0]))
    print(f"fused: {found.changed:.1e} nats from the adapted model, which is {found.without:.1f} nats from the one before")
