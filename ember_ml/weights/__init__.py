"""Weight files: named tensors, a config and metadata in one safetensors file, the same bits on every engine.

    save("model.safetensors", model.tensors(), config={"d_model": 64})
    tensors, config, metadata = load("model.safetensors", device="torch")

The file's metadata holds, beside the caller's own strings, format ("ember"), version, config (JSON), tied (JSON,
name -> the name under which the same tensor is stored) and, where it was asked for, crc32 (of all data). Any reader of safetensors can read the rest.

Reader and writer are our own. The library's needs every tensor in host memory at once, writes other bytes each time for
the same tensors, accepts two tensors of one name, and its errors name no tensor.
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Iterator
from functools import reduce

import ml_dtypes
import numpy as np

from ember_ml import backend as engines
from ember_ml.autodiff import tree as trees
from ember_ml.errors import ConfigError, UnsupportedDtype, WeightsError, show
from ember_ml.tensor import EmberTensor
from ember_ml.tensor.common import dtypes as dt
from ember_ml.weights import header
from ember_ml.weights.atomic import replace
from ember_ml.weights.match import LoadReport, check, fit

__all__ = ["LoadReport", "check", "fit", "load", "load_tree", "save", "save_tree"]

VERSION = "1"
MAX_DEPTH = 32  # of the config, far from where Python's recursion ends
OURS = ("format", "version", "config", "tied", "crc32")

_NUMPY = {d: np.dtype(ml_dtypes.bfloat16 if d is dt.bfloat16 else d.name) for d in header.DTYPES.values()}


def save(path: str | os.PathLike, tensors: dict[str, EmberTensor], config: dict | None = None,
         metadata: dict[str, str] | None = None, checksum: bool = False) -> None:
    """Writes one file, atomically: a reader, also after a crash, finds the old file or the new one, whole.

    Args:
        path: the file; its folder must be there.
        tensors: by dotted name, of any engine, and any dtype but float64 and complex128. A tensor object under two
            names is stored once, and `load` gives both names one object again.
        config: what JSON keeps as it is: dicts with string keys, lists, strings, finite numbers, bools, None.
        metadata: further strings by name.
        checksum: store one of the data, by which `load` knows any change of it; the tensors are read twice then.

    Raises:
        WeightsError: a value that is no tensor, a name or metadata that the format cannot hold.
        UnsupportedDtype: a float64 or complex128 tensor. ConfigError: a config that JSON would change.
        OSError: what the disk reports. After any error the old file is as it was.
    """
    if not isinstance(tensors, dict):
        raise WeightsError(f"save: expected a dict of tensors by name, got {type(tensors).__name__}; save_tree takes other trees")
    stored, tied = _split_tied(tensors)
    ours = {"format": "ember", "version": VERSION}
    if config is not None:
        ours["config"] = _config_text(config)
    if tied:
        ours["tied"] = json.dumps(tied)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str) or key in OURS:
            raise WeightsError(f"save: metadata takes strings by name, and {', '.join(OURS)} are Ember's own names; "
                               f"got {show(key)}: {show(value)}")
    entries = header.layout({name: (t.dtype, t.shape) for name, t in stored.items()})
    if checksum:
        ours["crc32"] = str(reduce(lambda crc, part: zlib.crc32(part, crc), _chunks(b"", [stored[name] for name in entries]), 0))
    head = header.build({name: entries[name] for name in stored}, ours | (metadata or {}))
    replace(path, _chunks(head, [stored[name] for name in entries]))


def load(path: str | os.PathLike, device: str | None = None) -> tuple[dict[str, EmberTensor], dict, dict[str, str]]:
    """(tensors by name, config, metadata) of a file of `save`, or of any other writer of the format (config {}).

    Args:
        path: the file. device: where the tensors go, such as "torch:cuda:0"; None is the current engine.

    The metadata is what the caller of `save` gave, or all that another writer stored. The whole header is checked
    before a tensor is made, and each tensor is copied once, from the mapped file.

    Raises WeightsError, with the file and the tensor: a damaged or hostile file, a dtype that the engine does not have.
    """
    backend, where = engines.parse(device)
    path = os.fspath(path)
    data = _map(path)
    entries, metadata, start = header.read(data, path)
    if metadata.get("format") == "ember" and "crc32" in metadata and metadata["crc32"] != str(zlib.crc32(memoryview(data)[start:])):
        raise WeightsError(f"{path}: its data are not those that were saved (their checksum differs); the file is damaged")
    config, tied, metadata = _read_metadata(metadata, entries, path)
    for name, entry in entries.items():
        if entry.dtype not in backend.dtypes:
            raise WeightsError(f"{path}: tensor {show(name)}: {backend.name} has no {entry.dtype}; load the file on "
                               "the numpy or torch engine, cast the tensor and save it again")
    tensors = {}
    for name, entry in entries.items():
        array = np.ndarray(entry.shape, _NUMPY[entry.dtype], buffer=data, offset=start + entry.begin)
        if entry.dtype is dt.bool_ and array.view(np.uint8).max(initial=0) > 1:
            raise WeightsError(f"{path}: tensor {show(name)}: expected bools as bytes 0 and 1, got others; "
                               "the file is damaged")
        try:                                             # other writers do not align what they store
            native = backend.from_numpy(np.require(array, requirements="A"), entry.dtype, where)
        except OverflowError as e:                       # MLX counts lengths in 32 bits
            raise WeightsError(f"{path}: tensor {show(name)}: {backend.name} cannot hold shape {list(entry.shape)}: "
                               f"{e}") from None
        tensors[name] = EmberTensor(native, backend)
    return tensors | {name: tensors[first] for name, first in tied.items()}, config, metadata


def save_tree(path: str | os.PathLike, tree, config: dict | None = None,
              metadata: dict[str, str] | None = None, checksum: bool = False) -> None:
    """`save` of a tree of tensors, such as a training state, by dotted path.

    Raises as `save`, and WeightsError where two paths meet.
    """
    named = trees.named(tree)
    if len(named) < len(trees.flatten(tree)[0]):
        raise WeightsError("save_tree: two tensors have one dotted path, as x and y in {'a.b': x, 'a': {'b': y}}; "
                           f"the paths are {show(list(named))}")
    save(path, named, config, metadata, checksum)


def load_tree(path: str | os.PathLike, template,
              device: str | None = None) -> tuple[object, dict, dict[str, str]]:
    """(tree, config, metadata) of a file of `save_tree`, in the form of `template`, which is not changed.

    Raises as `load`, and WeightsError if names, shapes or dtypes are not the template's.
    """
    tensors, config, metadata = load(path, device)
    expected = trees.named(template)
    check({name: (t.shape, t.dtype) for name, t in expected.items()},
          {name: (t.shape, t.dtype) for name, t in tensors.items()}, path)
    return trees.unflatten(trees.flatten(template)[1], [tensors[name] for name in expected]), config, metadata


def _split_tied(tensors: dict[str, EmberTensor]) -> tuple[dict[str, EmberTensor], dict[str, str]]:
    """(tensors to store, second name -> first name of those that are among them already)."""
    first, stored, tied = {}, {}, {}
    for name, t in tensors.items():
        if not isinstance(name, str) or name == header.METADATA:
            raise WeightsError(f"save: expected names that are strings, and not {header.METADATA}; got {show(name)}")
        if not isinstance(t, EmberTensor):
            raise WeightsError(f"save: tensor {show(name)}: expected an EmberTensor, got {type(t).__name__}; "
                               "wrap it with em.tensor(...)")
        if t.dtype not in header.CODES:
            fix = "complex64" if t.dtype is dt.complex128 else "float32"
            raise UnsupportedDtype(f"save: tensor {show(name)}: {t.dtype} cannot be saved, because MLX could not load "
                                   f"it; save its .astype({fix!r})")
        if first.setdefault(id(t), name) == name:
            stored[name] = t
        else:
            tied[name] = first[id(t)]
    return stored, tied


def _config_text(config: dict) -> str:
    try:
        text = json.dumps(config, allow_nan=False)
        kept = header.parse(text, "save", "config", MAX_DEPTH)
    except (TypeError, ValueError, RecursionError) as e:
        raise ConfigError(f"save: the config cannot be stored as JSON: {e}") from None
    if kept != config:
        raise ConfigError("save: config: expected dicts with string keys, lists, strings, finite numbers, bools and "
                          f"None; {show(config)} would come back as {show(kept)}")
    return text


def _chunks(head: bytes, tensors: list[EmberTensor]) -> Iterator[bytes | memoryview]:
    """The bytes of the file. Of the tensors, one at a time is in host memory."""
    yield head
    for t in tensors:
        yield np.ravel(t.backend.to_numpy(t.data)).view(np.uint8).data


def _map(path: str) -> mmap.mmap | bytes:
    """The bytes of a file. Weight files are replaced, never written to, so what is mapped stays as it is."""
    with open(path, "rb") as f:
        if os.fstat(f.fileno()).st_size == 0:
            return b""                                   # which mmap refuses
        return mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)


def _read_metadata(metadata: dict[str, str], entries: dict, path: str) -> tuple[dict, dict[str, str], dict[str, str]]:
    """(config, tied names, the caller's metadata). Another writer's metadata is returned as it is."""
    if metadata.get("format") != "ember":
        return {}, {}, metadata
    if metadata.get("version") != VERSION:
        raise WeightsError(f"{path}: expected version {VERSION!r} of Ember's metadata, got "
                           f"{show(metadata.get('version'))}; if a newer Ember wrote the file: pip install -U ember-ml")
    config = header.parse(metadata.get("config", "{}"), path, "config", MAX_DEPTH)
    tied = header.parse(metadata.get("tied", "{}"), path, "tied names", MAX_DEPTH)
    for name, first in tied.items():
        if name in entries or not isinstance(first, str) or first not in entries:
            raise WeightsError(f"{path}: tensor {show(name)}: expected a tie to a stored tensor, got {show(first)}")
    return config, tied, {key: value for key, value in metadata.items() if key not in OURS}
