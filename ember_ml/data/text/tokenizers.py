"""Text as tokens: bytes, characters, or the pieces of a trained tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ember_ml.data.dna import Bases
from ember_ml.errors import ConfigError, DataError, MissingExtra


class Bytes:
    """UTF-8 bytes are tokens 0 to 255; 256 ends a document."""

    unit, size, end = "byte", 257, 256
    #: tokens below this one are sampled; the end mark too, after which nothing more comes
    samples = 257

    @staticmethod
    def encode(text: str) -> np.ndarray:
        """uint8 (bytes,)."""
        return np.frombuffer(text.encode("utf-8"), np.uint8)

    @classmethod
    def decode(cls, tokens) -> str:
        """Tokens (length,) as text, U+FFFD for what is no UTF-8. Raises DataError for a token outside 0 ... 256."""
        array = checked(tokens, cls.size, "bytes")
        return array[array < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")


class Characters:
    """The characters of an alphabet are tokens 0, 1, ... in its order; the one after them ends a document.

    Args: letters: the alphabet, each character once.
    """

    unit = "character"

    def __init__(self, letters: str):
        if not letters or len(set(letters)) != len(letters):
            raise ConfigError(f"characters: expected letters that are all different, at least one; received {letters!r}")
        self.letters, self.end = letters, len(letters)
        self.size = self.samples = len(letters) + 1
        codes = np.frombuffer(letters.encode("utf-32-le"), np.uint32)
        self._order = np.argsort(codes)
        self._codes = codes[self._order]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Characters:
        """The alphabet of all characters that occur, in the order of their code points."""
        return cls("".join(sorted(set().union(*map(set, texts)))))

    def encode(self, text: str) -> np.ndarray:
        """uint8, or int32 for more than 255 letters, (characters,). Raises DataError, with its place, for a character without a token."""
        codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        at = np.minimum(np.searchsorted(self._codes, codes), self.end - 1)
        unknown = self._codes[at] != codes
        if unknown.any():
            place = int(np.argmax(unknown))
            raise DataError(f"characters: expected the {self.end} characters that the model knows, got {text[place]!r} at place {place}")
        return self._order[at].astype(np.uint8 if self.size <= 256 else np.int32)

    def decode(self, tokens) -> str:
        """Tokens (length,) as text. Raises DataError for a token that there is not."""
        return "".join(self.letters[t] for t in checked(tokens, self.size, "characters").tolist() if t != self.end)


class Pieces:
    """A tokenizer of the package `tokenizers`, out of its JSON file.

    Args:
        path: the file, as `Tokenizer.save` or a model's repository has it (tokenizer.json).

    A document ends with the first of the file's special tokens that is called <|endoftext|>, </s>, <eos>, <|end_of_text|> or [SEP];
    without one nothing marks its end. Raises DataError for a file that is no tokenizer, MissingExtra without the package.
    """

    unit = "token"
    _ENDS = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")

    def __init__(self, path: str | Path):
        try:
            from tokenizers import Tokenizer
        except ImportError:
            raise MissingExtra(f'{path}: is read by the package tokenizers, which is not installed; run: pip install '
                               '"ember-ml[tokenizers]"') from None
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; tokenizer is 'bytes', 'characters', 'bases' or the path of a tokenizer.json")
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as e:      # the package raises nothing narrower
            raise DataError(f"{path}: is no file of the package tokenizers ({e})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size = self.samples = self._tokenizer.get_vocab_size()
        self.end = next((i for i in map(self._tokenizer.token_to_id, self._ENDS) if i is not None), None)

    def encode(self, text: str) -> np.ndarray:
        """uint16 or int32 (pieces,), without special tokens."""
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.uint16 if self.size <= 1 << 16 else np.int32)

    def decode(self, tokens) -> str:
        """Tokens (length,) as text, special tokens left out. Raises DataError for a token that there is not."""
        return self._tokenizer.decode(checked(tokens, self.size, "tokenizer").tolist())


def of_name(name: str):
    """The tokenizer "bytes", "bases", or of a tokenizer.json file. Raises DataError, MissingExtra."""
    return {"bytes": Bytes, "bases": Bases}.get(name) or Pieces(name)


def checked(tokens, size: int, name: str) -> np.ndarray:
    """Tokens as an array. Raises DataError for one outside 0 ... size - 1."""
    array = np.asarray(tokens, np.int64)
    if array.size and not (0 <= array.min() and array.max() < size):
        raise DataError(f"{name}: expected tokens from 0 to {size - 1}, got {array.min()} to {array.max()}")
    return array
