"""The curves of a run, and scores as bars."""

from __future__ import annotations

import io
import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend must be chosen first

from ember_ml.nn.pipeline.training.run_folder import put  # noqa: E402


def curves(rows: list[dict], baselines: dict[str, float], unit: str):
    """A figure of a run: training loss and held-out score with a line per baseline, and below the rate and the gradient's norm.

    Args:
        rows: the run's rows. baselines: name -> score, of the kind that evaluations name first. unit: what a token is called.

    Where the score is bits per token, both curves share axes, else the score has its own.
    """
    train = [r for r in rows if "loss" in r]
    held_out = [(r["step"], next(iter(r["eval"].items()))) for r in rows if r.get("eval")]
    score = held_out[-1][1][0] if held_out else ""
    shared = score in ("bits", "")
    below = [name for name in ("rate", "grad_norm") if any(name in r for r in train)]
    heights = [4.0, *([] if shared else [3.0]), *[1.3] * len(below)]
    figure, axes = plt.subplots(len(heights), sharex=True, squeeze=False, figsize=(8, 0.5 + sum(heights)), dpi=120,
                                height_ratios=heights)
    axes = list(axes[:, 0])
    axes[-1].set_xlabel("updates")
    scale = 1.0 / math.log(2.0) if shared else 1.0
    _curve(axes[0], train, "loss", "#9db7d5", "training, single batches", scale)
    axes[0].set_ylabel(f"bits per {unit}" if shared else "training loss")
    top = axes[0] if shared else axes[1]
    values = [value for _, (_, value) in held_out]
    judged = [*values, *baselines.values()]
    if held_out:
        top.plot([step for step, _ in held_out], values, color="#1f4e8c", marker="o", markersize=4, label=f"held out: {values[-1]:.3f}")
        for i, (name, value) in enumerate(sorted(baselines.items(), key=lambda b: -b[1])):
            top.axhline(value, color="#b0541e", linewidth=0.8, linestyle=("--", ":", "-.")[i % 3], label=f"{name}: {value:.3f}")
    if not shared:
        top.set_ylabel(f"{score}, held out")
    elif finite := [v for v in (*judged, *(r["loss"] * scale for r in train)) if math.isfinite(v)]:
        top.set_ylim(min(finite) - 0.02, max(1.05 * max((v for v in judged if math.isfinite(v)), default=0.0), min(finite) + 0.1) if baselines else None)
    for ax, name in zip(axes[-len(below):] if below else [], below):
        _curve(ax, train, name, "#4b6b4b", None)
        ax.set_ylabel({"rate": "rate", "grad_norm": "gradient norm"}[name], fontsize=8)
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    return figure


def draw_curves(rows: list[dict], baselines: dict[str, float], unit: str, path: Path):
    """Writes `curves` as a PNG. Raises StorageError."""
    figure, png = curves(rows, baselines, unit), io.BytesIO()
    figure.savefig(png, format="png")
    plt.close(figure)
    put(path, png.getvalue())


def _curve(axes, rows: list[dict], name: str, color: str, label: str | None, scale: float = 1.0):
    points = [(r["step"], r[name] * scale) for r in rows if name in r]
    if points:
        axes.plot(*zip(*points), color=color, linewidth=0.8, label=label, marker="." if len(points) == 1 else None)


def draw_scores(scores: dict[str, dict[str, float]], tasks: list[str], path: Path):
    """Draws a bar for every model and task.

    Args:
        scores: model -> task -> share from 0 to 1. tasks: in the order of the plot. path: the PNG to write.
    """
    figure, axes = plt.subplots(figsize=(1.5 + 1.4 * len(tasks), 4.0), dpi=120)
    width = 0.8 / len(scores)
    for i, (name, found) in enumerate(scores.items()):
        axes.bar([j + (i - (len(scores) - 1) / 2) * width for j in range(len(tasks))], [found[t] for t in tasks], width, label=name)
    axes.set_xticks(range(len(tasks)), [t.replace("_in_context_", " in-context\n").replace("in_context_", "in-context\n").replace("_", "\n")
                                        for t in tasks], fontsize=8)
    axes.set(ylabel="accuracy", ylim=(0.0, 1.0))
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
