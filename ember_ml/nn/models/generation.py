"""Generation: tokens one at a time through a model's `step`, as they come; and the same for text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from ember_ml.errors import ConfigError, ShapeError
from ember_ml.nn.models.sampling import SamplingConfig, also_seen, next_token, seen_tokens
from ember_ml.ops import random, tensor, where
from ember_ml.tensor import EmberTensor


def generate(model, prompt: EmberTensor, length: int, key: EmberTensor | None = None, stop: Sequence[int] = (),
             sampling: SamplingConfig | None = None, **fields) -> Iterator[EmberTensor]:
    """Yields up to `length` tokens after the prompt, each int32 (B,), as they come.

    Args:
        model: a model with a head of tokens.
        prompt: tokens (B, P), P >= 1; read in one pass, which leaves the state for the steps.
        key: random key; the same key gives the same tokens on every engine, up to ties within rounding. None takes the
            likeliest token each time.
        stop: tokens that end a row. A row that has ended repeats its stop token until all have ended; then nothing more
            is yielded.
        sampling: a SamplingConfig; or give its fields: temperature, top_k, top_p, repetition, allowed.

    Raises ShapeError for an empty prompt, ConfigError for sampling fields that do not fit, a model without a head of tokens, and tokens
    that it does not have.
    """
    c = _sampling("generate", model, dataclasses.replace(sampling, **fields) if sampling else SamplingConfig(**fields), stop)
    if not isinstance(prompt, EmberTensor) or prompt.ndim != 2 or prompt.shape[1] == 0:
        raise ShapeError("generate: expected a prompt of shape (batch, length), length >= 1, as em.tensor([[1, 2]]) makes; got "
                         + (f"{prompt.shape}" if isinstance(prompt, EmberTensor) else repr(prompt)))
    _check_length("generate", length)
    _check_tokens("generate", model, prompt.min().item(), prompt.max().item())
    logits, state = _run(model.forward, prompt, model.initial_state(prompt.shape[0], _dtype(model)))
    logits = logits[:, -1]
    seen = seen_tokens(prompt, logits.shape[-1]) if c.repetition != 1.0 else None
    ended = None
    for i in range(length):
        token = next_token(c, logits, None if key is None else random.fold_in(key, i), seen)
        if stop:
            token = token if ended is None else where(ended >= 0, ended, token)
            ended = tensor([t if t in stop else -1 for t in token.tolist()], dtype="int32", like=token)
        yield token
        if i + 1 == length or (stop and (ended >= 0).all().item()):
            return
        if seen is not None:
            seen = also_seen(seen, token)
        logits, state = _run(model.step, token, state)


def complete(model, prompts: Sequence[Sequence[int]], length: int, key: EmberTensor | None = None, stop: Sequence[int] = (),
             **fields) -> list[list[int]]:
    """Up to `length` new tokens for each of several prompts, which may differ in length. A stop token ends a row and is kept.

    Args as in `generate`. All rows run as one batch: as much as the shortest prompt has is read in one pass, and the longer
    ones go on through `step`, each with its own tokens, until their ends.
    """
    c = _sampling("complete", model, SamplingConfig(**fields), stop)
    prompts = prompts.tolist() if isinstance(prompts, EmberTensor) else prompts
    if not prompts or not all(len(p) for p in prompts):
        raise ShapeError("complete: expected at least one prompt, and none empty")
    for p in prompts:
        _check_tokens("complete", model, min(p), max(p))
    _check_length("complete", length)
    if length == 0:
        return [[] for _ in prompts]
    like = next(iter(model.tensors().values()))
    first = min(len(p) for p in prompts)
    start = tensor([list(p[:first]) for p in prompts], dtype="int32", like=like)
    logits, state = _run(model.forward, start, model.initial_state(len(prompts), _dtype(model)))
    logits, rows, ended = logits[:, -1], [[] for _ in prompts], [False] * len(prompts)
    seen = seen_tokens(start, logits.shape[-1]) if c.repetition != 1.0 else None
    for at in range(first, max(len(p) for p in prompts) + length):
        drawn = next_token(c, logits, None if key is None else random.fold_in(key, at - first), seen).tolist()
        for i, (p, row) in enumerate(zip(prompts, rows)):
            if at < len(p):
                drawn[i] = int(p[at])
            elif not ended[i]:
                row.append(drawn[i])
                ended[i] = drawn[i] in stop or len(row) == length
        if all(ended):
            break
        token = tensor(drawn, dtype="int32", like=like)
        seen = also_seen(seen, token) if seen is not None else None
        logits, state = _run(model.step, token, state)
    return rows


def stream_text(tokens: Iterator[EmberTensor], decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> Iterator[str]:
    """Text of one row as it comes, up to and without the first stop string.

    Args:
        tokens: what `generate` yields for a batch of one. decode: text of a few neighbouring tokens.
        stop: strings that end the text. What may still become one is held back until it is known.
    """
    text = ""
    for piece in _pieces(tokens, decode):
        text += piece
        ends = [at for at in (text.find(s) for s in stop) if at >= 0]
        if ends:
            yield text[:min(ends)]
            return
        held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        if len(text) > held:
            yield text[:len(text) - held]
            text = text[len(text) - held:]
    if text:
        yield text


def _pieces(tokens: Iterator[EmberTensor], decode) -> Iterator[str]:
    """The text of each token, or of several where a character takes several (until then it decodes to U+FFFD).

    The four tokens before are decoded along: tokenizers treat the first of a text as one without a space before it.
    """
    before, new, text = [], [], ""
    for token in tokens:
        new.append(token.tolist()[0])
        text = decode(before + new)[len(decode(before)) if before else 0:]
        if text and not text.endswith("\ufffd"):
            yield text
            before, new, text = (before + new)[-4:], [], ""
    if text:
        yield text


def _sampling(name: str, model, c: SamplingConfig, stop) -> SamplingConfig:
    """c for the model's own tokens: a head may have more rows (`vocab_multiple`). Raises ConfigError."""
    if model.config.head not in ("tied", "dense"):
        raise ConfigError(f"{name}: expected a model that tells the next token, with head 'tied' or 'dense'; this one has head={model.config.head!r}")
    if isinstance(stop, str) or not hasattr(stop, "__contains__"):
        raise ConfigError(f"{name}: expected stop to be a list of tokens, such as [0]; received {stop!r}")
    return dataclasses.replace(c, allowed=min(model.config.vocab_size, c.allowed or model.config.vocab_size))


def _check_length(name: str, length: int):
    if not hasattr(length, "__index__") or length < 0:
        raise ConfigError(f"{name}: expected a length, a whole number of at least 0, received {length!r}")


def _check_tokens(name: str, model, least: int, most: int):
    if not 0 <= least <= most < model.config.vocab_size:
        raise ConfigError(f"{name}: expected tokens from 0 to {model.config.vocab_size - 1} in the prompt; it has {least if least < 0 else most}")


def _run(form: Callable, x: EmberTensor, state) -> tuple[EmberTensor, list]:
    with x.backend.runtime.inference():
        return form(x, state)


def _dtype(model) -> str:
    return next((t.dtype.name for t in model.parameters().values() if t.dtype.is_inexact), "float32")
