"""Where a verb speaks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from ember_ml.errors import ConfigError
from ember_ml.registry.strict_json import dumps


class Output:
    """Lines for people on standard output; or, for scripts, one JSON document there and the lines on standard error.

    Args:
        json: whether a script reads.

    Attributes:
        console: prints lines as they are. live: whether they go to a terminal that may be drawn on (not with NO_COLOR).
    """

    def __init__(self, json: bool = False):
        self.json = json
        self.console = Console(stderr=json, highlight=False, soft_wrap=True, markup=False, emoji=False)
        self.live = self.console.is_terminal and not self.console.is_dumb_terminal and not os.environ.get("NO_COLOR")

    def say(self, text: str = ""):
        """Prints a line."""
        self.console.print(text)

    def result(self, document: Any):
        """Writes what a verb found, if a script reads. Numbers that JSON does not have (nan, inf) become null."""
        if self.json:
            sys.stdout.write(dumps(document, indent=1) + "\n")


def writable(file: Path | None):
    """Raises ConfigError if no file can be written there: before the work, not after it."""
    if file is not None and (file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK)):
        raise ConfigError(f"{file}: expected a file to write: " + ("it is a folder" if file.is_dir() else "there is no such folder" if
                          not file.parent.is_dir() else "it is not allowed there"))
