"""What a run will take, told before it starts: numbers counted in outline, memory asked of the engine in two updates.

Parameters, FLOPs and bytes of state come from shapes alone, in no memory and hardly any time. No count of a graph tells the peak memory:
compilers fuse, allocators free late, scans choose their chunks by what fits. So the run itself is tried, carefully: first on a quarter of
a batch, and on the whole one only if that leaves room. Where it seems not to, on a half, and the line through both is the prediction:

    peak(batch) = peak(half) + (batch - half) (peak(half) - peak(quarter)) / (half - quarter)
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
_UPDATES = 2
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
    """A short run: sequences an update, the engine's peak memory in bytes, seconds an update (the median of the later half: the first
    ones compile and fill the allocator)."""

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
    took = [b - a for a, b in zip(ends, ends[1:])]
    return Measured(len(trainer.batch(0)[0]), rows.rows[-1]["memory"], statistics.median(took[len(took) // 2:]))


def parts(batch: int) -> list[int]:
    """The parts of a batch to try before it: a quarter and a half, as far as they are less than it."""
    return sorted({max(1, batch // 4), max(1, batch // 2)} - {batch})


def extrapolate(found: list[Measured], batch: int) -> float:
    """Peak memory in bytes of a step on `batch` sequences: by the line through two short runs, or, too much, in proportion to one."""
    last = found[-1]
    if len(found) == 1:
        return last.peak * batch / last.batch
    return last.peak + (batch - last.batch) * (last.peak - found[0].peak) / (last.batch - found[0].batch)


def at_least(counts: Counts) -> int:
    """Bytes that a step takes on any engine: the state, the weights that are frozen, and a gradient of each of the others."""
    return counts.state_bytes + counts.parameter_bytes


def memory(run: RunConfig, counts: Counts) -> tuple[float, list[Measured], int]:
    """(peak bytes, the short runs that tell it, bytes that the device has).

    The last of the short runs is one of whole batches if those fit. A run whose state alone is too large is not tried at all: `at_least`
    is what is told then, and the list is empty.
    """
    backend, device = parse(run.backend)
    limit, found = backend.memory(device), []
    if at_least(counts) > limit:
        return at_least(counts), found, limit
    for part in parts(counts.batch):
        found.append(measure(run, part))
        if extrapolate(found, counts.batch) <= limit:
            break
    else:
        if found:
            return extrapolate(found, counts.batch), found, limit
    found.append(measure(run, counts.batch))
    return found[-1].peak, found, limit
