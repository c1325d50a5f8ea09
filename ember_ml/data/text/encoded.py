"""Text that was turned into tokens before: arrays larger than the memory."""

from __future__ import annotations

import numpy as np

from ember_ml.data.documents import Documents
from ember_ml.data.features.arrays import load_array
from ember_ml.data.files import expand
from ember_ml.data.next_token import NextTokenSource
from ember_ml.data.splits import split_tail
from ember_ml.data.text.tokenizers import of_name
from ember_ml.errors import ConfigError, DataError
from ember_ml.registry import Rate, Size, config

#: tokens that are looked at when the file is opened; the others are checked as they are read
_LOOKED = 1 << 20


@config
class TokensConfig:
    """One .npy array of tokens, which is mapped into memory and never read as a whole.

    Args:
        file: (N,), integers, such as `numpy.save` writes. length, batch: of the windows.
        tokenizer: what the tokens are: "bytes", "bases", or the path of a tokenizer.json.
        held_out: share at the end that is never trained on.
    """

    file: str
    length: Size
    batch: Size
    tokenizer: str
    held_out: Rate = 0.05


class EncodedSource(NextTokenSource):
    """Windows of an array of tokens.

    Args: fields: see TokensConfig. seed: of the order.

    Raises DataError for a file that is no array of tokens, is cut short, or holds tokens that the tokenizer does not have, as they are
    read.
    """

    def __init__(self, fields: TokensConfig, seed: int):
        paths = expand(fields.file)
        tokens = load_array(paths[0])
        if len(paths) != 1 or tokens.ndim != 1 or tokens.dtype.kind not in "iu" or not tokens.size:
            raise DataError(f"tokens: expected one array of integers (N,), got {len(paths)} file{'s' if len(paths) > 1 else ''}, "
                            f"{tokens.dtype} {tokens.shape}")
        train, held = split_tail(Documents(tokens, np.array([tokens.size])), fields.held_out)
        super().__init__(train, held, encoded_alphabet(fields), "windows", fields.length, fields.batch, seed, paths)
        self._checked(tokens[:_LOOKED])

    def batch(self, i: int) -> tuple[np.ndarray, ...]:
        """Batch of update i: inputs and targets, int32 (batch, length)."""
        inputs, targets = super().batch(i)
        self._checked(inputs)
        return inputs, targets

    def _checked(self, tokens: np.ndarray):
        if tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise DataError(f"{self.files[0]}: expected tokens from 0 to {self.vocab_size - 1}, got {tokens.min()} to {tokens.max()}; name "
                            "the tokenizer that made them")


def encoded_alphabet(c: TokensConfig):
    """The tokenizer of a config. Raises ConfigError for one that depends on the text."""
    if c.tokenizer == "characters":
        raise ConfigError('tokens: "characters" depend on the text that they came from; use "bytes", "bases" or a tokenizer.json')
    return of_name(c.tokenizer)
