"""`ember data`: what is in the data of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ember_ml.cli.output import Output
from ember_ml.cli.overrides import override
from ember_ml.data.inspect import inspect
from ember_ml.errors import ConfigError
from ember_ml.registry import read_table

_BAR = 40


def table(path: Path, sets: list[str]) -> dict[str, Any]:
    """The [data] table of a file, with `sets` applied. Raises ConfigError if it has none, or for a set of anything else."""
    if wrong := next((text for text in sets if not text.strip().startswith("data.")), None):
        raise ConfigError(f"--set {wrong}: expected a value of the data, such as data.length=256")
    found = override(read_table(path), sets).get("data")
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: has no table [data]")
    return found


def run(path: Path, sets: list[str], output: Output):
    """Prints counts, a histogram of lengths, the files with their hashes, a first sample, and lines that cannot be read."""
    facts = inspect(table(path, sets))
    lengths = facts["lengths"]
    output.say(f"{facts['kind']}: {facts['summary']}")
    for file in facts["files"]:
        output.say(f"  {file['name']}, {file['size']:,} bytes, SHA-256 {file['sha256']}")
    sizes = ", ".join(f"{name} {facts[name]:,}" for name in ("vocabulary", "channels", "classes", "outputs") if name in facts)
    output.say(f"task {facts['task']}, {sizes}; {facts['items']:,} items, {facts['batches']:,} batches a pass")
    output.say(f"length: {lengths['min']:,} to {lengths['max']:,}, median {lengths['median']:,.0f}, mean {lengths['mean']:,.1f}, "
               f"{lengths['total']:,} in all")
    most = max(b["count"] for b in lengths["histogram"])
    for b in (b for b in lengths["histogram"] if b["to"] >= lengths["min"]):
        output.say(f"  {b['from']:>12,} to {b['to']:>12,} {b['count']:>12,} {'#' * -(-_BAR * b['count'] // most)}")
    output.say(f"first: {facts['first']!r}")
    for line in facts["bad_lines"][:10]:
        output.say(f"bad: {line}")
    if len(facts["bad_lines"]) > 10:
        output.say(f"bad: {len(facts['bad_lines']) - 10:,} more")
    output.result(facts)
