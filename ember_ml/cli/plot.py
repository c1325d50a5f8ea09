"""The loss curve as a PNG."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 - the backend must be chosen first


def draw_loss(rows: list[dict], baselines: dict[str, float], unit: str, path: Path):
    """Draws training loss and held-out loss in bits per token over the updates, with one line per baseline.

    Args:
        rows: the run's rows. baselines: name -> bits. unit: what a token is called. path: the PNG to write.
    """
    train = [(r["step"], r["loss"] / math.log(2.0)) for r in rows if "loss" in r]
    held_out = [(r["step"], r["eval"]["bits"]) for r in rows if "eval" in r]
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
    axes.plot(*zip(*train), color="#9db7d5", linewidth=0.8, label="training, single batches")
    if held_out:
        axes.plot(*zip(*held_out), color="#1f4e8c", marker="o", markersize=4, label=f"held out: {held_out[-1][1]:.3f}")
    for i, (name, bits) in enumerate(sorted(baselines.items(), key=lambda b: -b[1])):
        axes.axhline(bits, color="#b0541e", linewidth=0.8, linestyle=("--", ":", "-.")[i % 3], label=f"{name}: {bits:.3f}")
    axes.set(xlabel="updates", ylabel=f"bits per {unit}")
    low = min([b for _, b in held_out] + [b for _, b in train] + list(baselines.values()))
    axes.set_ylim(low - 0.02, max(2.1, *baselines.values()) if baselines else None)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


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
