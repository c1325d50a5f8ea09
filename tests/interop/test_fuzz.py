"""Checkpoints and adapters changed at random, of every reader: the outcome is a right file or an error that names the source, and nothing in between."""

import json
import math
import random
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ember_ml as em
from ember_ml import nn
from ember_ml.errors import EmberError
from ember_ml.interop.convert import convert
from ember_ml.nn.adapters import LoRAConfig, adapters, add_lora, load_peft, save_peft
from ember_ml.nn.adapters.peft import CONFIG, TENSORS
from tests.interop._folder import ORIGINALS

VALUES = [None, "8", "", "auto", 8.0, 0.5, -1, 0, 1, 3, 100_000, 2 ** 31 - 1, 2 ** 31, 2 ** 63, 10 ** 400, math.nan, math.inf, -math.inf, 1e300,
          True, False, [], {}, "x" * 2000, "\ud800", [[1]], {"a": {}}, [math.inf] * 3, {"__float__": "NaN"}, {"__float__": "Infinity"}, [0] * 50_000,
          ["8"], [True], [2 ** 63]]
PIECES = [b"", b"null", b"[", b"{}", b"9" * 20, b'"', b"\xff\xfe", b"\0", b"NaN", b"1e999", b"9" * 5000, b"[" * 60_000, b'{"a":' * 3000]


def places(value, at=()):
    """The paths into nested tables and lists; of a list the first ones."""
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:4] if isinstance(value, list) else []
    return [path for key, v in inner for path in [(*at, key), *places(v, (*at, key))]]


def change_config(r: random.Random, file, _):
    config = json.loads(file.read_text())
    *path, last = r.choice(places(config))
    table = config
    for key in path:
        table = table[key]
    if r.random() < 0.15:
        del table[last]
    else:
        table[last] = r.choice(VALUES)
    file.write_text(json.dumps(config))


def change_tensor(r: random.Random, _, file):
    tensors = load_file(file)
    name, other = r.choice(sorted(tensors)), r.choice(sorted(tensors))
    w = tensors.pop(name)
    kind = r.choice([np.int32, np.bool_, np.float64, np.float16, np.complex64])
    changed = {"without": {}, "beside": {name: w, f"{name}.x": w}, "renamed": {f"{name}\x00\u202e": w}, "flat": {name: w.reshape(-1)}, "turned": {name: w.T},
               "another dtype": {name: w.astype(kind)}, "empty": {name: w[:0] if w.ndim else w[None][:0]}, "one axis more": {name: w[None]},
               "exchanged": {name: tensors.get(other, w), other: w}, "twice as long": {name: np.concatenate([w, w]) if w.ndim else w[None]},
               "one number": {name: w.reshape(-1)[0]}}
    tensors |= changed[r.choice(sorted(changed))]
    save_file({n: np.array(t, order="C") for n, t in tensors.items()}, file)


def change_bytes(r: random.Random, *files):
    file = r.choice(files)
    data = bytearray(file.read_bytes())
    how, near = r.randrange(5), min(len(data), 3000)
    if how == 0:
        del data[r.randrange(len(data)):]
    elif how == 1:
        for _ in range(r.randrange(1, 5)):
            data[r.randrange(near)] ^= r.randrange(1, 256)
    elif how == 2:
        data[:8] = r.choice([0, 1, 2 ** 63, 2 ** 64 - 1, len(data), len(data) - 8, 10 ** 8]).to_bytes(8, "little")
    elif how == 3:
        data += bytes(r.randrange(1, 9))
    else:
        at = r.randrange(near)
        data[at:at + r.randrange(30)] = r.choice(PIECES)
    file.write_bytes(data)


CHANGES = [[change_config], [change_config], [change_config] * 2, [change_tensor], [change_bytes], [change_config, change_tensor]]


def check(reader: str, tmp_path, seeds):
    original = ORIGINALS[reader](tmp_path / "original")
    target, refused = tmp_path / "out" / "model.safetensors", 0
    target.parent.mkdir()
    for seed in seeds:
        r, folder = random.Random(f"{reader} {seed}"), tmp_path / f"changed{seed}"
        shutil.copytree(original, folder)
        for change in r.choice(CHANGES):
            change(r, folder / "config.json", folder / "model.safetensors")
        try:
            model = convert(folder, target, overwrite=True)
        except EmberError as e:                              # any other error fails the test
            said, refused = str(e), refused + 1
            assert str(folder) in said and len(said) < len(str(folder)) + 2500, (seed, said[:500])
            said.encode()
            assert not list(target.parent.iterdir()), seed
        else:
            whole = nn.Model.load(target, device="numpy").tensors()
            assert all(np.array_equal(t.numpy(), whole[name].numpy(), equal_nan=True) for name, t in model.tensors().items()), seed
            assert [p.name for p in target.parent.iterdir()] == [target.name], seed
            target.unlink()
        shutil.rmtree(folder)
    return refused


def check_adapters(tmp_path, seeds):
    """As `check`, of peft's files: what is refused leaves the model as it was, what is read is written again as it was."""
    def base():
        return nn.Model.from_config({"family": "transformer", "vocab_size": 5, "d_input": 4, "n_layer": 1, "heads": 2}, key=em.random.key(1))

    def held(model):
        return {name: t.numpy() for name, t in model.tensors().items()}

    def equal(a, b):
        return a.keys() == b.keys() and all(np.array_equal(a[name], b[name], equal_nan=True) for name in a)

    refused = 0
    with em.using("numpy"):
        before, model = held(base()), base()
        add_lora(model, LoRAConfig(rank=2, targets=["*.q_proj", "*.k_proj", "*.out_proj"]), em.random.key(2))
        for lora in adapters(model).values():
            for pair in lora.pairs.values():
                pair.B = em.random.normal(em.random.key(3), pair.B.shape)
        save_peft(model, tmp_path / "original")
        for seed in seeds:
            r, folder, model = random.Random(f"peft {seed}"), tmp_path / f"changed{seed}", base()
            shutil.copytree(tmp_path / "original", folder)
            for change in r.choice(CHANGES):
                change(r, folder / CONFIG, folder / TENSORS)
            try:
                names = load_peft(model, folder)
            except EmberError as e:                          # any other error fails the test
                said, refused = str(e), refused + 1
                assert str(folder) in said and len(said) < len(str(folder)) + 2500, (seed, said[:500])
                said.encode()
                assert equal(held(model), before) and not adapters(model) and len(model.parameters(trainable=True)) == len(before), seed
            else:
                found = load_file(folder / TENSORS)
                assert len(found) == 2 * len(names), seed
                save_peft(model, tmp_path / "again")
                again = load_file(tmp_path / "again" / TENSORS)
                assert equal(again, {name: w.astype(again[name].dtype) for name, w in found.items()}), seed
                other = base()
                assert sorted(load_peft(other, tmp_path / "again")) == sorted(names) and equal(held(other), held(model)), seed
                x = em.tensor([[1, 2, 3]])
                assert np.array_equal(model(x)[0].numpy(), other(x)[0].numpy(), equal_nan=True), seed
            shutil.rmtree(folder)
    return refused


def test_changed_adapters_are_read_right_or_refused(tmp_path):
    check_adapters(tmp_path, range(8))


@pytest.mark.slow
def test_many_changed_adapters_are_read_right_or_refused(tmp_path):
    assert check_adapters(tmp_path, range(100, 1000)) > 300


@pytest.mark.parametrize("reader", ORIGINALS)
def test_a_changed_checkpoint_is_read_right_or_refused(reader, tmp_path):
    check(reader, tmp_path, range(4))


@pytest.mark.slow
@pytest.mark.parametrize("reader", ORIGINALS)
def test_many_changed_checkpoints_are_read_right_or_refused(reader, tmp_path):
    assert check(reader, tmp_path, range(100, 400)) > 100
