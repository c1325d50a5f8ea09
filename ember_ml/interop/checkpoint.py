"""Reading a checkpoint without trusting it: a file or a folder of weights, and the configuration beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from ember_ml import backend as engines
from ember_ml import weights
from ember_ml.errors import WeightsError
from ember_ml.registry import read_table
from ember_ml.tensor import EmberTensor

Tensors = dict[str, EmberTensor]

#: an index of shards names tensors and files: what is larger is none
MAX_INDEX = 256 << 20


def read_config(path: Path) -> tuple[Path, dict]:
    """(file, values) of the config.json (or config.toml) in a folder. Raises ConfigError, WeightsError if there is none."""
    for name in ("config.json", "config.toml"):
        if (path / name).is_file():
            return path / name, read_table(path / name)
    raise WeightsError(f"{path}: expected a folder with config.json and weights; there is no config.json")


def read_tensors(path: Path) -> Tensors:
    """All tensors of a checkpoint, on NumPy.

    Args:
        path: a file (.safetensors, or torch's .pt, .pth, .bin, .ckpt), or a folder with model.safetensors or an index of
            shards, or pytorch_model.bin or its index, or one such file of any name.

    Raises WeightsError: nothing to read, a damaged or hostile file, an index that leads out of its folder or does not
    fit its shards. torch's files need torch; they are read by its weights_only loader, which runs no code.
    """
    if path.is_file():
        return _file(path)
    if not path.is_dir():
        raise WeightsError(f"{path}: no such file or folder")
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (path / f"{name}.index.json").is_file():
            return _shards(path / f"{name}.index.json")
        if (path / name).is_file():
            return _file(path / name)
    found = sorted(p for p in path.iterdir() if p.suffix in READERS)
    if len(found) != 1:
        raise WeightsError(f"{path}: expected model.safetensors, pytorch_model.bin, or one file of weights; it has "
                           f"{', '.join(p.name for p in found) or 'none'}")
    return _file(found[0])


def _safetensors(path: Path) -> Tensors:
    return weights.load(path, device="numpy")[0]


def _torch(path: Path) -> Tensors:
    torch = engines.get("torch")
    return {name: EmberTensor(native, torch).to("numpy") for name, native in torch.read_state_dict(path).items()}


READERS: dict[str, Callable[[Path], Tensors]] = {
    ".safetensors": _safetensors, ".pt": _torch, ".pth": _torch, ".bin": _torch, ".ckpt": _torch}


def _file(path: Path) -> Tensors:
    if path.suffix not in READERS:
        raise WeightsError(f"{path}: expected a name that ends in {', '.join(READERS)}")
    return READERS[path.suffix](path)


def _shards(index: Path) -> Tensors:
    try:
        if index.stat().st_size > MAX_INDEX:
            raise ValueError("it is too large")
        where = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(where.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise WeightsError(f"{index}: expected an index with a weight_map of tensors and files: {e}") from None
    tensors: Tensors = {}
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise WeightsError(f"{index}: expected files beside it, got {name!r}")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index}: the file {name} is missing")
        listed = {tensor for tensor, file in where.items() if file == name}
        held = _file(index.parent / name)
        if listed != held.keys():
            odd = sorted(listed ^ held.keys())
            raise WeightsError(f"{index}: {name} does not hold the tensors that are listed for it; they differ in {', '.join(odd[:4])}")
        tensors |= held
    return tensors
