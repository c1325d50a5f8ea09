"""A run that is killed with kill -9 and resumed ends in the same state, to the bit, as one that was left alone.

It is killed at random lines of the trainer and of what writes its files, so also in the middle of a save (see _job.py).
"""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ember_ml.nn.pipeline.training import RunFolder
from tests.conftest import require_engine

ROOT = Path(__file__).resolve().parents[2]
JOB = Path(__file__).with_name("_job.py")
ENGINES = ["numpy", "mlx", "torch"]
COMPILED = pytest.param("torch compile", marks=pytest.mark.slow)      # a minute to compile
TIMES = {"seconds", "tokens_per_second", "memory"}


class Server:
    """The process that carries out runs."""

    def __init__(self, engine, fasta, *compile):
        env = {**os.environ, "PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0", "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1",
               "TORCHINDUCTOR_CACHE_DIR": str(fasta.parent / "compiled")}
        self.process = subprocess.Popen([sys.executable, str(JOB), engine, str(fasta), *compile], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True)

    def run(self, folder, resume=False, kill=None):
        """(how it ended: 0, or minus the signal; the file of each watched line)."""
        self.process.stdin.write(json.dumps({"folder": str(folder), "resume": resume, "kill": kill}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["status"], answer["places"]

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def job(request, tmp_path_factory):
    """(server, folder of a run that was left alone, the file of each watched line in it). MLX compiles the step unless told not to."""
    engine, *compile = request.param.split()
    require_engine(engine)
    place = tmp_path_factory.mktemp(engine)
    fasta = place / "x.fna"
    fasta.write_text(">x\n" + "".join(np.random.default_rng(1).choice(list("ACGT"), 300)) + "\n")
    server = Server(engine, fasta, *compile)
    status, places = server.run(place / "straight")
    assert status == 0
    yield server, place / "straight", places
    server.close()


def rows(folder):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in RunFolder.existing(folder).rows()]


def assert_equal_runs(got, want):
    assert len(rows(want)) == 14 + 3
    assert rows(got) == rows(want)
    assert sorted(p.name for p in got.iterdir()) == sorted(p.name for p in want.iterdir())
    files = sorted(p.relative_to(want) for p in [want / "model.safetensors", *(want / "checkpoints").iterdir()])
    assert sorted(p.relative_to(got) for p in [got / "model.safetensors", *(got / "checkpoints").iterdir()]) == files
    for file in files:
        assert (got / file).read_bytes() == (want / file).read_bytes(), file


def live_and_die(server, folder, moments) -> int:
    """Runs to the end, killed at each moment on the way. Returns how often it was killed."""
    kills = 0
    for moment in moments:
        status, _ = server.run(folder, resume=folder.exists() and (folder / "config.toml").exists(), kill=moment)
        assert status in (0, -signal.SIGKILL)
        if status == 0:
            return kills
        kills += 1
        assert not (folder / "model.safetensors").exists() or (folder / "model.safetensors").stat().st_size
    status, _ = server.run(folder, resume=(folder / "config.toml").exists())
    assert status == 0
    return kills


@pytest.mark.parametrize("job", [*ENGINES, COMPILED], indirect=True, scope="module")
def test_killed_three_times_at_random(job, tmp_path):
    server, straight, places = job
    dice = random.Random(0)
    third = places[:len(places) // 3]
    moments = [dice.choice([i for i, place in enumerate(third) if place in kind]) for kind in (
        {"atomic.py"}, {"trainer.py", "guard.py"}, {"checkpoints.py", "run_folder.py"})]
    dice.shuffle(moments)
    assert live_and_die(server, tmp_path / "killed", moments) == 3
    assert_equal_runs(tmp_path / "killed", straight)


@pytest.mark.slow
@pytest.mark.parametrize("job", ENGINES, indirect=True, scope="module")
def test_killed_fifty_times_at_random(job, tmp_path):
    server, straight, places = job
    dice, kills, lives = random.Random(1), 0, 0
    while kills < 50:
        lives += 1
        kills += live_and_die(server, tmp_path / str(lives), [dice.randrange(len(places)) for _ in range(3)])
        assert_equal_runs(tmp_path / str(lives), straight)
