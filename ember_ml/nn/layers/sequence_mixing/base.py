"""What sequence mixers have in common."""

from __future__ import annotations

from ember_ml.nn.module import Module
from ember_ml.ops import expand_dims, squeeze
from ember_ml.tensor import EmberTensor

State = object


def state_dtype(dtype):
    """The dtype of a recurrent state beside activations of `dtype`: float32 at least."""
    return "float32" if str(dtype) in ("float16", "bfloat16") else dtype


class SequenceMixer(Module):
    """A layer that mixes positions: (B, L, d_input) to (B, L, d_input), channels last.

    `forward(x, state)` continues from a state and returns the next one; without a state it starts from nothing and returns None as the state.
    `step` takes one position, (B, d_input). A state is a tree of tensors: it can be saved, restored and branched.
    A layer that keeps packed documents apart (`ember_ml.nn.packing`) sets `cannot_pack` to None; one that cannot, to the reason.
    """

    mixes_sequence = True
    cannot_pack: str | None = "it does not say how"

    def forward(self, x: EmberTensor, state: State = None) -> tuple[EmberTensor, State]:
        raise NotImplementedError

    def step(self, x: EmberTensor, state: State) -> tuple[EmberTensor, State]:
        """One position, (B, d_input): `forward` over a length of one, unless a layer has a shorter way."""
        y, state = self.forward(expand_dims(x, 1), state)
        return squeeze(y, 1), state

    def initial_state(self, batch: int, dtype="float32") -> State:
        """The state before the first position."""
        raise NotImplementedError
