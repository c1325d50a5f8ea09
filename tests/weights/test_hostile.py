"""Files that are damaged, or made to do damage: a WeightsError that names file and tensor, and no memory taken."""

import json
import tracemalloc

import numpy as np
import pytest
import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

import ember_ml as em
from ember_ml import weights
from ember_ml.errors import ConfigError, WeightsError

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
DATA = bytes(8)
LIMIT = 400_000  # bytes that reading a file of a few kilobytes may take, NumPy's arrays included


def build(header, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def ember(tensors: dict | None = None, **metadata: str) -> dict:
    return {"__metadata__": {"format": "ember", "version": "1"} | metadata} | (tensors or {})


def one(data: bytes = DATA, **fields) -> bytes:
    """A file of one tensor, "x.y", two float32 in eight bytes but for these fields."""
    return build({"x.y": F32 | fields}, data)


def two(begin: int, end: int, size: int) -> bytes:
    """Tensors "a" in bytes 0 to 8 and "x.y" in bytes begin to end."""
    return build({"a": F32, "x.y": F32 | {"data_offsets": [begin, end]}}, bytes(size))


def tie(text: str) -> bytes:
    return build(ember({"a": F32}, tied=text), DATA)


def nest(levels: int) -> str:
    """JSON of so many levels."""
    return '{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}"


FAULTS = {
    "empty file": (b"", "is truncated, or no safetensors file: it has 0 bytes"),
    "seven bytes": (b"\0" * 7, "it has 7 bytes"),
    "no header": (b"\0" * 8, "expected the header to be JSON"),
    "header longer than the file": (build({"a": F32}, length=5000), "truncated, or .* has 5000 bytes, 61 are there"),
    "header of 100 MB and one": (build({"a": F32}, DATA, 100_000_001), "100000001 bytes, at most 100000000"),
    "header of 2^64 - 1": (build({"a": F32}, DATA, 2 ** 64 - 1), "a header of 18446744073709551615 bytes"),
    "pickle": (b"\x80\x04\x95" + bytes(100), "no safetensors file"),
    "header not UTF-8": (build(b'{"\xff": 1}'), "header to be JSON: 'utf-8' codec"),
    "header not JSON": (build(b"{]"), "header to be JSON"),
    "header in UTF-16": (build("{}".encode("utf-16")), "header to be JSON"),
    "header cut": (build(b'{"a": {"dtype": "F32"'), "header to be JSON"),
    "two values": (build(b"{} {}"), "header to be JSON: Extra data"),
    "NaN": (build(b'{"a": NaN}'), "header to be JSON: NaN is no JSON"),
    "header a list": (build([1]), r"header to be a JSON object, got \[1\]"),
    "header a number": (build(b"1"), "header to be a JSON object, got 1"),
    "nested": (build(nest(50_000).encode()), "header to be JSON|expected dtype"),
    "number of 5000 digits": (build(b'{"a":' + b"1" * 5000 + b"}"), "header to be JSON|expected dtype"),
    "a tensor twice": (build(b'{"x.y": {}, "x.y": {}}'), "header to be JSON: 'x.y' stands there twice"),
    "a field twice": (build(b'{"x": {"dtype": "F32", "dtype": "F32"}}'), "'dtype' stands there twice"),
    "entry a list": (build({"x.y": ["F32", [2], [0, 8]]}, DATA), "'x.y': expected dtype, shape and data_offsets"),
    "entry null": (build({"x.y": None}), "tensor 'x.y': expected dtype, shape"),
    "no shape": (build({"x.y": {"dtype": "F32", "data_offsets": [0, 8]}}, DATA), "tensor 'x.y': expected dtype, shape"),
    "surplus field": (one(url="x"), "tensor 'x.y': expected dtype, shape"),
    "unknown dtype": (one(dtype="F8_E4M3"), r"'x.y': expected a dtype of BOOL.*got 'F8_E4M3'"),
    "dtype a list": (one(dtype=["F32"]), r"'x.y': expected a dtype of .*got \['F32'\]"),
    "shape a number": (one(shape=2), "'x.y': expected a shape .*got 2"),
    "shape of floats": (one(shape=[2.0]), r"'x.y': expected a shape .*got \[2.0\]"),
    "shape of bools": (one(shape=[2, True]), r"'x.y': expected a shape .*got \[2, True\]"),
    "negative lengths": (one(shape=[-1, -2]), r"'x.y': expected a shape .*got \[-1, -2\]"),
    "too many axes": (one(shape=[1] * 64 + [2]), "'x.y': expected a shape of at most 64"),
    "product of 2^64": (one(shape=[2 ** 32, 2 ** 30]), "'x.y': expected a shape .*2\\^63 bytes"),
    "product that wraps to 8": (one(shape=[2 ** 62 + 1, 2]), "'x.y': expected a shape"),
    "length of 2^70": (one(shape=[2 ** 70]), "'x.y': expected a shape"),
    "empty but too long": (build({"x.y": {"dtype": "F32", "shape": [0, 2 ** 62], "data_offsets": [0, 0]}}), "a shape"),
    "terabytes": (one(shape=[2 ** 40]), r"F32 of shape \[1099511627776\] takes 4398046511104"),
    "shape too small": (one(shape=[1]), r"'x.y': F32 of shape \[1\] takes 4 bytes.*hold 8"),
    "offsets a number": (one(data_offsets=8), "'x.y': expected data_offsets"),
    "one offset": (one(data_offsets=[8]), "'x.y': expected data_offsets"),
    "three offsets": (one(data_offsets=[0, 8, 8]), "'x.y': expected data_offsets"),
    "offsets reversed": (one(data_offsets=[8, 0]), r"'x.y': expected data_offsets.*\[8, 0\]"),
    "negative offset": (one(data_offsets=[-8, 0]), "'x.y': expected data_offsets"),
    "offset past the end": (one(data_offsets=[8, 16]), "'x.y': ends at byte 16.*there are 8"),
    "data truncated": (one(DATA[:5]), "'x.y': ends at byte 8 of the data, but there are 5; .*truncated"),
    "overlap": (two(4, 12, 12), "tensor 'x.y': overlaps tensor 'a'"),
    "the same bytes": (two(0, 8, 8), "tensor 'x.y': overlaps tensor 'a'"),
    "gap": (two(12, 20, 20), "tensor 'x.y': leaves a gap after tensor 'a'"),
    "gap at the start": (one(bytes(12), data_offsets=[4, 12]), "'x.y': leaves a gap after the header"),
    "bytes at the end": (one(bytes(11)), "3 bytes after tensor 'x.y' belong to no tensor"),
    "bools that are none": (build({"x.y": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\x01\x02"),
                            "tensor 'x.y': expected bools as bytes 0 and 1"),
    "metadata a list": (build({"__metadata__": ["a"]}), r"metadata that maps names to strings, got \['a'\]"),
    "metadata of numbers": (build({"__metadata__": {"step": 3}}), "maps names to strings, got {'step': 3}"),
    "metadata nested": (build({"__metadata__": {"config": {"a": 1}}}), "metadata that maps names to strings"),
    "metadata twice": (build(b'{"__metadata__": {"a": "1", "a": "2"}}'), "'a' stands there twice"),
    "version missing": (build({"__metadata__": {"format": "ember"}}), "version '1' of Ember's metadata, got None"),
    "version to come": (build(ember(version="2")), "got '2'; if a newer Ember wrote the file: pip install -U ember-ml"),
    "config not JSON": (build(ember(config="{")), "expected the config to be JSON"),
    "config a list": (build(ember(config="[]")), r"config to be a JSON object of at most 32 levels, got \[\]"),
    "config null": (build(ember(config="null")), "config to be a JSON object"),
    "config with infinity": (build(ember(config='{"a": Infinity}')), "config to be JSON: Infinity is no JSON"),
    "config key twice": (build(ember(config='{"a": 1, "a": 2}')), "config to be JSON: 'a' stands there twice"),
    "config of 33 levels": (build(ember(config=nest(33))), "config to be .* at most 32 levels"),
    "config of 50000 levels": (build(ember(config=nest(50_000))), "expected the config to be"),
    "tied to nothing": (tie('{"x.y": "b"}'), "'x.y': expected a tie to a stored tensor, got 'b'"),
    "tied to itself": (tie('{"x.y": "x.y"}'), "'x.y': expected a tie to a stored tensor"),
    "tied and stored": (tie('{"a": "a"}'), "'a': expected a tie to a stored tensor"),
    "tied to a number": (tie('{"x.y": 1}'), "'x.y': expected a tie to a stored tensor, got 1"),
    "tied a list": (tie('["a"]'), "expected the tied names to be a JSON object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_file_is_an_error_that_says_what_is_wrong(fault, tmp_path):
    data, message = FAULTS[fault]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        weights.load(path, device="numpy")
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and len(text) < len(str(path)) + 400
    text.encode()


def test_the_faults_are_in_the_files_and_not_in_the_reader(tmp_path):
    """What `build` makes without a fault loads."""
    (tmp_path / "w").write_bytes(build(ember({"x.y": F32}, tied='{"z": "x.y"}', config=nest(32)), DATA))
    found, config, _ = weights.load(tmp_path / "w", device="numpy")
    assert found["x.y"].tolist() == [0.0, 0.0] and found["z"] is found["x.y"] and list(config) == ["a"]


@pytest.mark.parametrize("backend", ["mlx"], indirect=True)
def test_an_axis_that_the_engine_cannot_count_is_named(backend, tmp_path):
    (tmp_path / "w").write_bytes(build({"x.y": {"dtype": "F32", "shape": [0, 2 ** 40], "data_offsets": [0, 0]}}))
    assert weights.load(tmp_path / "w", device="numpy")[0]["x.y"].shape == (0, 2 ** 40)
    with pytest.raises(WeightsError, match=r"tensor 'x.y': mlx cannot hold shape \[0, 1099511627776\]"):
        weights.load(tmp_path / "w", device="mlx")


def test_names_from_a_file_are_cut_in_messages(tmp_path):
    (tmp_path / "w").write_bytes(build({"x" * 100_000: None, "\ud800": None}))
    with pytest.raises(WeightsError) as caught:
        weights.load(tmp_path / "w", device="numpy")
    assert len(str(caught.value)) < 500


def test_a_missing_file_is_the_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.safetensors"):
        weights.load(tmp_path / "nowhere.safetensors")


# At random


def sample() -> bytes:
    """A file with everything in it: dtypes, a tie, an empty tensor, a scalar, config, metadata."""
    import tempfile
    from pathlib import Path

    shared = em.tensor([1.0, 2.0, 3.0], device="numpy")
    tensors = {"a.weight": shared, "b": em.tensor([True, False], device="numpy"), "head": shared,
               "c": em.tensor(np.arange(6, dtype=np.int16).reshape(2, 3), device="numpy"),
               "d": em.tensor([1 + 2j], device="numpy"), "e": em.zeros((0, 4), "bfloat16", "numpy"),
               "s": em.tensor(7, device="numpy"), "h": em.ones((3,), "bfloat16", "numpy")}
    with tempfile.TemporaryDirectory() as folder:
        weights.save(Path(folder) / "w", tensors, {"a": {"b": [1, "x", None]}}, {"step": "3"})
        return (Path(folder) / "w").read_bytes()


SAMPLE = sample()


def attempt(path, data: bytes):
    """What `load` makes of these bytes, or None where it refuses; no other error, no memory beyond what is there."""
    path.write_bytes(data)
    tracemalloc.start()
    try:
        found = weights.load(path, device="numpy")[0]
    except WeightsError:
        found = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < LIMIT + 10 * len(data)
    return found


def assert_as_the_library(found, data: bytes):
    """Whatever is accepted is what the safetensors library reads in it."""
    theirs = dict(safetensors.deserialize(data))
    assert theirs.keys() <= found.keys()
    for name, entry in theirs.items():
        assert found[name].shape == tuple(entry["shape"])
        assert np.asarray(found[name]).tobytes() == bytes(entry["data"])


def test_truncated_anywhere_it_is_refused(tmp_path):
    assert attempt(tmp_path / "w", SAMPLE) is not None
    for n in range(len(SAMPLE)):
        assert attempt(tmp_path / "w", SAMPLE[:n]) is None, n


@settings(max_examples=400)
@given(edits=st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bits_are_refused_or_read(edits, tmp_path_factory):
    data = bytearray(SAMPLE)
    for position, flip in edits:
        data[position] ^= flip
    found = attempt(tmp_path_factory.getbasetemp() / "flipped", bytes(data))
    if found is not None:
        assert_as_the_library(found, bytes(data))


@settings(max_examples=200)
@given(data=st.data())
def test_pieces_moved_about_are_refused_or_read(data, tmp_path_factory):
    """Cuts, repeats and insertions; the length of the header is mended, so that the damage reaches the JSON."""
    length = int.from_bytes(SAMPLE[:8], "little")
    text, rest = SAMPLE[8:8 + length], SAMPLE[8 + length:]
    a, b = sorted(data.draw(st.tuples(st.integers(0, length), st.integers(0, length))))
    pieces = [b"", text[a:b] * 2, b"0", b"-", b"9" * 20, b"[", b"]", b'"', b",", b"{}", b"null", b"1e9"]
    middle = data.draw(st.sampled_from(pieces))
    made = build(text[:a] + middle + text[b:], rest)
    found = attempt(tmp_path_factory.getbasetemp() / "moved", made)
    if found is not None:
        assert_as_the_library(found, made)


@settings(max_examples=200)
@given(junk=st.binary(max_size=200), length=st.integers(0, 2 ** 64 - 1))
def test_junk_is_refused(junk, length, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "junk"
    assert attempt(path, length.to_bytes(8, "little") + junk) is None
    assert attempt(path, len(junk).to_bytes(8, "little") + junk) is None or junk.strip() == b"{}"


NUMBERS = st.one_of(st.integers(-2, 12), st.sampled_from([2 ** 31, 2 ** 61, 2 ** 62, 2 ** 64, 2 ** 70]))
ENTRIES = st.fixed_dictionaries({"dtype": st.sampled_from(["F32", "U8", "BF16", "C64", "I64"]),
                                 "shape": st.lists(st.integers(0, 4) | NUMBERS, max_size=3),
                                 "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2)})


@settings(max_examples=400)
@given(entries=st.dictionaries(st.text(max_size=3), ENTRIES, max_size=3), size=st.integers(0, 24))
def test_headers_are_accepted_exactly_where_the_library_accepts_them(entries, size, tmp_path_factory):
    entries.pop("__metadata__", None)
    made = build(entries, bytes(size))
    try:
        safetensors.deserialize(made)
        theirs = True
    except safetensors.SafetensorError:
        theirs = False
    found = attempt(tmp_path_factory.getbasetemp() / "header", made)
    # Alone in this we are stricter: the lengths of an empty tensor, multiplied, must fit 63 bits as well.
    huge = any(n >= 2 ** 31 for e in entries.values() for n in e["shape"])
    assert (found is not None) == theirs or (huge and found is None)


@settings(max_examples=100)
@given(shapes=st.lists(st.tuples(st.sampled_from(["F32", "U8", "BF16", "C64", "I64"]),
                                 st.lists(st.integers(0, 4), max_size=3)), max_size=5), order=st.randoms())
def test_sound_headers_in_any_order_are_read(shapes, order, tmp_path_factory):
    entries, end = {}, 0
    for i, (code, shape) in enumerate(shapes):
        nbytes = {"F32": 4, "U8": 1, "BF16": 2, "C64": 8, "I64": 8}[code] * int(np.prod(shape))
        entries[f"t{i}"] = {"dtype": code, "shape": shape, "data_offsets": [end, end + nbytes]}
        end += nbytes
    shuffled = list(entries.items())
    order.shuffle(shuffled)
    made = build(dict(shuffled), order.randbytes(end))
    found = attempt(tmp_path_factory.getbasetemp() / "sound", made)
    assert found is not None
    assert_as_the_library(found, made)


# What `save` does not take


@pytest.mark.parametrize("config, message", [
    ([1], "cannot be stored as JSON: .*expected the config to be a JSON object"),
    ({"a": float("inf")}, "cannot be stored as JSON: Out of range float"),
    ({"a": {1, 2}}, "cannot be stored as JSON: Object of type set"),
    ({"a": (1, 2)}, r"\{'a': \(1, 2\)\} would come back as \{'a': \[1, 2\]\}"),
    ({1: 2}, r"\{1: 2\} would come back as \{'1': 2\}"),
])
def test_a_config_that_json_would_change_is_not_saved(config, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        weights.save(tmp_path / "w", {}, config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("levels, message", [(33, "of at most 32 levels"), (100_000, "cannot be stored as JSON")])
def test_a_config_too_deep_to_load_is_not_saved(levels, message, tmp_path):
    deep = {}
    for _ in range(levels - 1):
        deep = {"a": deep}
    with pytest.raises(ConfigError, match=message):
        weights.save(tmp_path / "w", {}, deep)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tensors, metadata, message", [
    ({"x": np.ones(2)}, None, "tensor 'x': expected an EmberTensor, got ndarray; wrap it with em.tensor"),
    ({1: em.tensor([1.0], device="numpy")}, None, "expected names that are strings, and not __metadata__; got 1"),
    ({"__metadata__": em.tensor([1.0], device="numpy")}, None, "got '__metadata__'"),
    ({"\ud800": em.tensor([1.0], device="numpy")}, None, "expected names and metadata in Unicode"),
    ({}, {"step": 3}, "metadata takes strings by name, .*got 'step': 3"),
    ({}, {"config": "{}"}, "format, version, config, tied, crc32 are Ember's own names; got 'config'"),
])
def test_what_the_format_cannot_hold_is_not_saved(tensors, metadata, message, tmp_path):
    with pytest.raises(WeightsError, match=message):
        weights.save(tmp_path / "w", tensors, metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_header_over_the_limit_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("ember_ml.weights.header.MAX_HEADER", 1000)
    with pytest.raises(WeightsError, match="take 1[0-9]{3} bytes, the format allows 1000"):
        weights.save(tmp_path / "w", {}, metadata={"a": "x" * 1000})
    assert list(tmp_path.iterdir()) == []
