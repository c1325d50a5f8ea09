"""`ember generate`: samples from the model of a run."""

from __future__ import annotations

import sys
from pathlib import Path

from ember_ml import backend as engines
from ember_ml import data
from ember_ml.cli.output import Output
from ember_ml.errors import ConfigError
from ember_ml.nn.models import Model
from ember_ml.nn.models.generation import generate, stream_text
from ember_ml.nn.pipeline.training import config as configs
from ember_ml.nn.pipeline.training.run_folder import RunFolder
from ember_ml.ops import random, tensor

#: tokens of held-out text that are continued where no prompt is given
_PROMPT = 16


def existing_model(path: Path) -> tuple[configs.RunConfig, Path]:
    """(config, model file) of a run folder. Raises ConfigError if it is no run or holds no model yet."""
    folder = RunFolder.existing(path)
    if not folder.model.exists():
        raise ConfigError(f"{path}: holds no model.safetensors; finish the run with: ember train CONFIG --out {path} --resume")
    return configs.read(folder.config), folder.model


def run(path: Path, length: int, prompt: str | None, seed: int, backend: str | None, stop: list[str], output: Output, **sampling):
    """Writes the prompt, by default the beginning of the held-out text, and `length` sampled tokens to standard output as they come,
    up to a stop string or the end of the document."""
    config, file = existing_model(path)
    engine, device = engines.parse(backend)
    model = Model.load(file, device=f"{engine.name}:{device}")
    if model.config.head not in ("tied", "dense"):
        raise ConfigError(f"{path}: expected a model that tells the next token; this one has head={model.config.head!r}, which ember eval "
                          "judges")
    alphabet = data.alphabet(config.data)
    if prompt is None:
        prompt = "ATG" if alphabet is data.Bases else alphabet.decode(data.open_source(config.data, config.seed).sample(_PROMPT)[0])
    tokens = tensor(alphabet.encode(prompt)[None], dtype="int32", device=f"{engine.name}:{device}")
    ends = () if alphabet.end is None or alphabet.end >= alphabet.samples else (alphabet.end,)
    out = generate(model, tokens, length, random.key(seed, device=f"{engine.name}:{device}"), ends, allowed=alphabet.samples, **sampling)
    texts = stream_text(out, alphabet.decode, stop)
    if output.json:
        output.result({"prompt": prompt, "text": "".join(texts), "seed": seed, "backend": f"{engine.name}:{device}"})
        return
    sys.stdout.write(prompt)
    for text in texts:
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
