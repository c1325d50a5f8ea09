"""Wirings: which neuron of a liquid network feeds which, and with what sign, as plain matrices.

A wiring is drawn once, from a seed, when a layer is built; the draws are those of the original library, so that a seed means
the same network here and there.

Source: Lechner et al. 2020, Neural Circuit Policies Enabling Auditable Autonomy, methods.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import pydantic

from ember_ml.backend import current
from ember_ml.errors import ConfigError
from ember_ml.registry import Size, config

Seed = Annotated[int, pydantic.Field(ge=0, lt=1 << 32)]  # as NumPy's older generator takes them
Share = Annotated[float, pydantic.Field(ge=0.0, lt=1.0)]


@dataclass(frozen=True)
class Wiring:
    """Synapses of N neurons and J inputs.

    Args:
        synapses: (N, N), from the first to the second axis: -1 inhibits, 1 excites, 0 is no synapse.
        sensory: (J, N), the same from the inputs.
        layers: the neurons in the order in which a signal passes them; the last ones are the outputs, 0 ... outputs - 1.
        outputs: neurons that are read.
    """

    synapses: np.ndarray
    sensory: np.ndarray
    layers: tuple[tuple[int, ...], ...]
    outputs: int

    @property
    def units(self) -> int:
        """Number of neurons."""
        return self.synapses.shape[0]


@config
class FullyConnected:
    """Every neuron feeds every neuron. units: neurons. d_output: neurons that are read, None for all.

    self_connections: a neuron feeds itself. seed: of the signs, two of three positive.
    """

    units: Size
    d_output: Size | None = None
    self_connections: bool = True
    seed: Seed = 1111
    kind: Literal["fully_connected"] = "fully_connected"

    def build(self, d_input: int) -> Wiring:
        """The wiring of `d_input` inputs. Raises ConfigError if more neurons are read than there are."""
        rng, (synapses, sensory) = np.random.default_rng(self.seed), _none(self.units, d_input)
        for source in range(self.units):
            for target in range(self.units):
                if source != target or self.self_connections:
                    synapses[source, target] = rng.choice([-1, 1, 1])
        for source in range(d_input):
            for target in range(self.units):
                sensory[source, target] = rng.choice([-1, 1, 1])
        return _one_layer(synapses, sensory, self.d_output)


@config
class RandomWiring:
    """Synapses anywhere. units, d_output, seed: as FullyConnected. sparsity: share of the synapses that is missing."""

    units: Size
    d_output: Size | None = None
    sparsity: Share = 0.0
    seed: Seed = 1111
    kind: Literal["random"] = "random"

    def build(self, d_input: int) -> Wiring:
        """The wiring of `d_input` inputs. Raises ConfigError if more neurons are read than there are."""
        rng, (synapses, sensory) = np.random.default_rng(self.seed), _none(self.units, d_input)
        for matrix, draws in ((synapses, 1), (sensory, 2)):    # the original draws the sign of a sensory synapse twice
            places = [(source, target) for source in range(len(matrix)) for target in range(self.units)]
            kept = int(np.round(len(places) * (1 - self.sparsity)))
            for source, target in rng.choice(places, size=kept, replace=False):
                for _ in range(draws):
                    matrix[source, target] = rng.choice([-1, 1, 1])
        return _one_layer(synapses, sensory, self.d_output)


@config
class NCP:
    """Neural circuit policy: inputs feed inter neurons, these command neurons, these each other and the motor neurons.

    inter, command, motor: neurons of each kind; the motor neurons are read. sensory_fanout, inter_fanout: synapses out of each input
    and inter neuron. recurrent_command: synapses drawn among the command neurons. motor_fanin: synapses into each motor neuron.
    """

    inter: Size
    command: Size
    motor: Size
    sensory_fanout: Size
    inter_fanout: Size
    recurrent_command: Annotated[int, pydantic.Field(ge=0)]
    motor_fanin: Size
    seed: Seed = 22222
    kind: Literal["ncp"] = "ncp"

    def build(self, d_input: int) -> Wiring:
        """The wiring of `d_input` inputs. Raises ConfigError for a fan that is larger than the layer it reaches."""
        for fan, layer in (("motor_fanin", "command"), ("sensory_fanout", "inter"), ("inter_fanout", "command")):
            if getattr(self, fan) > getattr(self, layer):
                raise ConfigError(f"ncp: expected {fan} of at most the {getattr(self, layer)} {layer} neurons, received "
                                  f"{getattr(self, fan)}")
        rng = np.random.RandomState(self.seed)
        units = self.motor + self.command + self.inter
        synapses, sensory = _none(units, d_input)
        motor, command = list(range(self.motor)), list(range(self.motor, self.motor + self.command))
        inter, inputs = list(range(self.motor + self.command, units)), list(range(d_input))
        _fan_out(rng, sensory, inputs, inter, self.sensory_fanout)
        _fan_out(rng, synapses, inter, command, self.inter_fanout)
        for _ in range(self.recurrent_command):
            source, target = rng.choice(command), rng.choice(command)
            synapses[source, target] = rng.choice([-1, 1])
        _fan_out(rng, synapses.T, motor, command, self.motor_fanin)      # a fan into the motor neurons: the same, backwards
        return Wiring(synapses, sensory, (tuple(inter), tuple(command), tuple(motor)), self.motor)


@config
class AutoNCP:
    """An NCP by three numbers: three fifths of what is not motor are inter neurons, and fans are a share of what they reach.

    units: neurons. d_output: motor neurons, fewer than units - 2. sparsity: share of the synapses that is missing, at least 0.1.
    """

    units: Size
    d_output: Size
    sparsity: Annotated[float, pydantic.Field(ge=0.1, lt=1.0)] = 0.5
    seed: Seed = 22222
    kind: Literal["auto_ncp"] = "auto_ncp"

    def build(self, d_input: int) -> Wiring:
        """The wiring of `d_input` inputs. Raises ConfigError if there are too few neurons."""
        if self.d_output >= self.units - 2:
            raise ConfigError(f"auto_ncp: expected d_output below units - 2 = {self.units - 2}, received {self.d_output}")
        density = 1.0 - self.sparsity
        command = max(int(0.4 * (self.units - self.d_output)), 1)
        inter = self.units - self.d_output - command
        fan, recurrent = max(int(command * density), 1), max(int(command * density * 2), 1)
        return NCP(inter, command, self.d_output, max(int(inter * density), 1), fan, recurrent, fan, self.seed).build(d_input)


#: what a layer's config takes as its wiring; a plain dict names its kind
WiringConfig = Annotated[FullyConnected | RandomWiring | NCP | AutoNCP, pydantic.Field(discriminator="kind")]


def _none(units: int, d_input: int):
    if units * (units + d_input) >= 1 << 31:
        raise ConfigError(f"wiring: expected fewer than 2^31 synapses, as the matrices of {units:,} neurons and {d_input:,} inputs have places for")
    current()[0].reserve(units * (units + d_input))         # an engine in outline has limits, before the matrices are made
    return np.zeros((units, units), np.int32), np.zeros((d_input, units), np.int32)


def _one_layer(synapses, sensory, d_output):
    units = len(synapses)
    if (d_output or units) > units:
        raise ConfigError(f"wiring: expected d_output of at most units = {units}, received {d_output}")
    return Wiring(synapses, sensory, (tuple(range(units)),), d_output or units)


def _fan_out(rng, matrix, sources, targets, fan):
    """Each source feeds `fan` targets; a target that none has chosen is fed by as many sources as the others on average."""
    left = list(targets)
    for source in sources:
        for target in rng.choice(targets, size=fan, replace=False):
            if target in left:
                left.remove(target)
            matrix[source, target] = rng.choice([-1, 1])
    mean = int(np.clip(int(len(sources) * fan / len(targets)), 1, len(sources)))
    for target in left:
        for source in rng.choice(sources, size=mean, replace=False):
            matrix[source, target] = rng.choice([-1, 1])
