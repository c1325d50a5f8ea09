"""Compiles C, C++ and Metal for the executor with the clang of the `ziglang` wheel, so that pip is all it takes.

Results are kept in $EMBER_SIMT_CACHE, or `ember-simt` in the user's cache folder, by the hash of all that went in.
"""

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent

#: without the last option LLVM might keep a threadgroup variable in a register over a barrier
FAST = ("-O2", "-fPIC", "-g1", "-mf16c", "-ffp-contract=fast", "-mllvm", "-enable-global-analyses=false")

#: -O1 and no vectors keep every access of the source; the sanitizers' calls land in executor.c
CHECKED = (*FAST, "-O1", "-fno-vectorize", "-fno-slp-vectorize", "-fsanitize=thread,alignment,array-bounds",
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
    """Standard output of clang, with `text` as its standard input. Raises CompileError with what it says."""
    return _run("clang", "--target=x86_64-linux-gnu", "-nostdinc", "-isystem", str(_zig().parent / "lib" / "include"),
                *flags, text=text)


def shared_library(name: str, text: str, *flags: str) -> Path:
    """A .so of one source text. Nothing is linked in: libc, libm and the executor are in the process already."""
    def make(path: Path):
        assembly = clang(*flags, "-S", "-o", "-", "-", text=text)
        clang("-x", "assembler", "-c", "-o", f"{path}.o", "-", text=_with_lines(assembly) if "-g1" in flags else assembly)
        _run("ld.lld", "-shared", "-o", str(path), f"{path}.o")
        os.unlink(f"{path}.o")

    return cached(name, [text, *flags], make)


def _with_lines(assembly: str) -> str:
    """Before each call into the executor, stores the source position (file << 20 | line) in simt_line.

    r11 is free there: a call may overwrite it and passes nothing in it. The files' names go into `simt_files`, the
    bounds of constant tables and code into `simt_constants`, and those of the threadgroup arrays, which are all the
    module's zeroed memory, into `simt_shared`.
    """
    out, where, files = [], 0, {}
    for line in assembly.splitlines():
        if found := re.match(r"\s+\.file\s+(\d+)\s.*?\"([^\"]*)\"(?:\s+md5.*)?$", line):
            files[found[1]] = found[2]
        elif found := re.match(r"\s+\.loc\s+(\d+)\s+(\d+)", line):
            where = int(found[1]) << 20 | int(found[2])
        elif re.match(r"\s+callq?\s+(__tsan_|__ubsan_|simt_barrier|simt_simdgroup_barrier|simt_exchange|simt_refuse)", line):
            out += ["\tmovq\tsimt_line@GOTPCREL(%rip), %r11", f"\tmovl\t${where}, (%r11)"]
        out.append(line)
    table = "|".join(f"{number}={name}" for number, name in files.items())
    bounds = "__bss_start, _end" if re.search(r"\s\.(bss|l?comm)\b", assembly) else "0, 0"
    return "\n".join([*out, "\t.section .rodata", "\t.globl simt_files", f'simt_files: .asciz "{table}"', "\t.data",
                      "\t.balign 8", "\t.globl simt_shared, simt_constants",
                      "\t.hidden __bss_start, _end, __ehdr_start, _etext", f"simt_shared: .quad {bounds}",
                      "simt_constants: .quad __ehdr_start, _etext", ""])


def _run(tool: str, *arguments: str, text: str = "") -> str:
    done = subprocess.run([str(_zig()), tool, *arguments], input=text, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr.strip())
    return done.stdout
