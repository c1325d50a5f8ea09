"""A model of attention, FFT convolution and a mixture of experts as a list of blocks: summed up, trained, stepped through, generated from."""

import tempfile
from pathlib import Path

import numpy as np

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.configs import BlockConfig, FFTConvConfig, ModelConfig, MoEConfig
from ember_ml.nn.pipeline.training import Trainer, TrainingConfig

D = 32
config = ModelConfig(
    blocks=[
        BlockConfig(d_input=D, layer="self_attention", norm="layer_norm"),
        BlockConfig(d_input=D, layer="fftconv", norm="layer_norm", fftconv_config=FFTConvConfig(d_input=D, l_max=64)),
        BlockConfig(d_input=D, layer="moe", norm="layer_norm", moe_config=MoEConfig(d_input=D, num_experts=4, k=2)),
    ],
    vocab_size=4, norm="layer_norm", head="tied",
)
model = nn.Model(config, key=em.random.key(0))
print(model.summary(length=64))

pattern = np.tile(np.array([0, 1, 2, 3, 2, 1], np.int32), 12)[None, :65]
optimizer = nn.optimizers.AdamW(nn.optimizers.AdamWConfig(rate=1e-2))
trainer = Trainer(model, lambda m, x, y: m.loss(x, y), optimizer, batch=lambda i: (pattern[:, :-1], pattern[:, 1:]),
                  config=TrainingConfig(steps=40))
print(f"loss after 40 updates: {trainer.train()['loss']:.4f} nats")

tokens = em.tensor(pattern[:, :-1])
output, _ = model(tokens)
_, states = model(tokens[:, :20], model.initial_state(1))          # a prompt in one pass,
logits, states = model.step(tokens[:, 20], states)                 # then position by position
difference = em.ops.max(em.ops.abs(logits - output[:, 20])).item()
print(f"step and forward differ by {difference:.1e}")
assert difference < 1e-3

print("generated:", *(int(t.numpy()[0]) for t in model.generate(tokens[:, :12], 12)))

with tempfile.TemporaryDirectory() as folder:
    model.write_config(Path(folder) / "model.toml")
    print((Path(folder) / "model.toml").read_text())
    model.save(Path(folder) / "model.safetensors")
    same = nn.Model.load(Path(folder) / "model.safetensors")
    print(f"loaded again: {same.count():,} parameters")
