"""The text of the kernel files: the checkout's `metal/` and `cuda/` folders, or the copies that the wheel brings.

Where a file has a line `#include "part.metal"`, the text of that file of its folder stands in its place: compilers get one text, since
those that read it (MLX's, NVRTC) know no folder of ours. Lines keep their numbers, and errors name the part.
"""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

_SUFFIX = {"metal": ".metal", "cuda": ".cu"}

#: where the two folders are looked for, in this order
PLACES = (Path(__file__).parents[2], Path(__file__).parents[1] / "_kernels")


@cache
def source_text(language: str, stem: str) -> str:
    """The text of metal/<stem>.metal or cuda/<stem>.cu, with the parts that it includes.

    Args:
        language: "metal" or "cuda".
        stem: the file's name without its suffix, such as "moe".

    Raises FileNotFoundError that names every place where it looked.
    """
    name = f"{stem}{_SUFFIX[language]}"
    looked = [place / language / name for place in PLACES]
    for path in looked:
        if path.is_file():
            return _joined(language, name, path.read_text(encoding="utf-8"))
    raise FileNotFoundError(f"kernels: expected the file {language}/{name}, found neither {looked[0]} (a checkout) nor "
                            f"{looked[1]} (an installed package); install ember-ml again")


def _joined(language: str, name: str, text: str) -> str:
    lines = text.splitlines(keepends=True)
    for i, line in enumerate(lines):
        if part := re.fullmatch(rf'#include "((\w+){_SUFFIX[language]})"\s*', line):
            lines[i] = f'#line 1 "{part[1]}"\n{source_text(language, part[2])}#line {i + 2} "{name}"\n'
    return "".join(lines)


def digest(language: str, stem: str) -> str:
    """Twelve hexadecimal digits that change with the text of the file."""
    return hashlib.sha256(source_text(language, stem).encode()).hexdigest()[:12]
