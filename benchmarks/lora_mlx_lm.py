"""LoRA beside mlx-lm: the trainers of both, on one tiny llama with the same weights, adapters, batches and optimiser, MLX on this machine.

Both run as they are, with their own loops, compiled steps, losses and reports: mlx-lm's `train` asks for its batches, and every `WINDOW` updates
its batch function lets Ember's trainer do as many, so that the two take turns in one process. A rate is that of real target tokens.

    equal lengths             the same batches on both sides; the losses are compared. Target: no fewer tokens a second
    uneven lengths            mlx-lm's batches as `mlx_lm lora` makes them, padded to the longest of a batch, Ember's rows packed. Target: 1.25 times.
    uneven lengths, sorted    the same with texts of like length in mlx-lm's batches. It means to sort them, but asks a record (a dict) for its
                              length, which is the number of its fields; here the records are plain texts. No target: as measured

    python -m benchmarks.lora_mlx_lm
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("MLX_ENABLE_TF32", "0")

import mlx.core as mx
import mlx.optimizers
import numpy as np
from mlx_lm import utils as mlx_utils
from mlx_lm.tuner import trainer as mlx_trainer
from mlx_lm.tuner.datasets import CacheDataset
from mlx_lm.tuner.utils import linear_to_lora_layers

import ember_ml as em
from benchmarks.timing import save
from ember_ml.data.documents import Documents
from ember_ml.data.packing import Packed
from ember_ml.interop import convert
from ember_ml.interop.peft_names import peft_names
from ember_ml.nn.adapters import LoRAConfig, add_lora, maps
from ember_ml.nn.optimizers import Adam, AdamConfig
from ember_ml.nn.pipeline.training import Trainer, TrainingConfig
from ember_ml.nn.pipeline.training.objectives import OBJECTIVES

VOCAB, LENGTH, BATCH, RANK, ALPHA, RATE = 96, 128, 8, 8, 16.0, 1e-3
WINDOW, ROUNDS, WARMUP = 5, 11, 2
LLAMA = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=512, tie_word_embeddings=False)


def tiny_llama(folder: Path):
    """Saves a random llama as transformers does, which both sides read."""
    import torch
    import transformers
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).save_pretrained(folder)


def ours(folder: Path):
    """The converted model with LoRA on every linear map of its blocks."""
    model = convert.read(folder)[0].to("mlx")
    add_lora(model, LoRAConfig(rank=RANK, alpha=ALPHA), em.random.key(1))
    return model


def theirs(folder: Path, model):
    """mlx-lm's model with the same adapters: its lora_a is A transposed."""
    peer, _ = mlx_utils.load_model(folder)
    peer.freeze()
    linear_to_lora_layers(peer, LLAMA["num_hidden_layers"], {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0})
    places = dict(peer.named_modules())
    adapted = [(name, dense.adapter.pairs[part]) for name, (dense, part) in maps(model).items() if dense.adapter is not None]
    for name, pair in adapted:
        places[peft_names(model, folder)[name]].lora_a = mx.array(pair.A.numpy().T)
    mx.eval(peer.parameters())
    count = sum(v.size for _, v in mlx.utils.tree_flatten(peer.trainable_parameters()))
    assert count == sum(p.size for p in model.parameters(trainable=True).values()), "the two sides train different numbers of parameters"
    return peer


def documents(lengths) -> list[np.ndarray]:
    """Texts of a noisy repeating pattern, so that there is something to learn."""
    rng, found = np.random.default_rng(0), []
    for n in lengths:
        text = (np.arange(n) * rng.integers(1, 5) + rng.integers(0, VOCAB)) % VOCAB
        found.append(np.where(rng.random(n) < 0.1, rng.integers(0, VOCAB, n), text).astype(np.int32))
    return found


class Records:
    """A dataset as CacheDataset takes it: records {"text": ...} as in a .jsonl file, already in tokens, or with `plain` the texts themselves."""

    def __init__(self, texts, plain: bool = False):
        self.records = texts if plain else [{"text": text} for text in texts]

    def __len__(self):
        return len(self.records)

    def __getitem__(self, i):
        return self.records[i]

    def process(self, record):
        text = record["text"] if isinstance(record, dict) else record
        return text.tolist(), 0


def run(name: str, records: Records, batch, folder: Path, target: float | str) -> dict:
    """One comparison. batch: Ember's `batch(i)`; None takes mlx-lm's own batches, update by update."""
    model = ours(folder)
    peer, objective, shared = theirs(folder, model), OBJECTIVES["next_token"], []
    trainer = Trainer(model, objective.loss, Adam(AdamConfig(rate=RATE)), batch or (lambda i: shared[i]),
                      TrainingConfig(steps=WINDOW, log_every=WINDOW, eval_every=10 ** 9, checkpoint_every=10 ** 9, clip=None), count=objective.count)
    times: dict[str, list] = {"ours": [], "peer": []}         # (tokens a second, tokens a second of processor time)
    losses: dict[str, list] = {"ours": [], "peer": []}

    def batches(**given):
        inner, windows = mlx_trainer.iterate_batches(**given), WARMUP + ROUNDS
        for _ in range(windows):
            began, tokens = _now(), 0
            for _ in range(WINDOW):
                rows, lengths = next(inner)
                tokens += int(np.minimum(np.array(lengths)[:, 1] - 1, rows.shape[1] - 1).sum())
                if batch is None:
                    both = np.array(rows)
                    shared.append((both[:, :-1], both[:, 1:]))
                yield rows, lengths
            times["peer"].append(tokens / (_now() - began))
            before = trainer.progress.tokens
            trainer.config = dataclasses.replace(trainer.config, steps=trainer.progress.step + WINDOW)
            began = _now()
            losses["ours"].append(trainer.train()["loss"])
            times["ours"].append((trainer.progress.tokens - before) / (_now() - began))

    class Losses(mlx_trainer.TrainingCallback):
        def on_train_loss_report(self, info):
            losses["peer"].append(info["train_loss"])

    args = mlx_trainer.TrainingArgs(batch_size=BATCH, iters=WINDOW * (WARMUP + ROUNDS), steps_per_report=WINDOW if batch else 1,
                                    max_seq_length=LENGTH + 1, steps_per_save=10 ** 9, adapter_file=folder / "adapters.safetensors")
    with contextlib.redirect_stdout(io.StringIO()):
        mlx_trainer.train(peer, mlx.optimizers.Adam(learning_rate=RATE, bias_correction=True), CacheDataset(records), None, args, iterate_batches=batches,
                          training_callback=Losses())
    if batch is None:
        apart = max(abs(a - b) for a, b in zip(losses["ours"], losses["peer"][WINDOW - 1::WINDOW]))
        assert apart < 2e-3, f"the losses part: {apart}"
    a, b = (np.array(times[side][WARMUP:]) for side in ("ours", "peer"))
    (ours_s, _), (peer_s, _), (ratio, processor) = (np.median(x, axis=0).tolist() for x in (a, b, a / b))
    return {"case": name, "ours tokens/s": ours_s, "mlx-lm tokens/s": peer_s, "ratio": ratio, "ratio in processor time": processor,
            "target": target, "loss, first": losses["ours"][0], "loss, last": losses["ours"][-1]}


def _now() -> np.ndarray:
    """Seconds on the clock and of this process on its processors: other work on the machine moves the first alone."""
    return np.array([time.perf_counter(), time.process_time()])


def main():
    """Both comparisons."""
    rng = np.random.default_rng(1)
    uneven = documents(np.clip(np.exp(rng.normal(3.6, 0.8, 400)).astype(int), 8, LENGTH + 1))
    with tempfile.TemporaryDirectory() as place, em.using("mlx"):
        folder = Path(place)
        tiny_llama(folder)
        rows = [run("equal lengths", Records(documents([LENGTH + 1] * 64)), None, folder, 1.0)]
        packed = Packed(Documents.of(uneven), LENGTH, BATCH)
        rows += [run(f"uneven lengths{', sorted' if plain else ''}", Records(uneven, plain), packed.batch, folder, "" if plain else 1.25)
                 | {"fill": packed.fill} for plain in (False, True)]
    save("lora_mlx_lm", rows)


if __name__ == "__main__":
    main()
