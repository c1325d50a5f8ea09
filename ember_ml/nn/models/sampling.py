"""From logits to the next token: greedy or random, with the usual restrictions."""

from __future__ import annotations

from ember_ml.errors import ConfigError
from ember_ml.ops import argmax, cumsum, expand_dims, logical_and, logical_or, one_hot, random, softmax, sort, topk, where, zeros
from ember_ml.ops import any as any_of
from ember_ml.registry import config
from ember_ml.tensor import EmberTensor

#: stands in for minus infinity, of which sums stay finite
_NEVER = -1e30


@config
class SamplingConfig:
    """How the next token is chosen; each step narrows what the one before left, in this order.

    Args:
        repetition: above 1, tokens that stand in the prompt or were generated get logits divided by it where positive and
            multiplied where negative (Keskar et al. 2019, CTRL, section 4.1).
        temperature: divides the logits; 0 takes the likeliest token, whatever the key.
        top_k: only the k likeliest tokens; ties of the last one stay, too.
        top_p: only the likeliest tokens up to the one with which their probabilities reach p (Holtzman et al. 2020).
        allowed: only tokens below this number, None for the model's vocab_size.
    """

    repetition: float = 1.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    allowed: int | None = None

    def __post_init__(self):
        if not self.temperature >= 0.0 or not self.repetition > 0.0:     # NaN neither
            raise ConfigError(f"sampling: expected temperature of at least 0 and repetition above 0; received "
                              f"{self.temperature} and {self.repetition}")
        if (self.top_k is not None and self.top_k < 1) or (self.allowed is not None and self.allowed < 1):
            raise ConfigError(f"sampling: expected top_k and allowed of at least 1; received {self.top_k} and {self.allowed}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"sampling: expected 0 < top_p <= 1; received {self.top_p}")


def next_token(c: SamplingConfig, logits: EmberTensor, key: EmberTensor | None, seen: EmberTensor | None = None) -> EmberTensor:
    """int32 (B,) from logits (B, vocab).

    Args:
        key: random key; None takes the likeliest token. seen: bool (B, vocab), tokens that `repetition` holds against.
    """
    if c.repetition != 1.0 and seen is not None:
        logits = where(seen, where(logits > 0.0, logits / c.repetition, logits * c.repetition), logits)
    if c.allowed is not None and c.allowed < logits.shape[-1]:
        logits = logits[:, :c.allowed]
    if key is None or c.temperature == 0.0:
        return argmax(logits, axis=-1)
    logits = logits.astype("float32") / c.temperature
    if c.top_k is not None and c.top_k < logits.shape[-1]:
        least = topk(logits, c.top_k)[0][:, c.top_k - 1:]
        logits = where(logits >= least, logits, _NEVER)
    if c.top_p is not None and c.top_p < 1.0:
        ranked = sort(logits, descending=True)
        p = softmax(ranked, axis=-1)
        kept = cumsum(p, axis=-1) - p < c.top_p              # what the likelier ones reach without it
        least = where(kept, ranked, -_NEVER).min(axis=-1, keepdims=True)
        logits = where(logits >= least, logits, _NEVER)
    return random.categorical(key, logits)


def seen_tokens(prompt: EmberTensor, vocab: int, chunk: int = 64) -> EmberTensor:
    """bool (B, vocab): which tokens stand in the prompt (B, P). Reads `chunk` positions at a time, which bounds the memory."""
    seen = zeros((prompt.shape[0], vocab), "bool", like=prompt)
    for start in range(0, prompt.shape[1], chunk):
        seen = logical_or(seen, any_of(one_hot(prompt[:, start:start + chunk], vocab) > 0.0, axis=1))
    return seen


def also_seen(seen: EmberTensor, token: EmberTensor) -> EmberTensor:
    """`seen` with one more token (B,) a row."""
    return logical_or(seen, one_hot(token, seen.shape[-1]) > 0.0)
