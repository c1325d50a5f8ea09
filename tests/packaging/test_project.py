"""pyproject.toml, constraints.txt, the Makefile and the library's messages say the same thing."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def pins() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines if line)}


def made_extras() -> list[str]:
    """The extras that `make` installs."""
    (first, *_) = re.findall(r"^EXTRAS := ([\w,]+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return first.split(",")


def test_make_pins_what_it_installs_within_the_ranges():
    wanted = [*PROJECT["dependencies"], *(line for extra in made_extras() for line in EXTRAS[extra])]
    for requirement in map(Requirement, wanted):
        pinned = pins().get(canonicalize_name(requirement.name))
        assert pinned, f"constraints.txt does not pin {requirement.name}"
        assert pinned in requirement.specifier, f"constraints.txt pins {requirement.name} {pinned}, not {requirement}"


def test_messages_name_extras_that_exist():
    """Each `ember-ml[extra]` that the library or the README tells a user to install is one of pyproject.toml, and the other way round."""
    files = [ROOT / "README.md", *(ROOT / "ember_ml").rglob("*.py"), *(ROOT / "ember_mlx").rglob("*.py")]
    named = {
        extra: path.name
        for path in files
        for found in re.findall(r"ember-ml\[([\w,-]+)\]", path.read_text())
        for extra in found.split(",")
    }
    assert {"torch", "mlx", "cuda"} <= named.keys()
    assert {extra: where for extra, where in named.items() if extra not in EXTRAS} == {}
    unused = EXTRAS.keys() - named.keys() - {"dev", "peers", "arrayapi"}
    assert not unused, f"nothing in the library asks for these extras; take them out until something does: {sorted(unused)}"


@pytest.mark.parametrize(
    "version, message",
    [(None, "found no './python'; install Python 3.11 or later"), ("3.9.6", "'./python' is Python 3.9.6")],
    ids=["missing", "too old"],
)
def test_make_says_which_python_it_needs(version, message, tmp_path):
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    if version:
        # Stands in for an old Python: it answers --version, and the check that it is new enough fails.
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo Python {version} && exit 0\nexit 1\n')
        python.chmod(0o755)
    done = subprocess.run(["make", "test", "PYTHON=./python"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert message in done.stdout
    assert not (tmp_path / ".venv").exists()
