"""A golden case as the folder in which its project would publish it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

import ember_ml as em
from ember_ml.interop.transformers import FAMILIES
from ember_ml.registry import to_dict
from tests.golden.case import DATA, Case
from tests.golden.liquid import layer_of
from tests.golden.xlstm import stack_config

AREAS = {"lfm2": "liquid", "lfm2_moe": "liquid"}


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


def with_config(folder: Path, config: dict) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def hyena_dna(folder: Path) -> Path:
    c = case("hyena", "hyenadna_lm")
    k = c.config
    layer = {"_name_": "hyena", "l_max": k["l_max"], "filter_order": k["filter_order"], "emb_dim": k["emb_dim"], "w": k["w"], "modulate": True,
             "shift": k["shift"], "lr_pos_emb": 0.0}
    sizes = ("d_model", "n_layer", "d_inner", "vocab_size", "pad_vocab_size_multiple")
    publish(c, folder, None, tensors={f"model.{n}": w for n, w in c.weights.items()})
    return with_config(folder, {**{name: k[name] for name in sizes}, "layer": layer})


def mad(folder: Path, rename: Callable[[str], str] = str) -> Path:
    c = case("mad", "language_model")
    hyena = {"inner_factor": 2, "proj_groups": 2, "long_conv_cfg": {"filter_cls": "implicit", "filter_cfg": {"emb_dim": 5, "order": 4, "w": 4}}}
    return publish(c, folder, None, tensors={f"model.{rename(n)}": w for n, w in c.weights.items()}, layer_cfgs=[hyena, {"multiple_of": 8}])


def ncps(folder: Path, name: str) -> Path:
    c = case("liquid", name)
    with em.using("numpy"):
        config = to_dict(layer_of(c).config)
    kind = next(k for k in ("wired_cfc", "cfc", "ltc") if name.startswith(k))
    return with_config(publish(c, folder, None), {"project": "ncps", "layer": kind, "layer_config": config})


def other(folder: Path, area: str, name: str, config: Callable[[dict], dict] = lambda c: c, shards: int = 1) -> Path:
    c = case(area, name)
    return with_config(publish(c, folder, None, shards), config(c.config))


#: (area, case, its configuration as the project writes it) of the models of projects whose configuration is their own
OTHERS = {"striped_hyena": ("stripedhyena", "model", lambda c: c), "evo2": ("stripedhyena", "evo2_model", lambda c: c),
          "xlstm_lm": ("xlstm", "lm_step", stack_config), "xlstm_large": ("xlstm", "large_model", lambda c: {"embedding_dim": c["D"], **c})}

#: a small checkpoint of every reader: its name -> what writes it into a folder
ORIGINALS: dict[str, Callable[[Path], Path]] = {
    **{f: lambda folder, f=f: publish(case(AREAS.get(f, "hf"), f), folder, f) for f in FAMILIES},
    **{name: lambda folder, args=args: other(folder, *args) for name, args in OTHERS.items()},
    "hyena_dna": hyena_dna, "mad": mad, "ltc": lambda folder: ncps(folder, "ltc_sequence_autoncp"), "cfc": lambda folder: ncps(folder, "cfc_pure"),
    "wired_cfc": lambda folder: ncps(folder, "wired_cfc"),
}
