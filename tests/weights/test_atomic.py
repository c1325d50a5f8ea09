"""A save that fails or is killed leaves the old file, or the new one, whole."""

import os
import subprocess
import sys
import textwrap

import pytest

import ember_ml as em
from ember_ml import weights


def write(path, value: float, n: int = 4):
    weights.save(path, {"x": em.full((n,), value, device="numpy")}, {"value": value})


def value(path) -> float:
    """The one value of a file, after looking that all of it belongs together."""
    found, config, _ = weights.load(path, device="numpy")
    (only,) = set(found["x"].tolist())
    assert config == {"value": only}
    return only


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(step, error, tmp_path, monkeypatch):
    path = tmp_path / "w"
    write(path, 1.0)
    before = path.read_bytes()

    def fail(*_):
        raise error

    engine = type(em.tensor([1.0], device="numpy").backend)
    with monkeypatch.context() as m:
        m.setattr(*{"write": (engine, "to_numpy"), "fsync": (os, "fsync"), "rename": (os, "replace")}[step], fail)
        with pytest.raises(type(error)):
            write(path, 2.0)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["w"]
    write(path, 3.0)
    assert value(path) == 3.0


def test_data_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    """fsync of the file, then the rename, then fsync of the folder."""
    path, calls, real = tmp_path / "w", [], (os.fsync, os.replace)
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("fsync", os.fstat(fd).st_size)) or real[0](fd))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append(("replace", os.path.dirname(a), b)) or real[1](a, b))
    write(path, 1.0)
    folder = os.path.realpath(tmp_path)
    assert calls[0] == ("fsync", path.stat().st_size) and calls[1] == ("replace", folder, os.path.join(folder, "w"))
    assert [c[0] for c in calls] == ["fsync", "replace", "fsync"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such folder to save in; make it first: .*nowhere'"):
        write(tmp_path / "nowhere" / "w", 1.0)


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "runs").mkdir()
    write(tmp_path / "runs" / "w", 1.0)
    (tmp_path / "latest").symlink_to(tmp_path / "runs" / "w")
    write(tmp_path / "latest", 2.0)
    assert (tmp_path / "latest").is_symlink() and value(tmp_path / "runs" / "w") == 2.0


def test_a_new_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "other").write_text("")
    write(tmp_path / "w", 1.0)
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_relative_path_is_one_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("w", 1.0)
    assert value("w") == 1.0 and os.listdir() == ["w"]


def run(code: str, *args) -> subprocess.CompletedProcess:
    """The code in a new Python that finds the same packages."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


# One process without an engine's threads, that forks savers and kills them.
KILLS = """
    import os, random, signal, sys, time
    import ember_ml as em
    from ember_ml import weights

    path, rounds = sys.argv[1], int(sys.argv[2])
    random.seed(1)

    def save(v):
        x = em.full((150_000,), float(v), device="numpy")
        weights.save(path, {"a": x, "b": em.full((3,), float(v), device="numpy")}, {"v": v})

    def version():
        tensors, config, _ = weights.load(path, device="numpy")
        a, b = tensors["a"].data, tensors["b"].data
        assert (a == config["v"]).all() and (b == config["v"]).all() and a.shape == (150_000,), config
        return config["v"]

    save(0)
    last, grown, stray = 0, 0, 0
    for _ in range(rounds):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            v = last
            while True:
                v += 1
                save(v)
                os.write(write, v.to_bytes(8, "little"))
        os.close(write)
        os.read(read, 8)                    # it is under way
        time.sleep(random.random() * 0.02)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = last + 1                     # the last version that the saver reported as done
        while chunk := os.read(read, 8):
            said = int.from_bytes(chunk, "little")
        os.close(read)
        now = version()
        assert said <= now <= said + 1, (said, now)
        last = now
    names = os.listdir(os.path.dirname(path))
    stray = [n for n in names if n != os.path.basename(path)]
    assert all(n.startswith(".") and n.endswith(".tmp") for n in stray), stray
    sys.stdout.write(f"{last} {len(stray)}")
"""


def test_killed_while_saving_the_file_is_a_whole_version(tmp_path):
    """SIGKILL at 40 random moments: the file is the last version that was reported, or the one after it."""
    path = tmp_path / "model.safetensors"
    done = run(KILLS, path, 40)
    assert done.returncode == 0, done.stderr
    versions, stray = map(int, done.stdout.split())
    assert versions >= 40 and stray >= 5, "the kills did not fall into saves: the test shows nothing"
    # What killed savers left behind is in nobody's way.
    assert [p.name for p in tmp_path.glob("*.safetensors")] == ["model.safetensors"]
    write(path, 1.0)
    assert value(path) == 1.0


KILLED_AT = """
    import os, signal, sys
    import ember_ml as em
    from ember_ml import weights

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    path, step = sys.argv[1:]
    real = os.replace
    if step == "data":                      # the header is written, the tensor is not
        type(em.tensor([1.0], device="numpy").backend).to_numpy = kill
    elif step == "fsync":
        os.fsync = kill
    elif step == "rename":
        os.replace = kill
    else:
        os.replace = lambda a, b: (real(a, b), kill())
    weights.save(path, {"x": em.full((1000,), 2.0, device="numpy")}, {"value": 2.0})
"""


@pytest.mark.parametrize("step, expected", [("data", 1.0), ("fsync", 1.0), ("rename", 1.0), ("renamed", 2.0)])
def test_killed_at_each_step_the_file_is_whole(step, expected, tmp_path):
    path = tmp_path / "model.safetensors"
    write(path, 1.0)
    done = run(KILLED_AT, path, step)
    assert done.returncode == -9, done.stderr
    assert value(path) == expected
    stray = [p.name for p in tmp_path.iterdir() if p != path]
    assert len(stray) == (expected == 1.0)
    assert all(name.startswith(".model.safetensors.") and name.endswith(".tmp") for name in stray)


def test_two_savers_at_once_leave_one_whole_file(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    path = tmp_path / "w"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: write(path, float(i), 10_000), range(40)))
    assert 0.0 <= value(path) < 40.0 and [p.name for p in tmp_path.iterdir()] == ["w"]
