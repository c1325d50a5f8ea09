"""Replacing a file so that a reader, also after a crash, finds the old one or the new one, whole."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from contextlib import suppress


def replace(path: str | os.PathLike, chunks: Iterable[bytes | memoryview]) -> None:
    """Puts a file of these bytes in the place of `path`. A symbolic link stays one: what it points to is replaced.

    The bytes go into a file beside it, `.NAME.<random>.tmp`, which a killed process leaves behind and no reader looks
    for.

    Raises OSError; the old file is then as it was, and the temporary one is gone.
    """
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, "there is no such folder to save in; make it first", folder)
    temporary = os.path.join(folder, f".{name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as f:
            for chunk in chunks:
                f.write(chunk)
            f.flush()
            os.fsync(f.fileno())                         # else the rename may reach the disk before the data
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):                # after the rename there is none
            os.unlink(temporary)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)                              # the rename itself
    finally:
        os.close(directory)
