"""MAD on a laptop: small models of any registered layers, trained on the six synthetic tasks, and how often they are right.

Source: Poli et al. 2024, Mechanistic Design and Scaling of Hybrid Architectures.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Literal

from ember_ml.data.synthetic import IGNORED, TASKS, Task
from ember_ml.errors import ConfigError
from ember_ml.nn import losses
from ember_ml.nn.blocks.base import BlockConfig
from ember_ml.nn.models.auto_encoder import AutoEncoder, AutoEncoderConfig
from ember_ml.nn.models.base import Model
from ember_ml.nn.models.config import ModelConfig
from ember_ml.nn.module import Module
from ember_ml.nn.optimizers import AdamW, AdamWConfig, Schedule
from ember_ml.nn.pipeline.training.step import initial_state, make_step
from ember_ml.ops import argmax, random, tensor
from ember_ml.registry import Count, Seed, Size, config, layers

TaskName = Literal["in_context_recall", "noisy_in_context_recall", "fuzzy_in_context_recall", "selective_copying", "compression",
                   "memorization"]

#: the tasks at a laptop's size: MAD's are two to four times as long
SIZES: dict[str, dict] = {
    "in_context_recall": dict(vocab_size=16, seq_len=64), "noisy_in_context_recall": dict(vocab_size=24, noise_vocab_size=8, seq_len=64),
    "fuzzy_in_context_recall": dict(vocab_size=12, seq_len=64, k_motif_size=2, v_motif_size=2),
    "selective_copying": dict(vocab_size=16, seq_len=64, num_tokens_to_copy=8), "compression": dict(vocab_size=16, seq_len=16),
    "memorization": dict(vocab_size=64, seq_len=32),
}


@config
class ProbeConfig:
    """What is trained and how long.

    Args:
        layers: models. Each is the name of a layer, which stands for `depth` times that layer and a gated_mlp, or names joined by "+",
            which are all of its layers: "hyena+gated_mlp+mamba+gated_mlp".
        tasks: names of the tasks. d_input: channels. depth: pairs of layers of a model that is given by one name.
        steps, batch, rate: updates, sequences an update, peak learning rate. train, test: sequences to train on and to judge on.
        seed: of data, weights and order.
    """

    layers: list[str]
    tasks: list[TaskName] = dataclasses.field(default_factory=lambda: list(TASKS))
    d_input: Size = 64
    depth: Count = 2
    steps: Size = 400
    batch: Size = 32
    rate: float = 2e-3
    train: Size = 3200
    test: Size = 256
    seed: Seed = 0


def options(name: str, length: int) -> dict:
    """The fields that a layer of a small model needs: its longest sequence, heads, and rotary positions where it has them."""
    component = layers.get(name)
    if not hasattr(component, "mixes_sequence"):
        raise ConfigError(f"mad: expected names of channel or sequence mixers, received {name!r}")
    known = {f.name for f in dataclasses.fields(component.Config)}
    return {field: value for field, value in (("l_max", length), ("heads", 4), ("rope", {})) if field in known}


def blocks(spec: str, c: ProbeConfig, length: int) -> list[BlockConfig]:
    """The blocks of one model: x + layer(norm(x)) for each of its layers. Raises RegistryError for an unknown name."""
    names = spec.split("+") if "+" in spec else [spec, "gated_mlp"] * c.depth
    return [BlockConfig(d_input=c.d_input, layer=name, layer_config=options(name, length), norm="rms_norm") for name in names]


def build(spec: str, task: Task, length: int, c: ProbeConfig) -> Module:
    """The model for one task: a language model, or an auto-encoder where one code has to hold the sequence."""
    key = random.key(c.seed)
    if task.encodes:
        return AutoEncoder(AutoEncoderConfig(blocks(spec, c, length), task.vocab_size, length), key=key)
    return Model(ModelConfig(blocks=blocks(spec, c, length), vocab_size=task.vocab_size, norm="rms_norm", head="dense"), key=key)


def logits(model: Module, tokens):
    """(B, L, vocab) of either kind of model."""
    y = model(tokens)
    return y[0] if isinstance(y, tuple) else y


def train(model: Module, task: Task, c: ProbeConfig) -> float:
    """Trains in place on `c.train` sequences, in a new order every time that all were seen. Returns the last update's loss."""
    inputs, targets = (tensor(part, dtype="int32") for part in task.instances(c.train, c.seed))
    optimizer = AdamW(AdamWConfig(Schedule(peak=c.rate, total=c.steps, warmup=max(1, c.steps // 10), floor=c.rate / 20), weight_decay=0.1))

    def loss(model, tokens, wanted):
        return losses.cross_entropy(logits(model, tokens), wanted, ignore=IGNORED)

    compiles = inputs.backend.runtime.compiles == "step"
    step = make_step(model, loss, optimizer, clip=1.0, compile=compiles)
    state, at = initial_state(model, optimizer, random.key(c.seed)), c.train
    for count in range(c.steps):
        if at + c.batch > c.train:
            order, at = random.permutation(random.fold_in(random.key(c.seed), count), c.train), 0
        rows = order[at:at + c.batch]
        state, metrics = step(state, (inputs[rows], targets[rows]))
        at += c.batch
    model.update({**state["params"], **state["buffers"]})
    return float(metrics["loss"])


def accuracy(model: Module, task: Task, c: ProbeConfig) -> float:
    """The share of judged targets that are the likeliest token, on `c.test` sequences that were not trained on."""
    inputs, targets = task.instances(c.test, c.seed + 1, training=False)
    right = judged = 0
    for at in range(0, c.test, 64):
        said = argmax(logits(model, tensor(inputs[at:at + 64], dtype="int32")), axis=-1).numpy()
        wanted = targets[at:at + 64]
        right, judged = right + int((said == wanted).sum()), judged + int((wanted != IGNORED).sum())
    return right / judged


def probe(c: ProbeConfig, watch: Callable[[dict], None] = lambda row: None, known: Sequence[dict] = ()) -> list[dict]:
    """Trains every model on every task, on the engine in use.

    Args:
        watch: is given each row as it comes.
        known: rows of an earlier call, which are not trained again.

    Returns: rows {"layers", "task", "accuracy", "loss", "parameters", "seconds"}, the known ones first; loss of the last update, None where
    it was not finite: the model diverged and its accuracy says nothing; seconds of training.

    Raises RegistryError or ConfigError before anything is trained, for layers that do not exist or do not fit.
    """
    if c.train < c.batch:
        raise ConfigError(f"mad: expected at least one batch of sequences to train on, received train={c.train}, batch={c.batch}")
    tasks = {name: TASKS[name](**SIZES[name]) for name in c.tasks}
    widths = {name: task.instances(1, 0)[0].shape[1] for name, task in tasks.items()}
    rows = list(known)
    done = {(row["layers"], row["task"]) for row in rows}
    wanted = [pair for pair in dict.fromkeys((spec, name) for spec in c.layers for name in c.tasks) if pair not in done]
    for spec, name in wanted:
        build(spec, tasks[name], widths[name], c)
    for spec, name in wanted:
        model, start = build(spec, tasks[name], widths[name], c), time.perf_counter()
        loss = train(model, tasks[name], c)
        seconds = time.perf_counter() - start
        row = {"layers": spec, "task": name, "accuracy": accuracy(model, tasks[name], c), "loss": loss if math.isfinite(loss) else None,
               "parameters": model.count(), "seconds": seconds}
        rows.append(row)
        watch(row)
    return rows
