"""Where a run stands, apart from its tensors: it is saved beside them, so that a resumed run knows as much.

Nothing here depends on the clock: equal runs have equal checkpoints, to the byte.
"""

from __future__ import annotations

import dataclasses
import json
import math

from ember_ml.errors import WeightsError


@dataclasses.dataclass
class Progress:
    """Counts of a run.

    step: updates done. tokens: targets learned from.
    score, best: the best score of an evaluation, and the update it was reached at; None before the first.
    waited: evaluations since then.
    """

    step: int = 0
    tokens: int = 0
    score: float | None = None
    best: int | None = None
    waited: int = 0

    def judge(self, score: float, higher_is_better: bool) -> bool:
        """Takes note of an evaluation at this step. Returns whether it is the best so far; NaN never is, nor is a tie."""
        better = not math.isnan(score) and (self.score is None or (score > self.score if higher_is_better else score < self.score))
        if better:
            self.score, self.best, self.waited = score, self.step, 0
        else:
            self.waited += 1
        return better

    def to_text(self) -> str:
        """As one line of JSON."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_text(text: str, path) -> Progress:
        """What `to_text` gave. Raises WeightsError, naming the file, for anything else."""
        try:
            fields = json.loads(text)
            progress = Progress(**fields)
            right = progress.step >= 0 and progress.tokens >= 0 and progress.waited >= 0
        except (ValueError, TypeError):
            right = False
        if not right:
            raise WeightsError(f"{path}: does not tell where the run stood; it was not written by a training run")
        return progress
