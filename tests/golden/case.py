"""One golden case as it lies on disk, and the register of functions that build the Ember side of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

import ember_ml as em
from ember_ml import EmberTensor
from ember_ml.nn.module import Module

#: the cases that the repository holds
DATA = Path(__file__).parent / "data"

Tensors = dict[str, EmberTensor]

#: cases, by "area/name" or a glob, of families that Ember does not have, with the reason. They are listed, not run.
LEFT_OUT = {
    "hf/gpt2*": "learned positions are not among Ember's layers: it is for long contexts, and reads no GPT-2",
    "hf/gpt_neox*": "its attention and perceptron stand side by side under two norms; Ember reads no GPT-NeoX",
    "hf/deepseek_v3*": "multi-head latent attention is not among Ember's layers; its router is (see ember_ml.nn.moe, SigmoidRouter)",
}


@dataclass(frozen=True)
class Built:
    """The Ember side of a case.

    forward(inputs, params) -> outputs by the names of the case; pure, so that gradients go through it. `params` holds
    the case's weights under their original names: forward itself renames, reshapes and permutes them, by ops, and the
    gradients come out under the original names. Of tied names only the first is in `params`.
    """

    forward: Callable[[Tensors, Tensors], Tensors]
    params: Tensors


Builder = Callable[["Case", str], Built]

#: "area/name", or a glob -> builder
BUILDERS: dict[str, Builder] = {}


def builder(*keys: str) -> Callable[[Builder], Builder]:
    """Decorator of `build(case, dtype) -> Built` for the cases "area/name"; dtype is "float32" or "float64".

    A key may be a glob ("hyena/hyena_filter*") for other sizes of the same object; exact keys go before globs.
    """
    def register(build: Builder) -> Builder:
        for key in keys:
            if key in BUILDERS:
                raise ValueError(f"golden: two builders for {key}: {BUILDERS[key].__name__} and {build.__name__}")
            BUILDERS[key] = build
        return build
    return register


def lookup(case: Case) -> Builder | None:
    """The builder of a case, None if there is none."""
    globs = (build for key, build in BUILDERS.items() if fnmatchcase(case.key, key))
    return BUILDERS.get(case.key) or next(globs, None)


def left_out(case: Case) -> str | None:
    """Why a case is not run, None if it is."""
    return next((reason for key, reason in LEFT_OUT.items() if fnmatchcase(case.key, key)), None)


@contextmanager
def with_weights(module: Module, tensors: Tensors):
    """Inside it `tensors`, by Ember's names, stand in for all of the module's tensors.

    Raises ValueError if the module has a tensor that the case does not set: it would keep a random value of its own.
    """
    if left := set(module.tensors()) - set(tensors):
        raise ValueError(f"golden: the case sets no {', '.join(sorted(left))} of {type(module).__name__}")
    with module.using(tensors):
        yield module


class Case:
    """A folder with case.json, weights.safetensors and io.safetensors; all arrays are NumPy's."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.meta = json.loads((self.folder / "case.json").read_text())
        self.name: str = self.meta["name"]
        self.area: str = self.meta["area"]
        self.config: dict = self.meta["config"]
        #: "forward", "forward_f64": rtol, atol; "grad": rtol, atol_rel_to_tensor_max, atol_floor
        self.tolerance: dict[str, dict[str, float]] = self.meta["tolerance"]

    @property
    def key(self) -> str:
        return f"{self.area}/{self.name}"

    @cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """All weights under their original names, tied ones under each of them."""
        path = self.folder / "weights.safetensors"
        return load_file(path) if path.exists() else {}

    @cached_property
    def io(self) -> dict[str, np.ndarray]:
        return load_file(self.folder / "io.safetensors")

    @property
    def inputs(self) -> dict[str, np.ndarray]:
        return {name: self.io[name] for name in self.meta["inputs"]}

    @property
    def expected(self) -> dict[str, np.ndarray]:
        """Outputs of the original in float32 (or integers)."""
        return {name: self.io[name] for name in self.meta["outputs"]}

    @property
    def expected_f64(self) -> dict[str, np.ndarray]:
        """Outputs of the original in float64, under the names of `expected`."""
        return {name.removesuffix("_f64"): self.io[name] for name in self.meta.get("outputs_f64", ())}

    @property
    def cotangents(self) -> dict[str, np.ndarray]:
        """What the outputs are weighed with in the loss, by output; empty for a case without gradients."""
        gradients = self.meta.get("gradients") or {}
        return {name: self.io[f"cot.{name}"] for name in gradients.get("loss_outputs", ())}

    @property
    def input_gradients(self) -> dict[str, np.ndarray]:
        return self._under("grad.input.")

    @property
    def param_gradients(self) -> dict[str, np.ndarray]:
        """By original name; zeros where the original's gradient is exactly zero. Without those that get none."""
        gradients = self.meta.get("gradients") or {}
        zero = {name: np.zeros_like(self.weights[name]) for name in gradients.get("zero_gradient_params", ())}
        without = gradients.get("params_without_gradient", ())
        return {name: g for name, g in (zero | self._under("grad.param.")).items() if name not in without}

    @property
    def aliases(self) -> set[str]:
        """Names of tied tensors other than the first of their group."""
        return {name for group in self.meta.get("tied_parameters", ()) for name in group[1:]}

    def params(self, dtype: str) -> Tensors:
        """The weights as tensors on the engine in use, floats in `dtype`, without aliases."""
        return {name: tensor(w, dtype) for name, w in self.weights.items() if name not in self.aliases}

    def tensors(self, dtype: str) -> Tensors:
        """The inputs as tensors on the engine in use, floats in `dtype`."""
        return {name: tensor(x, dtype) for name, x in self.inputs.items()}

    def _under(self, prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): g for name, g in self.io.items() if name.startswith(prefix)}

    def __repr__(self) -> str:
        return f"Case({self.key})"


def tensor(array: np.ndarray, dtype: str) -> EmberTensor:
    """On the engine in use: floats in `dtype`, integers and booleans as they are."""
    return em.tensor(array, dtype=dtype if array.dtype.kind == "f" else None)


@lru_cache(maxsize=None)
def load(folder: Path) -> Case:
    return Case(folder)


def find(folder: Path = DATA) -> list[Case]:
    """All cases at or below a folder, in the order of their names."""
    return [load(path.parent) for path in sorted(Path(folder).rglob("case.json"))]
