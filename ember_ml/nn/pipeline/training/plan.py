"""What a run will take, told before it starts: numbers counted in outline, memory from short steps on part of a batch.

Parameters, FLOPs and bytes of state come from shapes alone, in no memory and no time. Memory is asked of the engine itself: one cannot
read off a graph what a compiler fuses and when an allocator frees. A training step is run on two parts of a batch; what it takes beyond
is in proportion to the sequences, since each sequence has its own activations:

    peak(batch) = peak(b) + (batch - b) (peak(b) - peak(a)) / (b - a)
"""

from __future__ import annotations

import dataclasses
import gc
import statistics

from ember_ml.autodiff import tree
from ember_ml.backend import get as engine
from ember_ml.backend import parse, using
from ember_ml.nn.models.summary import Summary
from ember_ml.nn.pipeline.training.callbacks import Rows
from ember_ml.nn.pipeline.training.config import RunConfig
from ember_ml.nn.pipeline.training.supervised import SupervisedTraining
from ember_ml.ops import tensor

#: updates of a short run: the first allocates and compiles, the second meets the state before it
_UPDATES = 3
#: batches among which the largest is looked for
_LOOK = 64


@dataclasses.dataclass(frozen=True)
class Counts:
    """What shapes tell.

    parameters, trainable: numbers. parameter_bytes; state_bytes: of the training state: weights that are trained, the optimiser's
    moments, buffers. batch: sequences of the largest batch. batches: of them an update. steps: updates of the run. flops: of an update
    by such batches, gradients and optimiser included, as the portable algorithms compute it. summary: a row a block, for one sequence.
    """

    parameters: int
    trainable: int
    parameter_bytes: int
    state_bytes: int
    batch: int
    batches: int
    steps: int
    flops: float
    summary: Summary


@dataclasses.dataclass(frozen=True)
class Measured:
    """A short run: sequences an update, the engine's peak memory in bytes, seconds an update (the median but the first two)."""

    batch: int
    peak: int
    seconds: float


def count(run: RunConfig) -> Counts:
    """The Counts of a run, computed in outline: a model of any size takes no memory."""
    outline = engine("numpy").outline()
    with using(outline):
        stage = SupervisedTraining(dataclasses.replace(run, backend=None))
        arrays, trainer, many = largest(stage.data), stage.trainer, run.training.accumulate
        batches, before = [tuple(tensor(a, device=trainer.device) for a in arrays)] * many, outline.flops
        if many == 1:
            trainer.step(trainer.state, batches[0])
        else:
            trainer.step(trainer.state, iter(batches), [trainer.count(arrays)] * many)
        flops = outline.flops - before
    model = stage.model
    own, trained = model.parameters().values(), model.parameters(trainable=True).values()
    return Counts(sum(t.size for t in own), sum(t.size for t in trained), sum(t.nbytes for t in own),
                  sum(t.nbytes for t in tree.tensors(trainer.state)), len(arrays[0]), many, trainer.config.steps, flops,
                  model.summary(arrays[0].shape[1]))


def largest(source) -> tuple:
    """The batch with the most elements of the first ones: lengths may differ."""
    return max((source.batch(i) for i in range(min(source.per_epoch, _LOOK))), key=lambda arrays: arrays[0].size)


def measure(run: RunConfig, batch: int | None = None, updates: int = _UPDATES) -> Measured:
    """Trains `updates` times on the run's engine, on the first `batch` sequences of its largest batch; nothing is kept.

    With batch=None the batches are the run's own, in their order.
    """
    gc.collect()                                             # of an earlier measurement
    rows = Rows()
    stage = SupervisedTraining(run, callbacks=[rows])
    trainer = stage.trainer
    trainer.config = dataclasses.replace(trainer.config, steps=updates, log_every=1, patience=None, final="last")
    trainer.evaluate = None
    if batch is not None:
        part = tuple(a[:batch] for a in largest(stage.data))
        trainer.batch = lambda i: part
    trainer.train()
    ends = [row["seconds"] for row in rows.rows]
    return Measured(len(trainer.batch(0)[0]), rows.rows[-1]["memory"],
                    statistics.median(b - a for a, b in zip(ends[1:], ends[2:])))


def parts(batch: int) -> tuple[int, ...]:
    """The parts of a batch to run: a quarter and a half of it, or all of it where there is no quarter."""
    return (batch // 4, batch // 2) if batch >= 4 else (batch,)


def extrapolate(found: list[Measured], batch: int) -> float:
    """Peak memory in bytes of a step on `batch` sequences, from one or two short runs."""
    last = found[-1]
    slope = (last.peak - found[0].peak) / (last.batch - found[0].batch) if len(found) > 1 else 0.0
    return last.peak + (batch - last.batch) * slope


def at_least(counts: Counts) -> int:
    """Bytes that a step takes on any engine: the state, the weights that are frozen, and a gradient of each of the others."""
    return counts.state_bytes + counts.parameter_bytes


def memory(run: RunConfig, counts: Counts) -> tuple[float, list[Measured], int]:
    """(predicted peak bytes, the short runs that it comes from, bytes there are on the device).

    A run whose state alone is too large for the device is not started: `at_least` is the prediction then, and the list is empty.
    """
    backend, device = parse(run.backend)
    limit = backend.memory(device)
    if at_least(counts) > limit:
        return at_least(counts), [], limit
    found = []
    for part in parts(counts.batch):
        found.append(measure(run, part))
        if extrapolate(found, counts.batch) > limit:
            break
    return extrapolate(found, counts.batch), found, limit
