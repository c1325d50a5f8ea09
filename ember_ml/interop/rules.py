"""From a project's tensor names and layouts to Ember's, by tables: one machinery for all families.

A table maps the end of an Ember name to a source: the end of an original name, or a function that makes the tensor of
originals. A part says where a table applies: below which prefix of Ember's names, and below which of the original ones.
Sources only rename, join, reshape and scale, by ops, so that gradients pass through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ember_ml import ops
from ember_ml.errors import WeightsError
from ember_ml.interop.asked import Asked
from ember_ml.nn.models import ModelConfig
from ember_ml.nn.module import Module
from ember_ml.tensor import EmberTensor


class Below:
    """The tensors of a checkpoint below a prefix, by the rest of their names."""

    def __init__(self, state: Asked, prefix: str):
        self.state, self.prefix = state, prefix

    def __getitem__(self, name: str) -> EmberTensor:
        return self.state[self.prefix + name]

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.state

    def below(self, prefix: str) -> Below:
        """The tensors below a further prefix."""
        return Below(self.state, self.prefix + prefix)


Source = str | Callable[[Below], EmberTensor]
Table = dict[str, Source]


class Part(NamedTuple):
    """A table, and the prefixes of Ember's names and of the original names that it is meant below."""

    ember: str
    original: str
    table: Table


class Layout(NamedTuple):
    """What a family's reader makes of an original configuration.

    config: of the Ember model. parts: where its tensors come from. ignored: globs of original names that hold nothing that
    the model needs, such as a second name of a tied tensor.
    """

    config: ModelConfig
    parts: list[Part]
    ignored: tuple[str, ...] = ()


WEIGHT: Table = {"weight": "weight"}
AFFINE: Table = {"weight": "weight", "bias": "bias"}


class Joined:
    """A source: rows of several originals, one after the other."""

    def __init__(self, names: tuple[str, ...]):
        self.names = names

    def __call__(self, p: Below) -> EmberTensor:
        return ops.concat([p[name] for name in self.names], axis=0)


def joined(*names: str) -> Source:
    """Rows of several originals, one after the other."""
    return Joined(names)


def squeezed(name: str) -> Source:
    """A depthwise convolution's weight (channels, 1, taps) as (channels, taps)."""
    return lambda p: ops.squeeze(p[name], 1)


def flat(name: str) -> Source:
    """An original of any shape as one axis."""
    return lambda p: ops.reshape(p[name], (-1,))


def scaled(source: Source, factor: float | Callable[[EmberTensor], EmberTensor]) -> Source:
    """A source times a number, or changed by a function."""
    def read(p: Below) -> EmberTensor:
        x = p[source] if isinstance(source, str) else source(p)
        return factor(x) if callable(factor) else x if factor == 1.0 else x * factor
    return read


def first_of(*sources: tuple[str, Source]) -> Source:
    """Of pairs (name, source) the first whose name the checkpoint has, for names that changed over the years."""
    def read(p: Below) -> EmberTensor:
        for name, source in sources:
            if name in p:
                return p[source] if isinstance(source, str) else source(p)
        return p[sources[0][0]]                              # says what is missing
    return read


def stacked(template: str, count: int, *names: str) -> Source:
    """(count, rows, ...): of each of `count` experts the rows of its originals; `template` has the places {e} and {name}."""
    return lambda p: ops.stack([ops.concat([p[template.format(e=e, name=name)] for name in names], axis=0) for e in range(count)])


def empty(shape: tuple[int, ...]) -> Source:
    """Zeros, for a buffer that the original does not have."""
    return lambda p: ops.zeros(shape, like=next(iter(p.state.values())))


def named(module: Module, layout: Layout, state: Asked) -> dict[str, EmberTensor]:
    """The module's tensors, by Ember's names, of the originals in `state`.

    Raises WeightsError for an original that is missing, and for those that have no place in the module.
    """
    sources = {part.ember + end: (part.original, source) for part in layout.parts for end, source in part.table.items()}
    found = {}
    for name in module.tensors():
        if name not in sources:
            raise WeightsError(f"{state.project}: no rule says where {name} comes from; a layer of this config is not covered")
        prefix, source = sources[name]
        found[name] = state[prefix + source] if isinstance(source, str) else source(Below(state, prefix))
    state.all_read("a model of its configuration", layout.ignored)
    return found
