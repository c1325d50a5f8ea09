"""A small job to run, and the command in this process."""

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ember_ml.cli import main


@pytest.fixture
def job(tmp_path):
    """A small configuration on a FASTA file of its own."""
    (tmp_path / "x.fna").write_text(">x\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 3000)) + "\n")
    (tmp_path / "job.toml").write_text("""
seed = 1
[data]
kind = "dna"
fasta = "x.fna"
length = 16
batch = 2
held_out = 200
[model]
family = "hyena_dna"
d_input = 8
n_layer = 1
l_max = 16
filter = { width = 4 }
[optimizer]
name = "adamw"
rate = 1e-2
[training]
steps = 4
log_every = 1
eval_every = 2
checkpoint_every = 2
""")
    return tmp_path


class Done(NamedTuple):
    """What a call of the command left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(job, monkeypatch, capsys):
    """`command("train", "job.toml")` runs the command in this process, in the job's folder, and returns Done."""
    monkeypatch.chdir(job)

    def run(*arguments) -> Done:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in arguments])
        return Done(left.value.code or 0, *capsys.readouterr())
    return run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder for the job and a run of it, which `done` fills."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def done(trained, job, command) -> Path:
    """The folder "done" in the job's, a copy of a run that is trained once."""
    if not (trained / "done").exists():
        assert command("train", "job.toml", "--backend", "numpy", "--out", trained / "done").code == 0
        shutil.copytree(job, trained, dirs_exist_ok=True)    # the data, whose fingerprint the run remembers
    shutil.copytree(trained, job, dirs_exist_ok=True)
    return job / "done"
