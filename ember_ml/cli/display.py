"""Progress of a training run: a live line on a terminal, plain lines elsewhere; and the scores at the end."""

from __future__ import annotations

import math

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ember_ml.cli.output import Output
from ember_ml.nn.pipeline.training.callbacks import Callback


class TrainingDisplay(Callback):
    """Shows rows as the trainer logs them.

    Args:
        steps: updates in all. unit: what a token is called. bits: whether the loss is nats per token, told in bits.
        every: plain lines at most every so many updates. output: where to.
    """

    def __init__(self, steps: int, unit: str, bits: bool, every: int, output: Output):
        self.steps, self.unit, self.bits, self.every, self.output = steps, unit, bits, every, output
        self.bar = None
        if output.live:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.completed}/{task.total}"),
                                TimeRemainingColumn(), console=output.console)
            self.task = self.bar.add_task("training", total=steps)

    def start(self, trainer):
        self.done, self.seen = trainer.progress.step, trainer.progress.tokens       # of a run that goes on
        if self.bar:
            self.bar.update(self.task, completed=self.done)
            self.bar.start()

    def end(self, row):
        if self.bar:
            self.bar.stop()

    def evaluate(self, row):
        self.output.say(f"step {row['step']:>6}  held out: " + "  ".join(f"{told(name, self.unit)} {value:.4f}"
                                                                         for name, value in row["eval"].items()))

    def step(self, row):
        left = self.steps - row["step"]
        loss = f"{row['loss'] / math.log(2.0):.4f} bits per {self.unit}" if self.bits else f"loss {row['loss']:.4f}"
        text = f"{loss}  rate {row['rate']:.1e}  {row['tokens_per_second']:,.0f} {self.unit}s/s  {row['memory'] / 2**20:,.0f} MiB"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], description=text)
        elif row["step"] % self.every == 0 or left == 0:
            remaining = left * (row["tokens"] - self.seen) / (row["step"] - self.done) / row["tokens_per_second"]
            self.output.say(f"step {row['step']:>6}/{self.steps}  {text}  {remaining:.0f} s left")


def told(score: str, unit: str) -> str:
    """What a score is called: "bits per base", "accuracy"."""
    return f"bits per {unit}" if score == "bits" else score


def scores(output: Output, found: dict[str, float], baselines: dict[str, float], unit: str):
    """Says the first score of an evaluation among those of the baselines, the highest first, and the other scores after them."""
    (name, own), *others = found.items()
    output.say(f"held-out {told(name, unit)}")
    for who, value in sorted([*baselines.items(), ("this model", own)], key=lambda b: (math.isnan(b[1]), -b[1])):
        output.say(f"  {who:<28} {value:.4f}")
    for name, value in others:
        output.say(f"{told(name, unit)} {value:.4f}")
