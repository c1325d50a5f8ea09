"""The configuration of a model: its blocks, one a line, and what stands before and after them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import ArgsKwargs

from ember_ml.errors import ConfigError, RegistryError, show
from ember_ml.nn.blocks.base import BlockConfig
from ember_ml.registry import Rate, Size, blocks, config, layers

#: far beyond any model, near enough that a file of a few bytes cannot fill the memory with configs
MAX_BLOCKS = 10_000

Head = Literal["tied", "dense", "classifier", "regressor", "features"]


@config
class ModelConfig:
    """A model as a list of blocks.

    Args:
        blocks: in order. Each is a BlockConfig, or a table of its fields, or the name of a layer (`"mlp"`) or of a
            registered block, where no layer has it (`"fftconv"`); a table `{block = "transformer", heads = 4}` gives a registered block its
            options, and `repeat = 6` stands for as many equal ones. All of it is written out here: the config that a
            model keeps holds one BlockConfig a block.
        vocab_size: tokens; None for a model of real-valued channels, without embedding.
        inputs: real-valued channels of the input, which a dense map takes to those of the first block; None where they are those.
        norm: registered name of the norm after the last block, None for none. norm_config: its fields without d_input.
        head: what comes last. Language models: "tied" to the embedding, or "dense", a map of its own. For whole
            sequences, after `pool`: "classifier" and "regressor", `outputs` numbers, and "features", the pooled channels.
            None for the hidden states.
        vocab_multiple: the embedding has the next multiple of this many rows.
        dropout: on the embedding.
        outputs: classes of a classifier, numbers of a regressor. pool: kind of PoolConfig.
        embedding_scale: factor of the embedding. logit_scale: factor of the logits.
        logit_cap: logits become cap tanh(logits / cap), None for no cap. head_bias: of head "dense".
        defaults: fields that blocks have where they do not say otherwise, such as {d_input = 64, norm = "rms_norm"}.
    """

    blocks: list[BlockConfig]
    vocab_size: Size | None = None
    norm: str | None = None
    head: Head | None = None
    vocab_multiple: Size = 1
    dropout: Rate = 0.0
    norm_config: dict = dataclasses.field(default_factory=dict)
    outputs: Size | None = None
    pool: Literal["mean", "max", "last", "first"] = "mean"
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: Annotated[float, pydantic.Field(gt=0.0)] | None = None
    head_bias: bool = False
    defaults: dict = dataclasses.field(default_factory=dict)
    inputs: Size | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _write_out(cls, values):
        called = isinstance(values, ArgsKwargs)
        fields = dict((values.kwargs or {}) if called else values) if called or isinstance(values, dict) else {}
        entries = values.args[0] if called and values.args else fields.get("blocks")
        if not isinstance(entries, (list, tuple)):
            return values
        written = written_out(entries, fields.get("defaults", {}))
        fields["defaults"] = {}
        if called and values.args:
            return ArgsKwargs((written, *values.args[1:]), fields)
        fields["blocks"] = written
        return ArgsKwargs((), fields) if called else fields


def written_out(entries: list, defaults: dict[str, Any]) -> list:
    """Each entry of a list of blocks as BlockConfigs or tables of a BlockConfig's fields. Raises ConfigError."""
    known = {f.name for f in dataclasses.fields(BlockConfig)} - {"layer", "layer_config"}
    if not isinstance(defaults, dict) or not defaults.keys() <= known:
        raise ConfigError(f"model: expected defaults to be a table of {', '.join(sorted(known))}; received {show(defaults)}")
    written: list = []
    for entry in entries:
        try:
            written += _one(entry, defaults)
        except (ConfigError, RegistryError) as e:
            raise type(e)(f"blocks.{len(written)}: {e}") from None
        if len(written) > MAX_BLOCKS:
            raise ConfigError(f"model: expected at most {MAX_BLOCKS:,} blocks")
    return written


def _one(entry, defaults: dict[str, Any]) -> list:
    if isinstance(entry, str):
        entry = {"layer": entry} if entry in layers else {"block": entry}
    if not isinstance(entry, dict):
        return [entry]
    fields = {**defaults, **entry}
    times = fields.pop("repeat", 1)
    if type(times) is not int or not 1 <= times <= MAX_BLOCKS:
        raise ConfigError(f"model: expected repeat to be a number from 1 to {MAX_BLOCKS:,}; received {show(times)}")
    if "block" not in fields:
        return [fields] * times
    return blocks.get(fields.pop("block")).expand(**fields) * times
