"""Text to tokens and back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ember_ml.data.text.tokenizers import Bytes, Characters, Pieces
from ember_ml.errors import ConfigError, DataError


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_bytes_come_back(text):
    tokens = Bytes.encode(text)
    assert tokens.tolist() == list(text.encode()) and Bytes.decode(tokens) == text
    assert Bytes.decode([*tokens.tolist(), Bytes.end]) == text


def test_bytes_of_half_a_character():
    assert Bytes.decode([0xC3]) == "\ufffd"
    with pytest.raises(DataError, match="tokens from 0 to 256, got 3 to 257"):
        Bytes.decode([3, 257])


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet="abcxyzäß☃\U0001f600 \n", min_size=1, max_size=40))
def test_characters_come_back(text):
    alphabet = Characters.of([text])
    tokens = alphabet.encode(text)
    assert alphabet.decode(tokens) == text and tokens.max() < alphabet.end == alphabet.size - 1
    assert [alphabet.letters[t] for t in tokens] == list(text)


def test_characters_in_the_order_that_is_given():
    alphabet = Characters("zab")
    assert alphabet.encode("baz").tolist() == [2, 1, 0]
    with pytest.raises(DataError, match="3 characters that the model knows, got 'q' at place 1"):
        alphabet.encode("aq")
    with pytest.raises(ConfigError, match="all different"):
        Characters("aa")
    many = Characters("".join(map(chr, range(0x4E00, 0x4E00 + 300))))
    assert many.encode(chr(0x4E00 + 299)).tolist() == [299]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra tokenizers is not installed")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(["to be or not to be"] * 20, trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def test_pieces_of_a_tokenizer_file(file):
    tokenizers = pytest.importorskip("tokenizers")
    pieces, peer = Pieces(file), tokenizers.Tokenizer.from_file(str(file))
    text = "to be, or not to bé"
    tokens = pieces.encode(text)
    assert tokens.tolist() == peer.encode(text).ids and tokens.dtype == np.uint16
    assert pieces.decode(tokens) == text and pieces.size == peer.get_vocab_size()
    assert pieces.end == peer.token_to_id("<|endoftext|>")


def test_refuses_what_is_no_tokenizer(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra tokenizers is not installed")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(DataError, match="x.json: is no file of the package tokenizers"):
        Pieces(tmp_path / "x.json")
    with pytest.raises(DataError, match="bytez: no such file; tokenizer is 'bytes', 'characters'"):
        Pieces("bytez")
