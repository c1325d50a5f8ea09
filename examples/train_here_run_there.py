"""Trains a tiny model on one engine, saves it, and runs the same file on every other engine."""

import tempfile
from pathlib import Path

import numpy as np

import ember_ml as em
from ember_ml import nn
from ember_ml.nn.pipeline.training import Trainer, TrainingConfig

engines = em.available()
pattern = np.tile(np.array([0, 1, 2, 3, 2, 1], np.int32), 12)[None, :65]

with em.using(engines[-1]):
    model = nn.HyenaDNA(nn.HyenaDNAConfig(vocab_size=4, d_input=16, n_layer=1, l_max=64), key=em.random.key(0))
    optimizer = nn.optimizers.AdamW(nn.optimizers.AdamWConfig(rate=1e-2))
    trainer = Trainer(model, lambda m, x, y: nn.losses.cross_entropy(m(x)[0], y), optimizer,
                      batch=lambda i: (pattern[:, :-1], pattern[:, 1:]), config=TrainingConfig(steps=40))
    print(f"trained on {engines[-1]}: loss {trainer.train()['loss']:.4f} nats after 40 updates")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "model.safetensors"
    model.save(path)
    for engine in engines:
        there = nn.Model.load(path, device=engine)
        tokens = em.tensor(pattern[:, :-1], device=engine)
        guessed = em.ops.argmax(there(tokens)[0], axis=-1).numpy()
        print(f"{engine:<6} predicts {np.mean(guessed == pattern[:, 1:]):.0%} of the next tokens")
