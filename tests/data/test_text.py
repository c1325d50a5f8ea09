"""Documents out of text, JSON lines, parquet and FASTA files, and what is said of broken ones."""

import gzip
import json
import sys

import numpy as np
import pytest

from ember_ml.data import IGNORED, alphabet, check_fingerprint, open_source
from ember_ml.data.text.tokenizers import Pieces
from ember_ml.data.vision import read_image
from ember_ml.errors import ConfigError, DataError, EmberError, MissingExtra

WORDS = "it was the best of times it was the worst of times it was the age of wisdom".split()


def lines_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, 30))) + f" {i}" for i in range(count)]


@pytest.fixture
def jsonl(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": t, "kind": "long" if len(t) > 60 else "short"}) + "\n" for t in lines_of(200)))
    return path


def table(path, **changes):
    return {"kind": "jsonl", "files": str(path), "length": 64, "batch": 4, **changes}


def texts(documents, tokenizer):
    return [tokenizer.decode(documents[i]) for i in range(len(documents))]


def test_every_line_is_a_document_on_one_side(jsonl):
    source = open_source(table(jsonl), 0)
    train, held = texts(source._train, source.alphabet), texts(source._held, source.alphabet)
    assert sorted(train + held) == sorted(lines_of(200)) and 2 <= len(held) <= 25
    x, y, segments = source.batch(0)
    assert x.shape == y.shape == segments.shape == (4, 64) and source.task == "next_token" and source.vocab_size == 257
    assert "rows 9" in source.describe()


def test_a_document_never_changes_sides(jsonl, tmp_path):
    """Neither more documents nor another order, seed or file move one from training to held out."""
    before = open_source(table(jsonl), 0)
    other = tmp_path / "more.jsonl"
    other.write_text("".join(reversed(jsonl.read_text().splitlines(keepends=True))))
    with other.open("a") as f:
        f.writelines(json.dumps({"text": t + "!"}) + "\n" for t in lines_of(100, 1))
    after = open_source(table(other), 5)
    assert set(texts(before._held, before.alphabet)) <= set(texts(after._held, after.alphabet))
    assert set(texts(before._train, before.alphabet)) <= set(texts(after._train, after.alphabet))


def test_prompts_are_not_judged(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"q": f"ask {i}?", "a": f" say {i}."}) + "\n" for i in range(60)))
    source = open_source(table(path, prompt="q", completion="a", layout="padded", length=32), 0)
    x, y = source.batch(0)
    for row, targets in zip(x, y):
        judged = targets[targets != IGNORED]
        assert source.alphabet.decode(judged).startswith(" say") and judged[-1] == source.alphabet.end
        assert source.alphabet.decode(row[:4]) == "ask "
    with pytest.raises(ConfigError, match='prompts need layout = "packed" or "padded"'):
        open_source(table(path, prompt="q", completion="a", layout="windows"), 0)
    with pytest.raises(ConfigError, match="or prompt = FIELD with completion = FIELD"):
        open_source(table(path, prompt="q"), 0)


def test_a_label_makes_it_classification(jsonl):
    source = open_source(table(jsonl, label="kind", length=200), 0)
    assert source.task == "classification" and source.class_names == ["long", "short"] and source.classes == 2
    seen = 0
    for tokens, lengths, labels in [source.batch(i) for i in range(source.per_epoch)] + list(source.held_out()):
        assert tokens.dtype == lengths.dtype == labels.dtype == np.int32
        for row, n, label in zip(tokens, lengths, labels):
            assert len(source.alphabet.decode(row[:n])) == n and (row[n:] == 0).all()
            assert label == (0 if n > 60 else 1)
            seen += 1
    assert seen > 190
    share = np.mean([len(t) <= 60 for t in texts(source._held, source.alphabet)])
    assert source.baselines()["commonest class"] == pytest.approx(share if np.mean(source._y) > 0.5 else 1 - share)
    words = jsonl.with_name("words.jsonl")
    words.write_text("".join(json.dumps({"text": t, "kind": "ab"[i % 2]}) + "\n" for i, t in enumerate(
        t.upper() if i % 2 else t for i, t in enumerate(lines_of(200)))))
    assert open_source(table(words, label="kind", held_out=0.3), 0).baselines()["naive Bayes of token pairs"] == 1.0
    with pytest.raises(DataError, match="at least 2 classes in the field 'text', got"):
        one = jsonl.with_name("one.jsonl")
        one.write_text('{"text": "a"}\n' * 5)
        open_source(table(one, label="text"), 0)


def test_gzip_patterns_and_held_out_files(jsonl, tmp_path):
    for i in range(3):
        with gzip.open(tmp_path / f"shard{i}.jsonl.gz", "wt") as f:
            f.writelines(json.dumps({"text": t}) + "\n" for t in lines_of(20, i))
    source = open_source(table(tmp_path / "shard*.gz", held_out_files=str(jsonl)), 0)
    assert len(source._train) == 60 and len(source._held) == 200
    with pytest.raises(DataError, match="is among both"):
        open_source(table(jsonl, held_out_files=str(jsonl)), 0)
    with pytest.raises(DataError, match="listed twice"):
        open_source(table(jsonl, files=[str(jsonl), str(jsonl)]), 0)


def test_ranks_read_parts_that_add_up(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("\n".join(lines_of(30, i)))
    whole = {"kind": "text", "files": str(tmp_path / "*.txt"), "documents": "line", "length": 16, "batch": 2, "held_out": 0.1}

    def all_of(**changes):
        source = open_source({**whole, **changes}, 0)
        return texts(source._train, source.alphabet) + texts(source._held, source.alphabet), source.files

    for world in (2, 3, 5, 8):                                   # by file, and with 8 by document
        parts = [all_of(rank=r, world=world) for r in range(world)]
        assert sorted(t for docs, _ in parts for t in docs) == sorted(all_of()[0])
        assert world == 8 or sum(len(files) for _, files in parts) == 5
    with pytest.raises(ConfigError, match="rank < world, received rank=2, world=2"):
        all_of(rank=2, world=2)
    with pytest.raises(ConfigError, match="name them: letters"):
        all_of(rank=0, world=2, tokenizer="characters")


@pytest.mark.parametrize("documents, count", [("file", 1), ("paragraph", 2), ("line", 3)])
def test_what_a_document_is(tmp_path, documents, count):
    path = tmp_path / "x.txt"
    path.write_bytes("one two three\r\nfour five\r\n\r\n\r\nsix seven äh\n".encode())
    source = open_source({"kind": "text", "files": str(path), "documents": documents, "length": 2, "batch": 1, "held_out": 0.3,
                          "tokenizer": "characters"}, 0)
    assert len(source._train) + len(source._held) == (2 if count == 1 else count)    # a lone document is cut in two
    train, held = texts(source._train, source.alphabet), texts(source._held, source.alphabet)
    if documents == "file":
        assert "".join(train + held) == "one two three\nfour five\n\n\nsix seven äh\n"
    else:
        assert held == ["six seven äh"] and train[0] == "one two three" + ("\nfour five" if documents == "paragraph" else "")
    assert source.alphabet.decode(source.sample(3)[0]) == held[0][:3]
    again = alphabet({"kind": "text", "files": str(path), "documents": documents, "length": 2, "batch": 1, "tokenizer": "characters"})
    assert again.letters == source.alphabet.letters
    assert alphabet({"kind": "text", "files": "gone", "length": 2, "batch": 1, "tokenizer": "characters", "letters": "ab"}).size == 3


def test_records_of_fasta_files(tmp_path):
    path = tmp_path / "x.fna"
    rng = np.random.default_rng(0)
    path.write_text("".join(f">r{i}\n{''.join(rng.choice(list('ACGT'), 50))}\n" for i in range(6)))
    source = open_source({"kind": "fasta", "files": str(path), "length": 16, "batch": 2, "held_out": 0.3, "layout": "packed"}, 0)
    assert (len(source._train), len(source._held)) == (4, 2) and source.vocab_size == 5
    assert 1.5 < source.baselines()["counting, order 1"] < 3.0


def test_parquet_and_near_columns(tmp_path):
    polars = pytest.importorskip("polars", reason="the extra polars is not installed")
    path = tmp_path / "x.parquet"
    polars.DataFrame({"text": lines_of(40), "label": [i % 3 for i in range(40)]}).write_parquet(path)
    config = {**table(path), "kind": "parquet", "held_out": 0.3}
    source = open_source(config, 0)
    assert sorted(texts(source._train, source.alphabet) + texts(source._held, source.alphabet)) == sorted(lines_of(40))
    assert open_source({**config, "label": "label"}, 0).class_names == ["0", "1", "2"]
    with pytest.raises(DataError, match="expected a column 'txt'; got 'text', 'label'; did you mean 'text'"):
        open_source({**config, "text": "txt"}, 0)
    raw = path.read_bytes()
    path.write_bytes(raw[:-20])
    with pytest.raises(DataError, match="cannot be read as parquet .*fetch the file again"):
        open_source(config, 0)


def test_tokens_from_an_array_on_disk(tmp_path):
    tokens = np.random.default_rng(0).integers(0, 250, 5000).astype(np.uint8)
    np.save(tmp_path / "t.npy", tokens)
    config = {"kind": "tokens", "file": str(tmp_path / "t.npy"), "tokenizer": "bytes", "length": 16, "batch": 4, "held_out": 0.1}
    source = open_source(config, 0)
    assert isinstance(source._train.tokens, np.memmap) and source._train.tokens.size == 4500
    x, y = source.batch(5)
    for row, targets in zip(x, y):
        at = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(tokens[:4500], 16) == row).all(1))
        assert len(at) == 1 and np.array_equal(targets, tokens[at[0] + 1:at[0] + 17])
    assert sum(y.size for _, y in source.held_out()) == 499 // 16 * 16 and len(source.baselines()) > 3
    assert alphabet(config).size == 257
    np.save(tmp_path / "t.npy", tokens.astype(np.int32) + 10)
    with pytest.raises(DataError, match="t.npy: expected tokens from 0 to 256, got 10 to 259; name the tokenizer that made them"):
        open_source(config, 0)
    np.save(tmp_path / "t.npy", tokens / 2)
    with pytest.raises(DataError, match="array of integers .N,., got 1 file, float64"):
        open_source(config, 0)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    for name in ("polars", "tokenizers", "PIL"):
        monkeypatch.setitem(sys.modules, name, None)
    for extra, call in (("polars", lambda: open_source({**table(tmp_path / "x.txt"), "kind": "parquet"}, 0)),
                        ("tokenizers", lambda: Pieces(tmp_path / "x.txt")), ("vision", lambda: read_image(tmp_path / "x.txt", 2, 2))):
        (tmp_path / "x.txt").write_text("x")
        with pytest.raises(MissingExtra, match=rf'not installed; run: pip install "ember-ml\[{extra}\]"'):
            call()


BROKEN = [
    (b'{"text": "a"}\n{"text": "b', "x.jsonl, line 2: the file ends in mid-line, after 11 bytes of it; fetch .* or delete this line.*skip"),
    (b'{"text": "a"}\n{"text": b}\n', r"line 2: expected a JSON object \(Expecting value"),
    (b'{"text": "a"}\n[1, 2]\n', "line 2: expected a JSON object, such as .*; got a list"),
    (b'{"txet": "a"}\n', "line 1: expected a field 'text'; got 'txet'; did you mean 'txet'"),
    (b'{"prompt": "a"}\n', "got 'prompt'; name what there is in .data.: text = \"FIELD\", or prompt = \"FIELD\" and completion"),
    (b'{"text": 5}\n', "line 1: expected field 'text' to be a string, got 5"),
    (b'\n{"text": "\xff"}\n', "line 2: expected UTF-8 text, got the byte 0xff"),
    (b"", "expected one JSON object a line; the file is empty"),
    (b"[" * 100_000 + b"\n", "line 1: expected a JSON object"),
]


@pytest.mark.parametrize("raw, words", BROKEN, ids=range(len(BROKEN)))
def test_says_what_is_wrong_with_a_line(tmp_path, raw, words):
    path = tmp_path / "x.jsonl"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=words):
        open_source(table(path), 0)


def test_a_byte_order_mark_is_no_text(tmp_path):
    for name, kind, text in (("x.txt", "text", "to be or not to be"), ("x.jsonl", "jsonl", '{"text": "to be or not to be"}\n{"text": "is it?"}\n')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        source = open_source({"kind": kind, "files": str(tmp_path / name), "layout": "windows", "length": 2, "batch": 1, "held_out": 0.2,
                              "split": "tail"}, 0)
        assert source.first().startswith("to be")


def test_bad_lines_can_be_left_out_and_are_counted(jsonl):
    with jsonl.open("a") as f:
        f.write('nonsense\n{"text": "cut')
    with pytest.raises(DataError, match="line 201"):
        open_source(table(jsonl), 0)
    source = open_source(table(jsonl, bad_lines="skip"), 0)
    assert "2 lines left out" in source.describe() and "mid-line" in source.skipped[1]


@pytest.mark.parametrize("raw, words", [(b"", "the file is empty"), (b"ok\nbad \xe9 byte\n", "x.txt, line 2: expected UTF-8 text, got the byte 0xe9"),
                                        (b"ok\ncut \xc3", "line 2: the file ends in the middle of a character")])
def test_says_what_is_wrong_with_a_text(tmp_path, raw, words):
    path = tmp_path / "x.txt"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=words):
        open_source({"kind": "text", "files": str(path), "length": 4, "batch": 1}, 0)


def test_says_which_file_is_missing(jsonl, tmp_path):
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(jsonl.read_bytes())[:-40])
    for name, words in (("y.jsonl", "no such file; did you mean x.jsonl"), ("*.json", "no file fits this pattern"), ("", "is a folder; name"),
                        ("cut.jsonl.gz", "damaged or cut short")):
        with pytest.raises(EmberError, match=words):
            open_source(table(tmp_path / name), 0)
    with pytest.raises(DataError, match="at least one file"):
        open_source(table(jsonl, files=[]), 0)


def test_a_file_that_changed_is_told(jsonl, tmp_path):
    recorded = open_source(table(jsonl), 0).fingerprint()
    assert recorded == json.loads(json.dumps(recorded)) and recorded[0]["size"] == jsonl.stat().st_size
    check_fingerprint(recorded, open_source(table(jsonl), 1).fingerprint())
    text = jsonl.read_text()
    jsonl.write_text(text.replace("best", "rest"))
    with pytest.raises(DataError, match="x.jsonl: has changed since the run began: its .* bytes are others now; put the old data back"):
        check_fingerprint(recorded, open_source(table(jsonl), 0).fingerprint())
    jsonl.write_text(text + '{"text": "more"}\n')
    with pytest.raises(DataError, match=r"bytes then, .* now"):
        check_fingerprint(recorded, open_source(table(jsonl), 0).fingerprint())
    other = tmp_path / "other.jsonl"
    other.write_text(text)
    with pytest.raises(DataError, match="gone: x.jsonl; new: other.jsonl"):
        check_fingerprint(recorded, open_source(table(other), 0).fingerprint())


@pytest.mark.parametrize("changes, words", [({"held_out": 0.0}, "expected held_out > 0"), ({"held_out": 1.5}, "held_out: expected a number below 1"),
                                            ({"layout": "packd"}, "layout: .*'windows', 'packed' or 'padded'"),
                                            ({"lenght": 3}, "unknown key 'lenght'.*length"), ({"batch": 0}, "batch: ")])
def test_refuses_tables(jsonl, changes, words):
    with pytest.raises(ConfigError, match=words):
        open_source(table(jsonl, **changes), 0)
    with pytest.raises(DataError, match='use split = "tail"'):
        open_source(table(jsonl, held_out=1e-9), 0)
