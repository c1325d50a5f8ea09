"""Writes a page for each registered layer from its docstrings: formula, parameters, state, shapes, cost, source.

    python docs/make_layers.py [FOLDER]            (default: docs/layers; `make docs`)

What a page says is said once, in the code. The costs are counted in outline, from shapes.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from pathlib import Path

from ember_ml.autodiff import tree
from ember_ml.autodiff.transform import transforming
from ember_ml.backend import get, using
from ember_ml.ops import full
from ember_ml.registry import layers

WIDTH, LENGTHS = 64, (32, 128)

#: what a layer needs besides d_input to be built
NEEDED = {
    "hyena": {"l_max": 1024}, "long_conv": {"l_max": 1024}, "fftconv": {"l_max": 1024}, "moe": {"num_experts": 4}, "mixture_of_experts": {"num_experts": 4},
    "parallel": {"mixers": [{"layer": "mamba"}, {"layer": "self_attention", "layer_config": {"heads": 4}}]},
    "wired_cfc": {"wiring": {"kind": "auto_ncp", "units": 96, "d_output": 64}}, "dropout": {"p": 0.1},
}
LABELS = ("Parameters", "Buffers", "State", "Metrics", "Source")
_LABEL = re.compile(rf"(?:^|(?<=\. )|(?<=\) ))({'|'.join(LABELS)})(,[^:\n]{{0,60}}|\s\([^)\n]*\))?: ", re.M)


def sections(doc: str) -> dict[str, str]:
    """{"": what it computes, "Parameters": ..., "State": ..., "Source": ...} of a layer's docstring."""
    text = re.sub(r"^Args:\n(?:(?: +.*)?\n)*?(?=\S|\Z)", "", doc + "\n", flags=re.M)
    marks = list(_LABEL.finditer(text))
    found = {"": text[:marks[0].start() if marks else None].strip()}
    for mark, after in zip(marks, [*marks[1:], None]):
        body = text[mark.end():after.start() if after else None].strip()
        found[mark[1]] = " ".join(part for part in (found.get(mark[1]), ((mark[2] or "").lstrip(", ") + " " + body).strip()) if part)
    return found


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def code_blocks(text: str) -> str:
    """Paragraphs as they are; indented ones, which are formulas, as code."""
    out = []
    for part in re.split(r"\n\s*\n", text):
        lines = part.splitlines()
        indented = [line.startswith("    ") for line in lines]
        if any(indented):
            first = indented.index(True)
            last = len(lines) - indented[::-1].index(True)
            out += [one_line(" ".join(lines[:first])), "```\n" + inspect.cleandoc("\n".join(lines[first:last])) + "\n```",
                    one_line(" ".join(lines[last:]))]
        else:
            out.append(one_line(part))
    return "\n\n".join(p for p in out if p)


def build(name: str):
    """The layer of width WIDTH on the engine in use."""
    return layers.instantiate(name, d_input=WIDTH, **NEEDED.get(name, {}))


def cost(name: str) -> str:
    """A table of parameters, FLOPs a token and bytes of state at two lengths."""
    rows = []
    for length in LENGTHS:
        outline = get("numpy").outline()
        with using(outline), transforming():
            layer = build(name)
            x, before = full((1, length, WIDTH), 0.01), outline.flops
            if "residual" in name:
                layer(x, x)
            else:
                layer(x)
            flops = (outline.flops - before) / length
            state = "none"
            if getattr(layer, "mixes_sequence", name == "pool"):
                try:
                    state = f"{sum(t.nbytes for t in tree.tensors(layer(x, layer.initial_state(1))[1])):,}"
                except NotImplementedError:                  # UnsupportedOp: this layer has no step
                    pass
            rows.append(f"| {length:,} | {layer.count():,} | {flops:,.0f} | {state} |")
    given = ", ".join(f"{k}={v!r}" for k, v in {"d_input": WIDTH, **NEEDED.get(name, {})}.items())
    return (f"With `{given}`, one sequence, float32; a multiply-add is two FLOPs, counted over the portable algorithm:\n\n"
            "| positions | parameters | FLOPs a token | bytes of state |\n|---:|---:|---:|---:|\n" + "\n".join(rows))


def fields(config) -> str:
    """A table of the config's fields, and its docstring."""
    rows = []
    for f in dataclasses.fields(config):
        default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
        kind = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
        shown = "needed" if default is dataclasses.MISSING else f"`{default!r}`"
        rows.append(f"| `{f.name}` | {kind.replace('|', 'or')} | {shown} |")
    return (f"`{config.__name__}`. " + code_blocks(inspect.getdoc(config) or "") + "\n\n| field | type | default |\n|---|---|---|\n" + "\n".join(rows))


def page(name: str) -> str:
    """The page of a layer. Raises LookupError for a docstring without formula or source."""
    layer = layers.get(name)
    told = sections(inspect.getdoc(layer) or "")
    if not told[""] or not told.get("Source"):
        raise LookupError(f"{name}: expected a docstring with what it computes and 'Source: ...'")
    mixes = getattr(layer, "mixes_sequence", None)
    kind = {True: "sequence mixer", False: "channel mixer"}.get(mixes, "pool" if name == "pool" else "residual connection")
    shapes = [f"- `{method}`: {one_line(inspect.getdoc(getattr(layer, method)))}" for method in ("forward", "step", "initial_state")
              if inspect.getdoc(getattr(layer, method, None))]
    parts = [f"# {name}", f"`{layer.__module__}.{layer.__qualname__}`, a {kind}.", "## Formula", code_blocks(told[""])]
    for label in ("Parameters", "Buffers"):
        if label in told:
            parts += [f"## {label}", one_line(told[label])]
    parts += ["## State", one_line(told.get("State", "None: each position stands alone." if not mixes else "See `initial_state`.")),
              "## Shapes", "\n".join(shapes), "## Cost", cost(name), "## Configuration", fields(layer.Config), "## Source", one_line(told["Source"])]
    return "\n\n".join(parts) + "\n"


def main(folder: Path):
    """Writes all pages and an index; removes pages of layers that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {f"{name}.md": page(name) for name in layers.names()}
    pages["README.md"] = "# Layers\n\nWritten by `make docs` from the docstrings.\n\n" + "\n".join(
        f"- [{name}]({name}.md): {one_line(sections(inspect.getdoc(layers.get(name)))[''])[:100]}" for name in layers.names()) + "\n"
    for old in set(p.name for p in folder.glob("*.md")) - pages.keys():
        (folder / old).unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    sys.stdout.write(f"{len(pages) - 1} pages in {folder}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("layers"))
