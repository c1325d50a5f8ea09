"""Progress of a training run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from ember_ml.nn.pipeline.training.callbacks import Callback


class TrainingDisplay(Callback):
    """Shows rows as the trainer logs them.

    Args:
        steps: updates in all. unit: what a token is called.
        every: plain lines at most every so many updates.
    """

    def __init__(self, steps: int, unit: str, every: int):
        self.steps, self.unit, self.every = steps, unit, every
        self.console = Console(highlight=False, soft_wrap=True)
        self.bar = None
        if self.console.is_terminal:
            self.bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.completed}/{task.total}"),
                                TimeRemainingColumn(), console=self.console)
            self.task = self.bar.add_task("training", total=steps)

    def start(self, trainer):
        if self.bar:
            self.bar.update(self.task, completed=trainer.progress.step)
            self.bar.start()

    def end(self, row):
        if self.bar:
            self.bar.stop()

    def evaluate(self, row):
        values = "  ".join(f"{name} per {self.unit} {value:.4f}" for name, value in row["eval"].items())
        self.console.print(f"step {row['step']:>6}  held out: {values}")

    def step(self, row):
        left = self.steps - row["step"]
        text = (f"{row['loss'] / math.log(2.0):.4f} bits per {self.unit}  rate {row['rate']:.1e}  "
                f"{row['tokens_per_second']:,.0f} {self.unit}s/s  {row['memory'] / 2**20:,.0f} MiB")
        if self.bar:
            self.bar.update(self.task, completed=row["step"], description=text)
        elif row["step"] % self.every == 0 or left == 0:
            remaining = left * row["tokens"] / row["step"] / row["tokens_per_second"]
            self.console.print(f"step {row['step']:>6}/{self.steps}  {text}  {remaining:.0f} s left")
