"""Compiles C, C++ and Metal for the executor with the clang of the `ziglang` wheel, so that pip is all it takes.

Results are kept in $EMBER_SIMT_CACHE, or `ember-simt` in the user's cache folder, by the hash of all that went in.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent

#: clang's part of compiling a kernel: no optimisation, which the linker does
KERNEL = ("-O1", "-Xclang", "-disable-llvm-passes", "-emit-llvm", "-fPIC", "-gdwarf-4", "-gline-tables-only", "-mf16c",
          "-fsanitize=thread,alignment,array-bounds")

#: The linker's: variables into registers and out what nobody uses, then the sanitizer's calls, which land in checker.c, then plain
#: machine code. So little takes a quarter of -O1's time, and leaves every access of the source where it stands.
_LINK = ("--lto-O0", "--lto-CGO0", "--disable-verify",
         "--lto-newpm-passes=always-inline,globaldce,function(sroa,early-cse,dce,simplifycfg),tsan-module,function(tsan)",
         "-mllvm", "-tsan-instrument-func-entry-exit=0", "-mllvm", "-tsan-instrument-read-before-write=1")


class CompileError(RuntimeError):
    """The compiler refused a kernel; the message is the compiler's."""


def unavailable() -> str | None:
    """Why kernels cannot run here, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return (f"kernels run on a CPU only under Linux on x86-64, not {sys.platform} on {platform.machine()}; "
                "a Mac runs them on its GPU")
    return None


@cache
def _zig() -> Path:
    found = importlib.util.find_spec("ziglang")
    if found is None:
        raise CompileError("tests/simt needs the package ziglang, a compiler in a wheel: pip install 'ember-ml[dev]'")
    return Path(found.origin).parent / "zig"


@cache
def _harness() -> str:
    """What results depend on besides their own text: the compiler, the headers, this file."""
    files = sorted(p for p in HERE.rglob("*") if p.suffix in (".h", ".c", "") and p.is_file()) + [Path(__file__)]
    texts = [importlib.metadata.version("ziglang"), *(p.read_text() for p in files)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def place(name: str, inputs: list[str]) -> Path:
    """Where the cache keeps what is made from these inputs."""
    folder = Path(os.environ.get("EMBER_SIMT_CACHE") or
                  Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ember-simt")
    return folder / f"{name}-{hashlib.sha256(chr(0).join([_harness(), *inputs]).encode()).hexdigest()[:20]}"


def cached(name: str, inputs: list[str], make) -> Path:
    """The file that `make(path)` writes for these inputs, made at most once."""
    path = place(name, inputs)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.{os.getpid()}")
        make(part)
        part.replace(path)                               # whole or not at all, also when two runs write it
    return path


def clang(*flags: str, text: str = "") -> str:
    """What clang prints, warnings first, with `text` as its standard input. Raises CompileError with what it says."""
    return _run("clang", "--target=x86_64-linux-gnu", "-nostdinc", "-isystem", str(_zig().parent / "lib" / "include"),
                *flags, text=text)


def shared_library(name: str, texts: list[str], *flags: str) -> Path:
    """A .so of source texts. Nothing is linked in: libc, libm and the executor are in the process already."""
    def make(path: Path):
        objects = [f"{path}.{i}.o" for i in range(len(texts))]
        for text, made in zip(texts, objects):
            clang(*flags, "-c", "-o", made, "-", text=text)
        _run("ld.lld", "-shared", *_LINK, "-o", str(path), *objects)
        for made in objects:
            os.unlink(made)

    return cached(name, [*texts, *flags], make)


def _run(tool: str, *arguments: str, text: str = "") -> str:
    done = subprocess.run([str(_zig()), tool, *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr.strip())
    return done.stderr + done.stdout
