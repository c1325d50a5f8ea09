"""What the experts of a run did, as figures: load over time, who works on what, who works together."""

from __future__ import annotations

from collections.abc import Callable


def routers(rows: list[dict], figure: Callable[[str, Callable], dict]) -> list[dict]:
    """What a page says of each router, from the rows of a run.

    Args:
        figure: `figure(title, draw)` calls draw(axes) and returns the image for the page.
    """
    rows = [r for r in rows if "loss" in r]
    names = sorted({key.rpartition(".load")[0] for row in rows for key in row if key.endswith(".load") or key == "load"})
    return [_router(name, rows, figure) for name in names]


def _router(name: str, rows: list[dict], figure: Callable) -> dict:
    def series(what):
        key = f"{name}.{what}".lstrip(".")
        return [(row["step"], row[key]) for row in rows if key in row]

    def last(what, form="{:.3f}"):
        found = series(what)
        return form.format(found[-1][1]) if found else ""

    load, figures = series("load"), []
    figures.append(figure("load over time", lambda axes: _lines(axes, load)))
    figures.append(figure("entropy and coefficient of variation", lambda axes: _two(axes, series("entropy"), series("load_cv"))))
    for what, title, label in (("classes", "expert by class of token", "class"), ("coactivation", "co-activation", "expert")):
        if found := series(what):
            figures.append(figure(title, lambda axes, m=found[-1][1], label=label: _heat(axes, m, label)))
    return {"name": name or "router", "experts": len(load[-1][1]), "cv": last("load_cv"), "dead": last("dead", "{:.0%}"),
            "entropy": last("entropy"), "information": last("information"), "figures": figures}


def _lines(axes, load):
    steps, shares = zip(*load)
    axes.stackplot(steps, *zip(*shares), linewidth=0)
    axes.set(xlabel="updates", ylabel="share of the rows, by expert", ylim=(0.0, 1.0))


def _two(axes, entropy, cv):
    for series, label in ((entropy, "routing entropy"), (cv, "CV of the load")):
        if series:
            axes.plot(*zip(*series), label=label)
    axes.set(xlabel="updates", ylim=(0.0, None))
    axes.legend(frameon=False)


def _heat(axes, matrix, label):
    totals = [sum(row) or 1.0 for row in matrix] if label == "class" else [1.0] * len(matrix)
    image = axes.imshow([[v / t for v in row] for row, t in zip(matrix, totals)], aspect="auto", cmap="viridis")
    axes.set(xlabel=label, ylabel="expert")
    axes.figure.colorbar(image, ax=axes)
