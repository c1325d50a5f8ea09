"""What a refused command leaves: exit code 2, one line on standard error, and every file as it was before."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest


def tree(folder: Path) -> dict[str, tuple]:
    """What lies in a folder: kind, mode and content of each thing by its name."""
    return {str(p.relative_to(folder)): (p.is_dir(), p.lstat().st_mode, os.readlink(p) if p.is_symlink() else b"" if p.is_dir() else p.read_bytes())
            for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that `place` fills once: what is refused changes nothing, so that all tests may have the same."""
    return tmp_path_factory.mktemp("place") / "here"


@pytest.fixture
def place(made, command, request, monkeypatch):
    """A folder to be in, with the job, its run "done", a file "file", an empty folder "empty", and a folder "mine" that holds no run."""
    if not made.exists():
        shutil.copytree(request.getfixturevalue("done").parent, made)
        (made / "file").write_text("a file")
        (made / "empty").mkdir()
        (made / "mine").mkdir()
        (made / "mine" / "thesis.txt").write_text("years of work")
        (made / "broken.toml").write_text("[data\n")
        (made / "latin.toml").write_bytes(b'x = "\xe9"')
        (made / "x.npz").write_bytes(b"PK\x03\x04")
        x = np.random.default_rng(0).normal(size=(12, 5, 2)).astype(np.float32)
        np.savez(made / "rows.npz", x=x, y=np.arange(12) % 2, z=x[:, 0, 0], n=np.arange(12) % 4 + 1)
        (made / "words.txt").write_text("to be or not to be, that is the question. " * 20)
    monkeypatch.setenv("EMBER_BACKEND", "numpy")
    monkeypatch.chdir(made)
    return made


SETS = {
    "unknown key": "training.step=3", "model's key": "model.d_inputs=3", "model's size": "model.d_input=0", "a string": 'model.d_input="8"',
    "a number with a point": "model.d_input=8.0", "a truth": "training.steps=true", "too many": "model.d_input=9223372036854775808",
    "nan": "optimizer.rate=nan", "optimizer": "optimizer.name=adamx", "optimizer's key": "optimizer.momentum=0.9", "family": "model.family=hyena_dnb",
    "family no string": "model.family=[1]", "seed": "seed=-1", "no data": "data.fasta=gone.fna", "kind of data": "data.kind=dnb", "length": "data.length=100000",
    "length of none": "data.length=0", "held out": "data.held_out=100000", "layers that do not fit": "model.filter.width=0",
    "no layers": "model.n_layer=2147483647", "epochs and steps": "training={steps=3, epochs=1.0}",
    "patience": "training.patience=0", "model file": "model={file='gone.safetensors'}", "model no file": "model={file='x.fna'}",
    "adapter": "adapter={weights='gone.safetensors'}", "adapter's key": "adapter={lora={rank=0}}", "data no fasta": "data.fasta=job.toml",
}


@pytest.mark.parametrize("what, out", [*((what, "new/runs/x") for what in SETS), ("no data", "mine"), ("model's size", "mine"), ("adapter", "empty")])
def test_a_run_that_cannot_begin_leaves_nothing(what, out, place, command):
    before = tree(place)
    done = command("train", "job.toml", "--backend", "numpy", "--out", out, "--set", SETS[what])
    assert done.code == 2 and done.err.startswith("ember: ") and "Traceback" not in done.err, done.err
    assert tree(place) == before, done.err


@pytest.mark.parametrize("what", SETS)
@pytest.mark.parametrize("way", ["--overwrite", pytest.param("--resume", marks=pytest.mark.slow)])
def test_a_run_that_is_there_stays_as_it_was(what, way, place, command):
    before = tree(place)
    done = command("train", "job.toml", "--backend", "numpy", "--out", "done", way, "--set", SETS[what])
    assert done.code == 2 and done.err.startswith("ember: "), done.err
    assert tree(place) == before, done.err


GRU = "model={blocks=[{layer='gru', d_input=8}], "
CLASSES, NUMBERS = "data={kind='arrays', files='rows.npz', batch=1}", "data={kind='arrays', files='rows.npz', y='z', task='regression', batch=1}"
RAGGED = "data={kind='arrays', files='rows.npz', lengths='n', batch=1}"
PACKED = "data={kind='text', files='words.txt', length=16, batch=1, layout='packed'}"
MISFITS = {
    "longer than l_max": (["model.l_max=15"], "the data has sequences of 16 positions; this model takes at most l_max = 15"),
    "fewer tokens": (["model.vocab_size=3"], "vocab_size=5 or more; this one has 3"),
    "no language model": ([GRU + "head='features'}"], "asks for the next base; this model has head='features'"),
    "no head": (["model={blocks=[{layer='gru', d_input=8}]}"], "asks for the next base; this model has head=None"),
    "tokens for channels": ([CLASSES, GRU + "vocab_size=4}"], "inputs and vocab_size|inputs are channels where there are no tokens"),
    "other channels": ([CLASSES, GRU + "inputs=3}"], "inputs=2; this one has 3"),
    "fewer classes": ([CLASSES, GRU + "outputs=1}"], "outputs=2 or more; this one has 1"),
    "another task": ([CLASSES, GRU + "head='regressor'}"], "head='classifier'; this one has 'regressor'"),
    "other outputs": ([NUMBERS, GRU + "outputs=2}"], "outputs=1; this one has 2"),
    "rows longer than l_max": ([CLASSES, "model={blocks=[{layer='hyena', d_input=8, layer_config={l_max=4}}]}"], "sequences of 5 positions; .* l_max = 4"),
    "a file of another model": (["model={file='done/model.safetensors'}", CLASSES], "inputs=2; this one has None"),
    "packed where no border is kept": ([PACKED, "model={blocks=[{layer='hyena', d_input=8, layer_config={l_max=16}}], head='tied'}"], r"packed: blocks.0.layer \(Hyena\) cannot keep"),
    "padding that is seen": ([RAGGED, "model={blocks=[{layer='long_conv', d_input=8, layer_config={l_max=8, bidirectional=true}}]}"], r"packed: blocks.0.layer \(LongConv\) cannot keep"),
}


@pytest.mark.parametrize("what, way", [*((what, "--out done --overwrite") for what in MISFITS), ("longer than l_max", "--out new/run")])
def test_a_model_that_does_not_take_the_data_is_refused_before_anything_is_written(what, way, place, command):
    sets, message = MISFITS[what]
    before = tree(place)
    done = command("train", "job.toml", "--backend", "numpy", *way.split(" "), *(arg for text in sets for arg in ("--set", text)))
    assert done.code == 2 and re.search(message, done.err), done.err
    assert tree(place) == before


REFUSED = [
    "train gone.toml", "train broken.toml", "train latin.toml", "train file", "train empty", "train job.toml --out file", "train job.toml --out file/x",
    "train job.toml --out done", "train job.toml --out empty --resume", "train job.toml --out done --resume --overwrite", "train job.toml --steps 0",
    "train job.toml --out done --resume --steps 2", "train job.toml --steps x", "train job.toml --out /proc/x/y", "train job.toml --set a=b --dry-run",
    "train job.toml --backend abacus", "train", "train job.toml --nonsense",
    "eval gone", "eval empty", "eval file", "eval done --data gone.toml", "eval done --data broken.toml", "eval done --set training.steps=3",
    "eval done --set data.fasta=gone.fna", "eval done --backend abacus", "eval mine",
    "generate gone", "generate done --length 0", "generate done --temperature nan", "generate done --top-k 0", "generate done --top-p 2", "generate done --seed -1",
    "generate done --repetition 0", "generate done --backend abacus", "generate mine",
    "convert gone x.safetensors", "convert empty x.safetensors", "convert file x.safetensors", "convert done x.safetensors", "convert done file", "convert done",
    "parity gone", "parity empty", "parity done --out empty", "parity done --out gone/x.json", "parity done --length 0", "parity", "parity --merge", "parity --ops done",
    "parity --merge file file", "parity --merge file job.toml --out gone/x.json", "parity --ops --out gone/x.json",
    "report gone", "report empty", "report done --out empty", "report done --out gone/x.html", "report done --out file/x.html",
    "mad --layers nothing --out new/mad", "mad --layers hyena --tasks nothing --out new/mad", "mad --layers hyena --steps 0",
    "mad --layers hyena --out file", "mad --layers hyena --train 1 --out empty", "mad --layers hyena --out empty --resume", "mad --layers self_attention --d-input 7 --out new/mad",
    "data gone.toml", "data broken.toml", "data job.toml --set training.steps=3", "data job.toml --set data.fasta=gone.fna", "data job.toml --set data.kind=x",
    "data job.toml --set data={kind='arrays',files='x.npz',batch=1}", "data file", "data empty",
    "plan gone.toml", "plan job.toml --set model.d_input=0", "plan job.toml --set data.fasta=gone.fna", "plan job.toml --backend abacus",
    "plan job.toml --set model.n_layer=2147483647",
]


@pytest.mark.parametrize("line", REFUSED)
def test_a_refused_command_changes_nothing(line, place, command):
    before = tree(place)
    done = command(*line.split(" "))
    assert done.code == 2 and "Traceback" not in done.err and done.err.strip(), (done.code, done.err)
    assert tree(place) == before, done.err
