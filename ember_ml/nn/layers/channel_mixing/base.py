"""What channel mixers have in common."""

from __future__ import annotations

from ember_ml.nn.module import Module
from ember_ml.tensor import EmberTensor


class ChannelMixer(Module):
    """A layer that treats each position alone: (..., d_input) to (..., d_output). Its step is its forward."""

    mixes_sequence = False

    def forward(self, x: EmberTensor) -> EmberTensor:
        raise NotImplementedError

    def step(self, x: EmberTensor) -> EmberTensor:
        """One position, (B, d_input)."""
        return self.forward(x)
