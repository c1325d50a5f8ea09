"""The wheel and the sdist as a stranger meets them: built from the repository's files, installed elsewhere, used there.

Nothing is downloaded: the build backend and the dependencies are those of this environment.
"""

import email
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from ember_ml.kernels import source_text

ROOT = Path(__file__).parents[2]
KERNELS = {"metal": ".metal", "cuda": ".cu"}


def run(*command, cwd: Path, **env) -> str:
    """Standard output of a command that must succeed; its whole output is in the failure otherwise."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=os.environ | env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """Folder with one wheel and one sdist, built in a copy of what git holds or would take in."""
    checkout = tmp_path_factory.mktemp("build") / "checkout"
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    for name in filter(None, listed.split("\0")):
        # Tests are not packed, and their reference data would only cost time. A deleted file may still be listed.
        if not name.startswith("tests/") and (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, checkout / name)
    run(sys.executable, "-m", "hatchling", "build", cwd=checkout)
    return checkout / "dist"


@pytest.fixture(scope="module", params=["*.whl", "*.tar.gz"], ids=["wheel", "sdist"])
def installed(request, dist, tmp_path_factory):
    """Folder into which pip has installed the wheel, or the wheel that it builds from the sdist."""
    (archive,) = dist.glob(request.param)
    home = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "install", *options, "--target", home, archive, cwd=home.parent)
    return home


def test_the_wheel_holds_the_packages_and_the_kernels_only(dist):
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [n for n in names if n.endswith(".dist-info/METADATA")]
        info = email.message_from_bytes(archive.read(metadata))
    assert {n.split("/")[0] for n in names} == {"ember_ml", "ember_mlx", metadata.split("/")[0]}
    expected = {
        f"ember_ml/_kernels/{folder}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, suffix in KERNELS.items()
        for path in (ROOT / folder).rglob(f"*{suffix}")
    }
    assert expected and expected <= set(names)
    assert [n for n in names if n.startswith("ember_ml/_kernels/") and n.endswith(".py")] == []
    assert info["Name"] == "ember-ml"
    assert info["License-Expression"] == "Apache-2.0"
    # On Linux and Intel Macs the core must not bring an engine.
    assert [r for r in info.get_all("Requires-Dist") if r.startswith(("torch", "mlx", "cupy")) and ";" not in r] == []


def test_the_sdist_is_small_and_whole(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "NOTICE", "ember_ml/__init__.py", "ember_mlx/__init__.py"} <= names
    assert not [name for name in names if name.startswith("tests/")]
    assert sdist.stat().st_size < 2**20


def test_the_installed_package_works_outside_the_checkout(installed, tmp_path):
    script = shutil.copy(Path(__file__).with_name("smoke.py"), tmp_path)
    kernels = {
        f"{folder}/{path.stem}": source_text(folder, path.stem)
        for folder, suffix in KERNELS.items()
        for path in (ROOT / folder).glob(f"*{suffix}")
    }
    found = json.loads(run(sys.executable, "-P", script, *kernels, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(found["file"]).is_relative_to(installed)
    assert found["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert found["engines_after_import"] == []
    # d/dx of sum(x**2 * y) is 2xy, and of sum(x**2 * y) by y is x**2, at x = (1, 2, 3), y = (1, -1, 2).
    assert found["value"] == 1 - 4 + 18
    assert found["gradients"] == [[2, -4, 12], [1, 4, 9]]
    assert kernels and found["kernels"] == kernels


def test_the_installed_command_runs(installed, tmp_path):
    help_text = run(installed / "bin" / "ember", "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    for command in ("train", "generate", "parity", "doctor"):
        assert command in help_text
