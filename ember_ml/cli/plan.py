"""`ember plan`: what a run will take."""

from __future__ import annotations

import dataclasses
import math

from ember_ml.cli.output import Output
from ember_ml.nn.pipeline.training import plan
from ember_ml.nn.pipeline.training.config import RunConfig

_PROBED = 6


def run(run: RunConfig, probe: bool, output: Output) -> int:
    """Prints parameters, FLOPs, state and peak memory; with `probe` trains some updates and tells the time of one.

    Returns the exit code: 1 if the run does not fit into the memory that there is.
    """
    counts = plan.count(run)
    length, steps = counts.summary.length, counts.steps
    positions = counts.batches * counts.batch * length
    output.say(str(counts.summary))
    output.say(f"parameters    {counts.parameters:,}, {counts.trainable:,} of them trained; {_bytes(counts.parameter_bytes)}, "
               f"with the optimizer's state {_bytes(counts.state_bytes)}")
    batches = f"{counts.batches} batches of " if counts.batches > 1 else ""
    output.say(f"an update     {batches}{counts.batch:,} sequences of {length:,} positions, {_flop(counts.flops)} with gradients")
    output.say(f"the run       {steps:,} updates, {steps * positions:,} positions, {_flop(steps * counts.flops)}")
    peak, found, limit = plan.memory(run, counts)
    fits = peak <= limit
    output.say(f"peak memory   {_bytes(peak)} of {_bytes(limit)} on {run.backend}" + _source(found, counts.batch)
               + ("" if fits else "\n              it does not fit: lower data.batch or data.length, or choose a smaller model"))
    document = {"backend": run.backend, "parameters": counts.parameters, "trainable": counts.trainable,
                "parameter_bytes": counts.parameter_bytes, "state_bytes": counts.state_bytes, "batch": counts.batch,
                "batches": counts.batches, "length": length, "steps": steps, "flops": counts.flops, "decoding_state_bytes": counts.summary.total.state_bytes,
                "peak_memory": round(peak), "from": [dataclasses.asdict(m) for m in found], "memory": limit, "fits": fits,
                "parts": [row._asdict() for row in (*counts.summary.rows, counts.summary.total)]}
    if probe and fits:
        measured = plan.measure(run, updates=_PROBED)
        output.say(f"probe         {measured.seconds:.3g} s an update, {positions / measured.seconds:,.0f} positions/s; all updates "
                   f"{_time(steps * measured.seconds)}, evaluations apart; {_bytes(measured.peak)} at its peak")
        document["probe"] = dataclasses.asdict(measured)
    output.result(document)
    return int(not fits)


def _source(found: list[plan.Measured], batch: int) -> str:
    if not found:
        return ", at least: weights, gradients and optimizer alone; nothing was run"
    if found[-1].batch == batch:
        return ", in two updates"
    return (f", from updates by {' and '.join(str(m.batch) for m in found)} of {batch} sequences: {', '.join(_bytes(m.peak) for m in found)}; "
            "whole batches were not tried")


def _bytes(n: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if n >= size:
            return f"{n / size:,.1f} {unit}"
    return f"{n:.0f} bytes"


def _flop(n: float) -> str:
    power = min(int(math.log10(max(n, 1.0))) // 3, 6)
    return f"{n / 1000**power:,.3g} {' kMGTPE'[power].strip()}FLOP"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
