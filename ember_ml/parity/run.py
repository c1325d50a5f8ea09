"""Parity of a trained model: the same file and the same input on every engine.

The yardstick is the NumPy engine in float64 from the file's float32 weights. What float32 may differ from it follows from the
yardstick's own float32 run: each tolerance is a fixed multiple of float32's rounding, and stated with the row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ember_ml import autodiff
from ember_ml.backend import using
from ember_ml.nn.losses import cross_entropy
from ember_ml.nn.models import Model
from ember_ml.nn.pipeline.inference import generate
from ember_ml.ops import tensor
from ember_ml.parity.compare import Row, row

#: largest error relative to the largest element, float32 against float64: some tens of roundings through the layers
#: for values, some hundreds for gradients, which sum over all positions
TOLERANCES = {"logits": 2e-5, "loss": 2e-6, "gradient": 2e-4}


def compare_run(path: str | Path, tokens: np.ndarray, engines: list[str], allowed: int | None = None,
                generated: int = 64) -> list[Row]:
    """Logits, loss, the gradient of every parameter, and greedily generated tokens of a language model's file, on every engine.

    Args:
        path: a file that Model.save wrote. tokens: (1, L + 1), integers: inputs and, one later, targets.
        engines: names or devices. allowed: tokens that may be generated are below it. generated: how many.

    Returns rows: one per engine for logits, loss and tokens, and one for the parameter whose gradient is worst. Tokens must be
    equal; where two of them are as likely to within the logits' tolerance, either is right.
    """
    def loss(model, x, y):
        logits, _ = model(x)
        return cross_entropy(logits, y), logits

    batch = (tokens[:, :-1].astype(np.int32), tokens[:, 1:].astype(np.int32))
    reference = _evaluate(path, batch, loss, "numpy", "float64")
    first, margins = _generate(path, batch[0], "numpy", allowed, generated)
    rows = []
    for engine in engines:
        rows += _rows(engine, "logits", _evaluate(path, batch, loss, engine, "float32"), reference)
        found = first if engine == "numpy" else _generate(path, batch[0], engine, allowed, generated)[0]
        same = _same_up_to_ties(found, first, margins)
        rows.append(row("run", engine, f"{generated} generated tokens", same, np.ones_like(same), 0.0, "int32"))
    return rows


def compare_batch(path: str | Path, batch: tuple[np.ndarray, ...], loss: Callable, engines: list[str]) -> list[Row]:
    """Outputs, loss and the gradient of every parameter of a model file on one batch, on every engine.

    Args:
        batch: inputs first, as in `ember_ml.nn.pipeline.training.objectives`. loss: `loss(model, *batch)`, a scalar.

    Returns rows: one per engine for outputs and loss, and one for the parameter whose gradient is worst.
    """
    def both(model, *batch):
        return loss(model, *batch), model(batch[0])[0]

    reference = _evaluate(path, batch, both, "numpy", "float64")
    return [r for engine in engines for r in _rows(engine, "outputs", _evaluate(path, batch, both, engine, "float32"), reference)]


def _rows(engine: str, outputs: str, found: dict, reference: dict) -> list[Row]:
    gradients = [row("run", engine, f"gradient of {name}", found["gradients"][name], g, TOLERANCES["gradient"])
                 for name, g in reference["gradients"].items()]
    worst = max(gradients, key=lambda r: r["error"])
    return [row("run", engine, outputs, found["outputs"], reference["outputs"], TOLERANCES["logits"]),
            # a cross-entropy near 0 is a difference of logits, whose rounding it has: below 1 its error counts as it is
            row("run", engine, "loss", found["loss"], reference["loss"], TOLERANCES["loss"], least=1.0),
            {**worst, "quantity": f"worst of {len(gradients)} gradients, {worst['quantity'].split()[-1]}"}]


def _evaluate(path, arrays, loss: Callable, engine: str, dtype: str) -> dict:
    with using(engine):
        model = Model.load(path).astype(dtype)
        batch = [tensor(a, dtype=dtype if a.dtype.kind == "f" else None) for a in arrays]

        def of(params):
            with model.using(params):
                return loss(model, *batch)

        (value, outputs), grads = autodiff.value_and_grad(of, has_aux=True)(model.parameters())
    return {"outputs": outputs.numpy(), "loss": value.numpy(), "gradients": {k: g.numpy() for k, g in grads.items()}}


def _generate(path, prompt: np.ndarray, engine: str, allowed, generated: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(tokens, on NumPy their margins)."""
    with using(engine):
        model = Model.load(path).astype("float32")
        sampled = [t.item() for t in generate(model, tensor(prompt), generated, allowed=allowed)] if generated else []
        return np.array(sampled, np.int32), _margins(model, prompt, sampled, allowed) if sampled and engine == "numpy" else None


def _margins(model, prompt: np.ndarray, sampled: list[int], allowed) -> np.ndarray:
    """By how much the chosen token led the next one at each step, relative to the largest logit."""
    logits, state = model.forward(tensor(prompt.astype(np.int32)), model.initial_state(1))
    logits, out = logits[:, -1], []
    for token in sampled:
        best = np.sort(logits.numpy()[0, :allowed])[-2:]
        out.append((best[1] - best[0]) / np.abs(logits.numpy()).max())
        logits, state = model.step(tensor(np.array([token], np.int32)), state)
    return np.array(out)


def _same_up_to_ties(got: np.ndarray, expected: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """1 where tokens agree, up to the first step at which the choice was a tie within tolerance; all later ones count as 1,
    since from there on the two sequences rightly differ."""
    same = (got == expected).astype(np.int32)
    different = np.flatnonzero(same == 0)
    if different.size and margins[different[0]] <= TOLERANCES["logits"]:
        same[different[0]:] = 1
    return same
