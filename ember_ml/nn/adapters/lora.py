"""LoRA: a linear map keeps its weights and learns a product of two narrow matrices beside them."""

from __future__ import annotations

import dataclasses
import math

from ember_ml.errors import ConfigError
from ember_ml.nn import initializers
from ember_ml.nn.layers.channel_mixing.dense import Dense
from ember_ml.nn.layers.dropout import dropout
from ember_ml.nn.module import Module, matching, near
from ember_ml.ops import concat, linear, matmul, random, split, swap_axes, zeros
from ember_ml.registry import Rate, Size, config
from ember_ml.tensor import EmberTensor


@config
class LoRAConfig:
    """What is learned beside the frozen weights, in the terms of the `peft` package.

    Args:
        rank: width between the two matrices. alpha: their product counts alpha / rank, or alpha / sqrt(rank) with `rank_stabilized`.
        dropout: on their input, in training.
        targets: globs of the linear maps that get a pair; of a map that is several in one, such as an attention's in_proj, the
            parts have names of their own ("*.in_proj.q_proj"). By default every one in the blocks.
    """

    rank: Size = 8
    alpha: float = 16.0
    dropout: Rate = 0.0
    targets: list[str] = dataclasses.field(default_factory=lambda: ["blocks"])
    rank_stabilized: bool = False

    def scale(self, rank: int | None = None) -> float:
        """The factor of the product."""
        rank = rank or self.rank
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


class Pair(Module):
    """The two matrices of one map. Parameters: A (rank, d_input), uniform in +-1/sqrt(d_input), and B (rank, d_output), zero at first.

    B lies the other way round than peft's: all three products with it, of the forward pass and of the gradient, then run along its rows.

    Args:
        d_input, d_output: of the map. rank: between them. key: of A.
    """

    def __init__(self, d_input: int, d_output: int, rank: int, key: EmberTensor):
        self.A = initializers.fan_in_uniform(key, (rank, d_input), d_input)
        self.B = zeros((rank, d_output), like=self.A)


class LoRA(Module):
    """What is added to a Dense's output: scale dropout(x) A^T B, for each of its parts that has a pair; zero for the others.

    Args:
        dense: the layer. pairs: by the name of the part, "all" for a layer of one part. config: see LoRAConfig.

    Source: Hu et al. 2021, LoRA, section 4.1; Kalajdzievski 2023, rsLoRA, for the scale with the root.
    """

    def __init__(self, dense: Dense, pairs: dict[str, Pair], config: LoRAConfig):
        self.config, self._rows, self.pairs = config, parts_of(dense), pairs

    def forward(self, x: EmberTensor) -> EmberTensor:
        """(..., d_input) to (..., d_output)."""
        pairs, dtype = list(self.pairs.values()), x.dtype
        x = dropout(x.astype(pairs[0].A.dtype), self.config.dropout)
        narrow = linear(x, pairs[0].A if len(pairs) == 1 else concat([p.A for p in pairs], axis=0))
        narrow = dict(zip(self.pairs, split(narrow, [p.A.shape[0] for p in pairs], axis=-1)))
        added = [matmul(narrow[name] * self.scale(name), self.pairs[name].B) if name in self.pairs
                 else zeros((*x.shape[:-1], rows), x.dtype, like=x) for name, rows in self._rows.items()]
        return (added[0] if len(added) == 1 else concat(added, axis=-1)).astype(dtype)

    def scale(self, name: str) -> float:
        """The factor of one part's product."""
        return self.config.scale(self.pairs[name].A.shape[0])

    def matrix(self) -> EmberTensor:
        """All of it as one matrix (d_output, d_input), as it is added to the weight."""
        like = next(iter(self.pairs.values())).A
        return concat([matmul(swap_axes(self.pairs[name].B), self.pairs[name].A) * self.scale(name) if name in self.pairs
                       else zeros((rows, like.shape[1]), like.dtype, like=like) for name, rows in self._rows.items()], axis=0)


def parts_of(dense: Dense) -> dict[str, int]:
    """Rows of each part of a linear map, {"all": rows} for a map of one part."""
    return dense.parts or {"all": dense.weight.shape[0]}


def maps(model: Module) -> dict[str, tuple[Dense, str]]:
    """Every linear map that can be adapted, by dotted name: (its layer, the name of its part)."""
    found = {}
    for name, dense in model.modules().items():
        if isinstance(dense, Dense) and dense.called:
            for part in parts_of(dense):
                found[name if part == "all" else f"{name}.{part}"] = (dense, part)
    return found


def adapters(model: Module) -> dict[str, LoRA]:
    """The LoRAs of a model, by the names of their layers."""
    return {name: m.adapter for name, m in model.modules().items() if isinstance(m, Dense) and isinstance(m.adapter, LoRA)}


def add_lora(model: Module, config: LoRAConfig, key: EmberTensor | None = None) -> list[str]:
    """Freezes the model and gives the linear maps that a config names their pairs, which alone are trained.

    Args:
        model: it computes what it did, since B is zero. key: random key of the matrices A.

    Returns: the names of the maps. Raises ConfigError, naming what is near, for a glob that fits no map, and for a model that has
    LoRA already; then nothing is changed.
    """
    every = maps(model)
    for pattern in config.targets:
        if not matching(every, pattern):
            raise ConfigError(f"lora: no linear map matches {pattern!r}; {near(pattern, every)}")
    names = [name for name in every if any(name in matching([name], pattern) for pattern in config.targets)]
    attach(model, {name: config.rank for name in names}, config, key)
    return names


def attach(model: Module, ranks: dict[str, int], config: LoRAConfig, key: EmberTensor | None = None):
    """Freezes the model and gives the maps of `ranks` (name -> rank) their pairs."""
    if not ranks:
        raise ConfigError("lora: expected at least one target, received none")
    if adapters(model):
        raise ConfigError(f"lora: the model has it already, at {next(iter(adapters(model)))}; fuse it first, or load the model again")
    every, layers = maps(model), {}
    keys = random.split(key if key is not None else random.next_key(), max(2, len(ranks)))
    model.freeze()
    for (name, rank), k in zip(ranks.items(), keys):
        dense, part = every[name]
        rows, pair_key = parts_of(dense)[part], k.to(dense.weight.device)
        pair = Pair(dense.weight.shape[1], rows, rank, pair_key)
        layers.setdefault(id(dense), (dense, {}))[1][part] = pair
    for dense, pairs in layers.values():
        dense.adapter = LoRA(dense, pairs, config)
