"""Model: an embedding, a list of blocks, a norm and a head."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ember_ml import weights
from ember_ml.backend import get as engine
from ember_ml.backend import using
from ember_ml.errors import ConfigError, RegistryError, ShapeError, WeightsError
from ember_ml.nn import losses, scope
from ember_ml.nn.blocks.base import Block, BlockConfig, beside, part
from ember_ml.nn.layers.channel_mixing.dense import Dense, DenseConfig
from ember_ml.nn.layers.dropout import dropout
from ember_ml.nn.layers.embedding import Embedding, EmbeddingConfig
from ember_ml.nn.layers.pool import Pool, PoolConfig
from ember_ml.nn.models.config import ModelConfig
from ember_ml.nn.models.generation import generate
from ember_ml.nn.models.summary import Summary, summarize
from ember_ml.nn.module import Module
from ember_ml.nn.packing import packed
from ember_ml.nn.recompute import recomputed
from ember_ml.ops import random, tanh
from ember_ml.registry import from_dict, models, read_table, to_dict, without_defaults, write_table
from ember_ml.tensor import EmberTensor


#: logits beyond which a language model's loss does not hold them all at once, 64 MiB in float32
MANY_LOGITS = 1 << 24

#: heads that give one output a sequence, after pooling
POOLED = ("classifier", "regressor", "features")


@models.register("model")
class Model(Module):
    """y = head(norm(blocks(embedding(tokens)))).

    Args:
        config: see ModelConfig. key: random key of the initial weights.

    forward and step return (y, states): one state per block, and with a pooled head the pool's.
    """

    Config = ModelConfig

    def __init__(self, config: ModelConfig, key: EmberTensor | None = None):
        _check(config)
        self.config = c = config
        keys = random.split(key if key is not None else random.next_key(), len(c.blocks) + 2)
        width, last = c.blocks[0].d_input, c.blocks[-1].d_input
        rows = -(-(c.vocab_size or 0) // c.vocab_multiple) * c.vocab_multiple
        self.embedding = None
        if c.vocab_size:
            self.embedding = Embedding(EmbeddingConfig(rows, width), key=keys[-1])
        elif c.inputs:
            self.embedding = Dense(DenseConfig(c.inputs, width), key=keys[-1])
        self.blocks = [_block(i, b, k) for i, (b, k) in enumerate(zip(c.blocks, keys))]
        self.norm = part("norm", c.norm, c.norm_config, last)
        self.pool = Pool(PoolConfig(last, c.pool)) if c.head in POOLED else None
        self.head = None
        if c.head in ("dense", "classifier", "regressor"):
            out = DenseConfig(last, rows, c.head_bias) if c.head == "dense" else DenseConfig(last, c.outputs)
            self.head = Dense(out, key=keys[-2])

    def forward(self, x: EmberTensor, state: list | None = None, segments: EmberTensor | None = None) -> tuple[EmberTensor, list]:
        """Tokens (B, L), or channels (B, L, inputs or d_input), to logits (B, L, vocab), to hidden states (B, L, d_input), or with a
        pooled head to (B, outputs) or (B, d_input).

        Args:
            segments: int (B, L), the documents 1, 2, ... packed in each row, 0 for padding: see `ember_ml.nn.packing`. With a pooled head
                one document a row, 1, and then its padding, 0, which is left out.

        Raises UnsupportedOp for segments if a layer cannot keep documents apart, ShapeError if they do not fit, or beside a state.
        """
        with self._packed(x, state, segments):
            return self._run(x, state, "forward", 2)

    def step(self, x: EmberTensor, state: list) -> tuple[EmberTensor, list]:
        """One position: tokens (B,) or channels (B, d_input). A pooled head tells of the positions so far."""
        return self._run(x, state, "step", 1)

    def initial_state(self, batch: int, dtype="float32") -> list:
        """The states of all blocks before the first position."""
        with beside(self):
            states = [block.initial_state(batch, dtype) for block in self.blocks]
            return states if self.pool is None else [*states, self.pool.initial_state(batch, dtype)]

    def hidden(self, x: EmberTensor, state: list | None = None, segments: EmberTensor | None = None) -> tuple[EmberTensor, list]:
        """Like forward, without pool and head: (B, L, d_input) after the norm, and one state per block."""
        with self._packed(x, state, segments):
            return self._body(x, state, "forward", 2)

    def loss(self, x: EmberTensor, targets: EmberTensor, segments: EmberTensor | None = None, ignore: int | None = None) -> EmberTensor:
        """What the head is trained with, a scalar: cross-entropy of tokens or classes, mean squared error of numbers.

        Logits of more than `MANY_LOGITS` numbers are made and reduced a chunk of positions at a time.

        Args:
            ignore: a label that stands where no token or class is asked for.
        """
        c = self.config
        if c.head in ("tied", "dense") and x.size * self.embedding.weight.shape[0] > MANY_LOGITS and type(self.head) in (Dense, type(None)):
            h, _ = self.hidden(x, segments=segments)
            weight, bias = (self.embedding.weight, None) if self.head is None else (self.head.weight, self.head.bias)
            if c.logit_scale == 1.0 or bias is None:
                return losses.linear_cross_entropy(h if c.logit_scale == 1.0 else h * c.logit_scale, weight, targets, bias, ignore, c.logit_cap)
        y, _ = self.forward(x, segments=segments)
        return losses.cross_entropy(y, targets, ignore) if c.head in ("tied", "dense", "classifier") else losses.mse(y, targets)

    def generate(self, prompt: EmberTensor, length: int, key: EmberTensor | None = None, **fields) -> Iterator[EmberTensor]:
        """Yields tokens after the prompt (B, P), each int32 (B,): see `ember_ml.nn.models.generation.generate`."""
        return generate(self, prompt, length, key, **fields)

    def summary(self, length: int | None = None) -> Summary:
        """Parameters, FLOPs a token and bytes of state, a row a block; print it for a table. length: of the sequence, None for 256, or
        the longest that its layers take.
        """
        return summarize(self, length)

    def _packed(self, x, state, segments):
        if segments is None:
            return nullcontext()
        if state is not None or segments.shape != x.shape[:2]:
            raise ShapeError(f"model: expected segments of shape (batch, length) = {x.shape[:2]}, and no state; got {segments.shape}"
                             + ("" if state is None else " and a state: packed rows begin anew at each document"))
        return packed(segments, self, pooled=self.pool is not None)

    def _run(self, x, state, form: str, axes: int):
        x, after = self._body(x, state, form, axes)
        c = self.config
        if self.pool is not None:
            x, pooled = getattr(self.pool, form)(x, None if state is None else state[-1])
            after = [*after, pooled]
        if c.head == "tied":
            x = self.embedding.as_head(x)
        elif self.head is not None:
            x = self.head(x)
        if c.logit_scale != 1.0:
            x = x * c.logit_scale
        return (x if c.logit_cap is None else tanh(x / c.logit_cap) * c.logit_cap), after

    def _body(self, x, state, form: str, axes: int):
        _check_input(x, axes, self.config)
        if state is not None and (not isinstance(state, (list, tuple)) or len(state) - len(self.blocks) not in (0, int(self.pool is not None))):
            raise TypeError(f"model: expected a state as initial_state(batch) or an earlier call gives it, a list of {len(self.blocks)}, one a block"
                            f"{', and that of the pool' if self.pool is not None else ''}; "
                            f"received {f'{len(state)} in a {type(state).__name__}' if hasattr(state, '__len__') else type(state).__name__}")
        if self.embedding is not None:
            x = self.embedding(x)
            x = dropout(x if self.config.embedding_scale == 1.0 else x * self.config.embedding_scale, self.config.dropout)
        after = []
        saves = form == "forward" and state is None and scope.recomputes()
        for i, block in enumerate(self.blocks):
            x, s = (recomputed(block)(x), None) if saves else getattr(block, form)(x, None if state is None else state[i])
            after.append(s)
        return (self.norm(x) if self.norm else x), after

    @staticmethod
    def from_config(values: dict[str, Any] | ModelConfig | str | Path, key: EmberTensor | None = None) -> Model:
        """The model of a config, of its plain dict, or of a .toml or .json file.

        `family` in the dict names a registered model ("transformer", "hyena_dna", ...) whose fields the others are; without
        it they are ModelConfig's. Raises ConfigError, RegistryError for an unknown family.
        """
        if isinstance(values, (str, Path)):
            try:
                return Model.from_config(read_table(values), key)
            except ConfigError as e:
                raise e if str(e).startswith(str(values)) else ConfigError(f"{values}: {e}") from None
        if isinstance(values, ModelConfig):
            return Model(values, key=key)
        family = values.get("family", "model") if isinstance(values, dict) else "model"
        component = models.get(family)
        fields = {k: v for k, v in values.items() if k != "family"} if isinstance(values, dict) else values
        return component(from_dict(component.Config, fields), key=key)

    def write_config(self, path: str | Path):
        """Writes the config as .toml or .json, one block a line, fields with their default left out; `from_config` reads it."""
        write_table(path, without_defaults(self.config))

    def save(self, path, metadata: dict[str, str] | None = None):
        """Writes weights and config into one safetensors file, atomically. Raises WeightsError for a model with adapters."""
        adapted = [name for name, m in self.modules().items() if getattr(m, "adapter", None) is not None]
        if adapted:
            raise WeightsError(f"save: {adapted[0]} has an adapter, which the config does not describe; nn.adapters.fuse(model, inputs) first, "
                               "or keep it by itself with nn.adapters.save_peft(model, folder)")
        weights.save(path, self.tensors(), config=to_dict(self.config), metadata=metadata)

    @staticmethod
    def load(path, device: str | None = None) -> Model:
        """The model of a file that `save` wrote, on the current engine or `device`, with the file's floating-point dtypes.

        The config is a stranger's: the model is built in outline, compared with the tensors, and then given them, so
        that a small file cannot ask for a large model.

        Raises WeightsError for a damaged file or one whose tensors do not fit its config, ConfigError for the config.
        """
        tensors, config, _ = weights.load(path, device=device)
        size = sum(t.size for t in tensors.values())
        try:
            with using(engine("numpy").outline(limit=size + _SLACK, budget=4 * size + _SLACK)):
                model = Model.from_config(config)
        except ShapeError as e:
            raise WeightsError(f"{path}: its config does not describe a model of the {size:,} numbers that it holds: {e}") from None
        found = {name: (t.shape, t.dtype) for name, t in tensors.items()}
        expected = {name: (t.shape, as_found(t.dtype, found.get(name))) for name, t in model.tensors().items()}
        weights.check(expected, found, path)
        model.install(tensors)
        return model


#: elements beyond those of its tensors that building a model takes: keys, ranges
_SLACK = 1 << 20


def as_found(dtype, found):
    """The dtype that a tensor of a file should have: any real floating-point one where the config's is one."""
    return found[1] if found is not None and dtype.kind == found[1].kind == "float" else dtype


def _check_input(x: EmberTensor, axes: int, c: ModelConfig):
    if not isinstance(x, EmberTensor):
        raise TypeError(f"model: expected an EmberTensor of {'tokens' if c.vocab_size else 'channels'}, got {type(x).__name__}; make one with em.tensor(...)")
    places = "(batch, length" if axes == 2 else "(batch"
    if c.vocab_size and x.ndim != axes:
        raise ShapeError(f"model: expected tokens of shape {places}), got {x.shape}")
    width = c.inputs or c.blocks[0].d_input
    if not c.vocab_size and (x.ndim != axes + 1 or x.shape[-1] != width):
        raise ShapeError(f"model: expected inputs of shape {places}, {width}), got {x.shape}")


def _block(i: int, c: BlockConfig, key: EmberTensor) -> Block:
    try:
        return Block(c, key=key)
    except (ConfigError, RegistryError) as e:
        raise type(e)(f"blocks.{i}: {e}") from None


def _check(c: ModelConfig):
    if not c.blocks:
        raise ConfigError("model: expected at least one block, received none")
    if c.inputs is not None and c.vocab_size is not None:
        raise ConfigError(f"model: inputs are channels where there are no tokens; received inputs={c.inputs}, vocab_size={c.vocab_size}")
    if c.head in ("tied", "dense") and c.vocab_size is None:
        raise ConfigError(f"model: head={c.head!r} needs vocab_size")
    if (c.head in ("classifier", "regressor")) != (c.outputs is not None):
        raise ConfigError(f"model: outputs belongs to head='classifier' and head='regressor', which need it; received "
                          f"head={c.head!r}, outputs={c.outputs!r}")
    if c.head == "tied" and c.blocks[0].d_input != c.blocks[-1].d_input:
        raise ConfigError(f"model: head='tied' needs the last block's channels, {c.blocks[-1].d_input}, to be the first's, "
                          f"{c.blocks[0].d_input}")
    for i, (a, b) in enumerate(zip(c.blocks, c.blocks[1:])):
        if a.d_input != b.d_input and a.residual != "feedforward_residual":
            raise ConfigError(f"model: expected d_input of blocks.{i + 1} to be the {a.d_input} channels that blocks.{i} gives, received {b.d_input}; "
                              f"only a block with residual='feedforward_residual' may give others than it takes")
