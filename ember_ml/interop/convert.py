"""One command for every project's checkpoints: find the reader, build the model in outline, rename, check, save.

What lies beside the weights says whose they are: the project's own config.json. Two projects save none; write one: for MAD-Lab the
arguments of its LanguageModel (see `ember_ml.interop.mad`), for ncps {"project": "ncps", "layer": "cfc", "layer_config": {...}} with the
fields of Ember's layer, its wiring among them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ember_ml import weights
from ember_ml.backend import get as engine
from ember_ml.backend import using
from ember_ml.errors import ConfigError, EmberError, RegistryError, ShapeError, UnsupportedDtype, WeightsError, show
from ember_ml.interop import hyena_dna, mad, ncps, striped_hyena, xlstm
from ember_ml.interop.asked import Asked
from ember_ml.interop.checkpoint import Tensors, read_config, read_tensors
from ember_ml.interop.rules import Layout, named
from ember_ml.interop.transformers import FAMILIES, Fields
from ember_ml.nn.models import XLSTM, HyenaDNA, Model, StripedHyena, XLSTMLarge, XLSTMLargeConfig
from ember_ml.nn.models.base import as_found
from ember_ml.tensor.common import dtypes as dt


class Conversion(NamedTuple):
    """What a reader makes of a checkpoint's configuration.

    name: of the project or family. build: makes the Ember model, with whatever weights. rename: `rename(model, state)` gives its tensors,
    by Ember's names, of the original ones. ignored: globs of original names that the model does not need.
    """

    name: str
    build: Callable[[], Model]
    rename: Callable[[Model, Asked], Tensors]
    ignored: tuple[str, ...] = ()


def _transformers(c: dict) -> Conversion:
    family = c["model_type"]
    return _by_layout(family, FAMILIES[family](Fields(c, family)))


def _by_layout(name: str, layout: Layout) -> Conversion:
    return Conversion(name, lambda: Model(layout.config), lambda m, p: named(m, layout, p), layout.ignored)


def _hyena_dna(c: dict) -> Conversion:
    made, order_last = hyena_dna.model_config(c)
    return Conversion("hyena_dna", lambda: HyenaDNA(made), lambda m, p: hyena_dna.model_weights(m, p, order_last), hyena_dna.IGNORED)


def _striped_hyena(c: dict) -> Conversion:
    made = striped_hyena.model_config(c)
    tied = ("unembed.weight",) if made.head == "tied" else ()
    return Conversion("evo2" if striped_hyena.is_evo2(c) else "striped_hyena", lambda: StripedHyena(made),
                      lambda m, p: striped_hyena.model_weights(m, p, c), ("*rotary_emb.inv_freq", "*filter.t", *tied))


def _xlstm(c: dict) -> Conversion:
    made = xlstm.model_config(c)
    return Conversion("xlstm", lambda: (XLSTMLarge if isinstance(made, XLSTMLargeConfig) else XLSTM)(made),
                      lambda m, p: xlstm.model_weights(m, p, bool(c.get("bias", False))), ("lm_head.weight",) if c.get("tie_weights") else ())


def _mad(c: dict) -> Conversion:
    return _by_layout("mad", mad.layout(c))


def _ncps(c: dict) -> Conversion:
    """A layer alone: a model of one block without embedding, norm, residual or head."""
    if c.get("layer") not in ("ltc", "cfc", "wired_cfc") or not isinstance(c.get("layer_config"), dict):
        raise ConfigError(f"ncps: expected layer 'ltc', 'cfc' or 'wired_cfc' and its layer_config; received {show(c.get('layer'))}, "
                          f"{show(c.get('layer_config'))}")
    own = dict(c["layer_config"])
    block = {"layer": c["layer"], "d_input": own.pop("d_input", None), "layer_config": own, "residual": "feedforward_residual"}
    return Conversion("ncps", lambda: Model.from_config({"blocks": [block]}),
                      lambda m, p: {f"blocks.0.layer.{name}": w for name, w in ncps.weights(m.blocks[0].layer, p).items()})


#: (keys that only this project's configuration has, its reader), in the order in which they are asked
READERS: list[tuple[Callable[[dict], bool], Callable[[dict], Conversion]]] = [
    (lambda c: isinstance(c.get("model_type"), str) and c["model_type"] in FAMILIES, _transformers),
    (lambda c: c.get("project") == "ncps", _ncps),
    (lambda c: {"d_model", "n_layer"} <= c.keys() and isinstance(c.get("layer"), dict), _hyena_dna),
    (lambda c: {"attn_layer_idxs", "num_layers"} <= c.keys(), _striped_hyena),
    (lambda c: {"embedding_dim", "num_blocks"} <= c.keys(), _xlstm),
    (lambda c: {"dim", "layers", "max_length"} <= c.keys(), _mad),
]


def conversion(config: dict) -> Conversion:
    """The Conversion of a checkpoint's configuration. Raises ConfigError for a project or family that Ember does not read, or a
    configuration that lacks something."""
    for matches, reader in READERS:
        if matches(config):
            try:
                return reader(config)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
                if isinstance(e, EmberError):
                    raise
                raise ConfigError(f"convert: the configuration lacks something, or has another form than its project's: {e!r}") from None
    told = f"model_type {show(config['model_type'])}" if "model_type" in config else f"a configuration with {show(list(config))}"
    raise ConfigError("convert: expected the configuration of HyenaDNA, StripedHyena, Evo 2, xLSTM, MAD-Lab or ncps, or of transformers with model_type "
                      f"{', '.join(FAMILIES)}; received {told}")


def read(source: str | Path) -> tuple[Model, str]:
    """(model on NumPy, project or family) of a folder with config.json and weights.

    The configuration is a stranger's: the model is built in outline first and compared with the tensors.

    Raises ConfigError, WeightsError: an unknown family, an option that Ember would compute differently, files that are damaged or
    hostile or do not fit their configuration.
    """
    source = Path(source)
    file, values = read_config(source)
    try:
        made = conversion(values)
    except (ConfigError, RegistryError) as e:
        raise ConfigError(f"{file}: {e}") from None
    state = Asked(str(source), _without_common_prefix(read_tensors(source)))
    size = sum(t.size for t in state.values())
    try:
        with using(engine("numpy").outline(limit=2 * size + 1024, budget=8 * size + (1 << 20))):
            model = made.build()
    except ShapeError as e:
        raise WeightsError(f"{source}: its configuration does not describe a model of the {size:,} numbers that its files hold: {e}") from None
    except (ConfigError, RegistryError) as e:
        raise ConfigError(f"{file}: {e}") from None
    try:
        with using("numpy"):
            tensors = made.rename(model, state)
    except (LookupError, TypeError, ValueError, ArithmeticError) as e:
        if isinstance(e, WeightsError):
            raise
        raise WeightsError(f"{source}: tensor {show(state.last)} is not of the shape or dtype that {file.name} tells: {e}") from None
    state.all_read("a model of its configuration", made.ignored)
    found = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    weights.check({name: (t.shape, as_found(t.dtype, found.get(name))) for name, t in model.tensors().items()}, found, source)
    model.install(tensors)
    return model, made.name


def convert(source: str | Path, target: str | Path, dtype: str | None = None, overwrite: bool = False) -> Model:
    """Writes an original checkpoint as an Ember model file, whole or not at all, and returns the model.

    Args:
        source: folder of the checkpoint. target: file to write, .safetensors. dtype: floating-point type to store, None for the
            checkpoint's own. overwrite: replace a file that is there.

    Raises as `read`, WeightsError for a target that is there or has another suffix, UnsupportedDtype.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: expected a name that ends in .safetensors")
    if target.exists() and not overwrite:
        raise WeightsError(f"{target}: is there already; give --overwrite to replace it, or another name")
    if dtype is not None and dt.dtype(dtype).kind != "float":
        raise UnsupportedDtype(f"convert: expected a floating-point dtype to store, such as float32 or bfloat16; received {dtype}")
    model, family = read(source)
    wide = [name for name, t in model.tensors().items() if t.dtype is dt.float64]
    if dtype is None and wide:
        raise UnsupportedDtype(f"{source}: {show(wide[0])} is float64, which MLX could not load; give --dtype float32")
    if dtype is not None:
        model.astype(dtype)
    model.save(target, metadata={"converted_from": family})
    return model


#: how names begin that a model's own trainer has put "model." or "module." before
BARE = ("backbone.", "token_embeds.")


def _without_common_prefix(tensors: Tensors) -> Tensors:
    """Names without what a trainer put before all of them."""
    for prefix in ("model.", "module."):
        inner = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if any(name.startswith(BARE) for name in inner):
            return inner
    return tensors
