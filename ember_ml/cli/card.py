"""The model card of a run: model_card.md in its folder, for whoever is handed the model."""

from __future__ import annotations

from pathlib import Path

from ember_ml.cli import facts
from ember_ml.nn.pipeline.training.run_folder import put


def write(path: Path) -> Path:
    """Writes the card from what the folder of a trained run holds. Returns where it is."""
    known = facts.read(path)
    name = known.folder.resolve().name
    parts = [f"# {name}", "\n".join(f"- {what}: {value}" for what, value in known.about()), *_scores(known), *_parity(known),
             _use(name), f"## Configuration\n\n```toml\n{known.config.strip()}\n```"]
    card = known.folder / "model_card.md"
    put(card, "\n\n".join(parts) + "\n")
    return card


def _scores(known: facts.Facts) -> list[str]:
    scores = known.scores
    if not scores:
        return []
    lines = [f"| | {known.score} |", "|---|---|", f"| this model | {next(iter(scores.values())):.4f} |"]
    lines += [f"| {name} | {value:.4f} |" for name, value in known.baselines.items()]
    others = [f"{name} {value:.4f}" for name, value in list(scores.items())[1:]]
    return ["## Held-out data", "\n".join(lines), *([f"Also: {', '.join(others)}."] if others else [])]


def _parity(known: facts.Facts) -> list[str]:
    if not known.parity:
        return ["## Parity", f"Not compared yet: `ember parity {known.folder.resolve().name}`."]
    failed = [f"{r['quantity']} on {r['engine']}" for r in known.parity if not r["pass"]]
    engines = ", ".join(dict.fromkeys(r["engine"] for r in known.parity))
    tokens = ", generated tokens" if any("tokens" in r["quantity"] for r in known.parity) else ""
    said = f"{len(known.parity)} comparisons with NumPy in float64 on {engines}: outputs, loss, gradients{tokens}. " + (
        f"{len(failed)} failed: {', '.join(failed)}." if failed else "All within tolerance.")
    return ["## Parity", said]


def _use(name: str) -> str:
    return f"""## Use

```python
from ember_ml import nn

model = nn.Model.load("{name}/model.safetensors")      # on the default engine, or device="numpy", "torch", "mlx"
y, state = model(inputs)
```

On the command line: `ember eval {name}`, `ember parity {name}`, `ember report {name}`."""
