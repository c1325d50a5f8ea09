"""The closed-form continuous-time layer, plain and wired."""

from __future__ import annotations

from typing import Literal

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.sequence_mixing.recurrent.liquid import Liquid, MixedMemory
from ember_ml.nn.layers.sequence_mixing.recurrent.wirings import WiringConfig
from ember_ml.nn.module import Module
from ember_ml.nn.packing import resets
from ember_ml.ops import abs, cfc, concat, ones, random, split, tensor, zeros
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor

Mode = Literal["default", "no_gate", "pure"]


@config
class CfCConfig:
    """d_input: channels. d_hidden: neurons, None for d_input. mode: see CfC. d_output: project the outputs, None for not.

    backbone_units, backbone_layers, activation: of the network before the heads. mixed_memory: an LSTM beside the neurons.
    """

    d_input: Size
    d_hidden: Size | None = None
    mode: Mode = "default"
    d_output: Size | None = None
    backbone_units: Size = 128
    backbone_layers: int = 1
    activation: Literal["lecun_tanh", "tanh", "relu", "gelu", "silu"] = "lecun_tanh"
    mixed_memory: bool = False


class Heads(Module):
    """The heads of a CfC cell side by side: F_1, F_2, A, B of `ops.cfc`; in the pure mode F_1 alone, with w_tau and amplitude.

    Args:
        width: of their input. units: neurons. mode: of the cell.
        wiring: (sources, units), 0 where a synapse is missing, for the first channels of the input; the others are the neurons' own state.
        wired_gate: the wiring binds A and B, too, and not F_1 and F_2 alone.

    Parameters: weight (4 units, width) or (units, width), bias; w_tau, amplitude (units,). Buffer: mask of weight's shape, if wired.
    """

    def __init__(self, width: int, units: int, mode: str, key: EmberTensor, wiring=None, wired_gate: bool = True):
        heads = 1 if mode == "pure" else 4
        self.weight = concat([initializers.glorot_uniform(k, (units, width)) for k in random.split(key, heads)])
        self.bias = zeros((heads * units,), like=self.weight)
        if mode == "pure":
            # the original starts w_tau at 0, where |w_tau| has the gradient 0, so that it never moves
            self.w_tau, self.amplitude = ones((units,), like=self.weight), ones((units,), like=self.weight)
        self.buffer("mask", None)
        if wiring is not None:
            own = ones((units, units), like=self.weight)
            one = concat([abs(tensor(wiring.T.copy(), dtype="float32", like=own)), own], axis=1)
            self.mask = concat([one if wired_gate or i < 2 else one.ones_like() for i in range(heads)])
        self._mode = mode

    def run(self, backbone, x, h, elapsed, memory, activation="lecun_tanh") -> tuple:
        """`ops.cfc` with these heads."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        pure = (self.w_tau, self.amplitude) if self._mode == "pure" else None
        return cfc(x, backbone, (weight, self.bias), h, elapsed, mode=self._mode, activation=activation, pure=pure, memory=memory,
                   reset=resets())


@layers.register("cfc")
class CfC(Liquid):
    """h_t = f1 (1 - s) + s f2 with f1, f2 = tanh of F_1 z, F_2 z, s = sigmoid(T A z + B z).

    z is a network of [x_t, h_{t-1}], T the time since the position before.
    The mode no_gate has f1 + s f2; pure has amplitude - amplitude exp(-T (|w_tau| + |F_1 z|)) F_1 z.

    Args:
        config: see CfCConfig. key: random key of the initial weights.

    Parameters: backbone as Dense, heads as Heads, out_proj as Dense, memory as MixedMemory. State: h (B, d_hidden).

    Source: Hasani et al. 2022, Closed-form Continuous-time Neural Networks, eq. 10.
    """

    Config = CfCConfig

    def __init__(self, config: CfCConfig, key: EmberTensor | None = None):
        if config.backbone_layers < 0:
            raise ConfigError(f"cfc: expected backbone_layers of at least 0, received {config.backbone_layers}")
        self.config = c = config
        self.units = c.d_hidden or c.d_input
        keys = random.split(key if key is not None else random.next_key(), c.backbone_layers + 3)
        widths = [c.d_input + self.units] + [c.backbone_units] * c.backbone_layers
        self.backbone = [Dense(DenseConfig(a, b), key=k) for a, b, k in zip(widths, widths[1:], keys)]
        for dense in self.backbone:
            dense.called = False
        self.heads = Heads(widths[-1], self.units, c.mode, keys[-1])
        self.out_proj = Dense(DenseConfig(self.units, c.d_output), key=keys[-2]) if c.d_output else None
        self.memory = MixedMemory(c.d_input, self.units, keys[-3]) if c.mixed_memory else None

    def run(self, x, h, elapsed, memory):
        y, *after = self.heads.run([(d.weight, d.bias) for d in self.backbone], x, h, elapsed, memory, self.config.activation)
        return y if self.out_proj is None else self.out_proj(y), *after


@config
class WiredCfCConfig:
    """d_input: channels. wiring: the neurons and their synapses. mode: see CfC. d_output: project the outputs, None for not.

    wired_gate: a missing synapse is missing in the gate s, too; the original wires F_1 and F_2 alone.
    """

    d_input: Size
    wiring: WiringConfig
    mode: Mode = "default"
    d_output: Size | None = None
    wired_gate: bool = True


@layers.register("wired_cfc")
class WiredCfC(Liquid):
    """A CfC cell without backbone for each layer of a wiring: it takes what the layer before it gives, through the wiring's synapses,
    and its own state. The last layer is the output.

    Args:
        config: see WiredCfCConfig. key: random key of the initial weights.

    Parameters: cells as Heads, whose masks multiply the weights at every use; out_proj as Dense. State: h (B, units), layer after layer.

    Source: Hasani et al. 2022, Closed-form Continuous-time Neural Networks; Lechner et al. 2020 for the wiring.
    """

    Config = WiredCfCConfig
    memory = None

    def __init__(self, config: WiredCfCConfig, key: EmberTensor | None = None):
        self.config = c = config
        wiring = c.wiring.build(c.d_input)
        keys = random.split(key if key is not None else random.next_key(), len(wiring.layers) + 1)
        self.units, self.widths, self.cells = wiring.units, [len(layer) for layer in wiring.layers], []
        between = wiring.sensory
        for i, layer in enumerate(wiring.layers):
            self.cells.append(Heads(len(between) + len(layer), len(layer), c.mode, keys[i], between[:, list(layer)], c.wired_gate))
            between = wiring.synapses[list(layer)]
        self.out_proj = Dense(DenseConfig(self.widths[-1], c.d_output), key=keys[-1]) if c.d_output else None

    def run(self, x, h, elapsed, memory):
        after = []
        for cell, own in zip(self.cells, split(h, self.widths, axis=-1)):     # no layer feeds one before it
            x, last = cell.run([], x, own, elapsed, None)
            after.append(last)
        return x if self.out_proj is None else self.out_proj(x), concat(after, axis=-1)
