"""What a refused command leaves: exit code 2, one line on standard error, and every file as it was before."""

import os
import shutil
from pathlib import Path

import pytest


def tree(folder: Path) -> dict[str, tuple]:
    """What lies in a folder: kind, mode and content of each thing by its name."""
    return {str(p.relative_to(folder)): (p.is_dir(), p.lstat().st_mode, os.readlink(p) if p.is_symlink() else b"" if p.is_dir() else p.read_bytes())
            for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the job and a run of it, to copy."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def place(trained, job, command):
    """The job's folder with the run "done", a file "file", an empty folder "empty", and a folder "mine" that holds no run."""
    if not (trained / "done").exists():
        assert command("train", "job.toml", "--backend", "numpy", "--out", trained / "done").code == 0
        shutil.copytree(job, trained, dirs_exist_ok=True)    # the data, whose fingerprint the run remembers
    shutil.copytree(trained, job, dirs_exist_ok=True)
    (job / "file").write_text("a file")
    (job / "empty").mkdir()
    (job / "mine").mkdir()
    (job / "mine" / "thesis.txt").write_text("years of work")
    (job / "broken.toml").write_text("[data\n")
    (job / "latin.toml").write_bytes(b'x = "\xe9"')
    (job / "x.npz").write_bytes(b"PK\x03\x04")
    return job


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
