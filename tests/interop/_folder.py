"""A golden case as the folder in which its project would publish it."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.golden.case import DATA, Case


def case(area: str, name: str) -> Case:
    return Case(DATA / area / name)


def publish(c: Case, folder: Path, model_type: str | None, shards: int = 1, tensors: dict | None = None, **changes) -> Path:
    """config.json and safetensors, in shards with an index if there is more than one. Returns the folder."""
    folder.mkdir(exist_ok=True)
    config = {**c.config, **({"model_type": model_type} if model_type else {}), **changes}
    (folder / "config.json").write_text(json.dumps(config).replace("Infinity", '"inf"'))
    if tensors is None:
        published = c.folder / "weights_checkpoint_layout.safetensors"
        tensors = load_file(published) if published.exists() else {n: w for n, w in c.weights.items() if n not in c.aliases}
    tensors = {n: np.ascontiguousarray(w) for n, w in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    files = {f"model-{i + 1:05}-of-{shards:05}.safetensors": names[i::shards] for i in range(shards)}
    for file, held in files.items():
        save_file({n: tensors[n] for n in held}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, held in files.items() for n in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
