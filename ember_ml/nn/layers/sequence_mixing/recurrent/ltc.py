"""The liquid time-constant layer."""

from __future__ import annotations

from ember_ml.nn.layers.sequence_mixing.recurrent.liquid import Liquid, MixedMemory
from ember_ml.nn.layers.sequence_mixing.recurrent.wirings import FullyConnected, WiringConfig
from ember_ml.nn.packing import resets
from ember_ml.ops import abs, ltc, ones, random, softplus, tensor, zeros
from ember_ml.ops.shape import cut
from ember_ml.registry import Size, config, layers
from ember_ml.tensor import EmberTensor


@config
class LTCConfig:
    """d_input: channels. wiring: the neurons and their synapses, None for d_input neurons that all feed each other.

    unfolds: Euler steps a position. mixed_memory: an LSTM beside the neurons. softplus: w, c and gleak are softplus of their
    parameters; without it they are the parameters, which training must keep positive. eps: added to the divisor.
    """

    d_input: Size
    wiring: WiringConfig | None = None
    unfolds: Size = 6
    mixed_memory: bool = False
    softplus: bool = True
    eps: float = 1e-8


@layers.register("ltc")
class LTC(Liquid):
    """Neurons with leak and conductance synapses, c dv/dt = gleak (vleak - v) + sum_j w_j sigmoid(sigma_j (v_j - mu_j)) (erev_j - v),

    by `unfolds` implicit steps over the time between positions; inputs are input_w x + input_b, outputs output_w v + output_b of the
    first neurons.

    Args:
        config: see LTCConfig. key: random key of the initial weights.

    Parameters: sigma, mu, w, erev (units, units), from the first to the second axis, and sensory_... (d_input, units); c, gleak, vleak
    (units,); input_w, input_b (d_input,); output_w, output_b (outputs,); memory as MixedMemory. Buffers: mask, sensory_mask, 1 where
    the wiring has a synapse; they multiply w at every use, so that no training step makes one. State: h (B, units), the potentials.

    Source: Hasani et al. 2021, Liquid Time-constant Networks; Lechner et al. 2020, Neural Circuit Policies.
    """

    Config = LTCConfig

    def __init__(self, config: LTCConfig, key: EmberTensor | None = None):
        self.config = c = config
        wiring = (c.wiring or FullyConnected(c.d_input)).build(c.d_input)
        self.units = n = wiring.units
        self.outputs = wiring.outputs
        keys = iter(random.split(key if key is not None else random.next_key(), 10))

        def spread(shape, low, high):
            return random.uniform(next(keys), shape, low, high)

        self.gleak, self.vleak, self.c = spread((n,), 0.001, 1.0), spread((n,), -0.2, 0.2), spread((n,), 0.4, 0.6)
        for prefix, signs in (("", wiring.synapses), ("sensory_", wiring.sensory)):
            setattr(self, prefix + "sigma", spread(signs.shape, 3.0, 8.0))
            setattr(self, prefix + "mu", spread(signs.shape, 0.3, 0.8))
            setattr(self, prefix + "w", spread(signs.shape, 0.001, 1.0))
            erev = tensor(signs, dtype="float32", like=self.c)
            setattr(self, prefix + "erev", erev)
            self.buffer(prefix + "mask", abs(erev))
        self.input_w, self.input_b = ones((c.d_input,), like=self.c), zeros((c.d_input,), like=self.c)
        self.output_w, self.output_b = ones((self.outputs,), like=self.c), zeros((self.outputs,), like=self.c)
        self.memory = MixedMemory(c.d_input, n, next(keys)) if c.mixed_memory else None

    def _positive(self, x: EmberTensor) -> EmberTensor:
        return softplus(x) if self.config.softplus else x

    def run(self, x, h, elapsed, memory):
        sensory = (self.sensory_sigma, self.sensory_mu, self._positive(self.sensory_w) * self.sensory_mask, self.sensory_erev)
        synapses = (self.sigma, self.mu, self._positive(self.w) * self.mask, self.erev)
        v, *after = ltc(x * self.input_w + self.input_b, sensory, synapses, self._positive(self.c), self._positive(self.gleak),
                        self.vleak, h, elapsed, memory=memory, unfolds=self.config.unfolds, eps=self.config.eps,
                        reset=resets())
        return cut(v, 0, self.outputs, axis=-1) * self.output_w + self.output_b, *after
