"""One command for every project's checkpoints: find the reader, build the model in outline, rename, check, save."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ember_ml import weights
from ember_ml.backend import get as engine
from ember_ml.backend import using
from ember_ml.errors import ConfigError, ShapeError, WeightsError
from ember_ml.interop import hyena_dna
from ember_ml.interop.checkpoint import State, Tensors, read_config, read_tensors
from ember_ml.interop.rules import check_all_read, named
from ember_ml.interop.transformers import FAMILIES, Fields
from ember_ml.nn.models import Model, ModelConfig


class Conversion(NamedTuple):
    """What a reader makes of a checkpoint's configuration.

    name: of the project or family. config: of the model. rename: `rename(model, state)` gives the model's tensors by Ember's names.
    """

    name: str
    config: ModelConfig
    rename: Callable[[Model, State], Tensors]


def _transformers(config: dict) -> Conversion:
    family = config["model_type"]
    layout = FAMILIES[family](Fields(config, family))
    return Conversion(family, layout.config, lambda model, state: named(model, layout, state))


def _hyena_dna(config: dict) -> Conversion:
    made, rename_all = hyena_dna.conversion(config)

    def rename(model: Model, state: State) -> Tensors:
        found = rename_all(model, state)
        check_all_read(state, hyena_dna.IGNORED)
        return found

    return Conversion("hyena_dna", made, rename)


#: (whether a configuration is the project's, its reader), in the order in which they are asked
READERS: list[tuple[Callable[[dict], bool], Callable[[dict], Conversion]]] = [
    (lambda c: c.get("model_type") in FAMILIES, _transformers),
    (hyena_dna.is_config, _hyena_dna),
]


def conversion(config: dict) -> Conversion:
    """The Conversion of a checkpoint's configuration. Raises ConfigError for a project or family that Ember does not read."""
    for matches, reader in READERS:
        if matches(config):
            return reader(config)
    told = f"model_type {config['model_type']!r}" if "model_type" in config else f"a configuration with {', '.join(list(config)[:6])}"
    raise ConfigError(f"convert: expected a checkpoint of HyenaDNA, or of transformers with model_type {', '.join(FAMILIES)}; "
                      f"received {told}")


def read(source: str | Path) -> tuple[Model, str]:
    """(model on NumPy, project or family) of a folder with config.json and weights.

    The configuration is a stranger's: the model is built in outline first and compared with the tensors.

    Raises ConfigError, WeightsError: an unknown family, an option that Ember would compute differently, files that are damaged or
    hostile or do not fit their configuration.
    """
    source = Path(source)
    made = conversion(read_config(source))
    state = State(_without_common_prefix(read_tensors(source)), str(source))
    size = sum(t.size for t in state.values())
    try:
        with using(engine("numpy").outline(limit=2 * size + 1024, budget=8 * size + (1 << 20))):
            model = Model(made.config)
    except ShapeError as e:
        raise WeightsError(f"{source}: its configuration does not describe a model of the {size:,} numbers that its files hold: {e}") from None
    with using("numpy"):
        tensors = made.rename(model, state)
    found = {name: (t.shape, t.dtype) for name, t in tensors.items()}
    weights.check({name: (t.shape, found[name][1] if name in found else t.dtype) for name, t in model.tensors().items()}, found, source)
    model.install(tensors)
    return model, made.name


def convert(source: str | Path, target: str | Path, dtype: str | None = None, overwrite: bool = False) -> Model:
    """Writes an original checkpoint as an Ember model file, whole or not at all, and returns the model.

    Args:
        source: folder of the checkpoint. target: file to write, .safetensors. dtype: floating-point type to store, None for the
            checkpoint's own. overwrite: replace a file that is there.

    Raises as `read`, and WeightsError for a target that is there or has another suffix.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise WeightsError(f"{target}: expected a name that ends in .safetensors")
    if target.exists() and not overwrite:
        raise WeightsError(f"{target}: is there already; give --overwrite to replace it, or another name")
    model, family = read(source)
    if dtype is not None:
        model.astype(dtype)
    model.save(target, metadata={"converted_from": family})
    return model


def _without_common_prefix(tensors: Tensors) -> Tensors:
    """Names without the "model." or "module." that a trainer put before all of the names that begin with "backbone.", say."""
    for prefix in ("model.", "module."):
        inner = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        if any(name.startswith("backbone.") for name in inner):
            return inner
    return tensors
