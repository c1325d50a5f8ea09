"""Stands in for mx.fast.metal_kernel: the text that MLX generates, compiled by clang and run by the executor.

Metal's compiler is a clang, and so is ours: in the mode "C++ for OpenCL" it has the same address spaces, so that mixing
them up is a compile error here too. MLX's text is compiled as it is; metal/metal_stdlib brings Metal's names.
"""

import re
from functools import cache
from math import prod
from pathlib import Path

import mlx.core as mx
import numpy as np

from tests.simt.build import HERE, KERNEL, CompileError, cached, clang, shared_library
from tests.simt.executor import Buffer, KernelFault, Module

_TYPES = {"float32": "float", "float16": "float16_t", "bfloat16": "bfloat16_t", "int32": "int32_t",
          "uint32": "uint32_t"}

def _three(row: int) -> tuple[str, str]:
    return "uint3", f"uint3(simt_id({4 * row}), simt_id({4 * row + 1}), simt_id({4 * row + 2}))"


#: what a Metal thread may ask, in MLX's order: (type, value)
_ATTRIBUTES = {
    "simdgroup_index_in_threadgroup": ("uint", "simt_id(22)"),
    "thread_index_in_simdgroup": ("uint", "simt_id(21)"),
    "thread_index_in_threadgroup": ("uint", "simt_id(20)"),
    "thread_position_in_grid": ("uint3", f"({_three(1)[1]} * {_three(2)[1]} + {_three(0)[1]})"),
    "thread_position_in_threadgroup": _three(0),
    "threadgroup_position_in_grid": _three(1),
    "threadgroups_per_grid": _three(4),
    "threads_per_threadgroup": _three(3),
}

_FLAGS = ("-x", "cl", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant", "-Wno-unknown-attributes",
          "-Werror=shorten-64-to-32",                      # offsets are size_t; what is cut off is cut off by name
          "-I", str(HERE / "metal"))

#: MLX's own prelude, as far as generated text uses it (mlx/backend/metal/kernels/bf16.h)
_PRELUDE = "#include <metal_stdlib>\nusing namespace metal;\ntypedef half float16_t;\ntypedef bfloat bfloat16_t;\n"

THREADGROUP_MEMORY = 32768

#: of a threadgroup: every Apple GPU starts so many, whatever registers the kernel needs. Where it needs few there may be 1024, which
#: only the machine tells: MLX raises beyond its limit
THREADS = 256

#: arrays and numbers of a kernel
ARGUMENTS = 31


def dtype_name(dtype) -> str:
    """mx.float32, np.dtype("float32") -> "float32"."""
    return str(dtype).rpartition(".")[2]


def generated(name, header, source, input_names, inputs, output_names, output_dtypes) -> tuple[str, str, list[str]]:
    """(kernel name, text, parameters) that MLX generates for a call, to the letter.

    Args:
        inputs: (dtype name, ndim, size) of each input. output_dtypes: names of the outputs' dtypes.
    """
    kernel, params = f"custom_kernel_{name}", []
    for n, (dtype, ndim, size) in zip(input_names, inputs):
        small = size < 8                                       # MLX passes these by value, as constants
        kernel += f"_{_TYPES[dtype]}" + ("s" if ndim == 0 else "c" if small else "")
        params.append(f"const {'constant' if small else 'device'} {_TYPES[dtype]}{'*' if ndim else '&'} {n}")
        if ndim:
            params += [f"const constant {kind} {n}_{what}" for what, kind in
                       (("shape", "int*"), ("strides", "int64_t*"), ("ndim", "int&")) if f"{n}_{what}" in source]
    for n, dtype in zip(output_names, output_dtypes):
        kernel += f"_{_TYPES[dtype]}"
        params.append(f"device {_TYPES[dtype]}* {n}")
    listed = [f"  {p} [[buffer({i})]]" for i, p in enumerate(params)]
    listed += [f"  {kind} {a} [[{a}]]" for a, (kind, _) in _ATTRIBUTES.items() if a in source]
    text = f"{header}[[kernel]] void {kernel}(\n" + ",\n".join(listed) + ") {\n" + source + "\n}\n"
    return kernel, text, params


def _compile(name, header, source, input_names, inputs, output_names, output_dtypes) -> Module:
    kernel, text, params = generated(name, header, source, input_names, inputs, output_names, output_dtypes)
    if len(params) > ARGUMENTS:
        raise CompileError(f"{name}: {len(params)} arguments, Metal allows {ARGUMENTS}")
    if not text.isascii():
        raise CompileError(f"{name}: MLX hands Metal ASCII text, this has {sorted({c for c in text if not c.isascii()})}")
    arguments = []
    for i, param in enumerate(params):
        kind = param.rpartition(" ")[0]
        arguments.append(f"*({kind[:-1]}*)a[{i}]" if kind.endswith("&") else f"({kind})a[{i}]")
    arguments += [value for a, (_, value) in _ATTRIBUTES.items() if a in source]
    text = text.replace("[[kernel]] void", "__kernel void")    # OpenCL's word for the same
    host = (f'{_PRELUDE}#line 1 "{name}.metal"\n{text}extern "C" '
            f"void simt_entry(__private ulong *a) {{ {kernel}({', '.join(arguments)}); }}\n")
    file = kernel[:200]                                        # a file's name has 255 letters
    library = shared_library(file, [host], *_FLAGS, *KERNEL)   # first: its errors are the clearer ones
    if "simt_left_out" not in header:                          # a mutation's text is linted without this
        cached(f"{file}-linted", [host, _rules()], lambda path: _lint(host, path))
    return Module(library)


@cache
def _rules() -> str:
    """What the outcome of `_lint` depends on besides the kernel."""
    return Path(__file__).read_text()


def _lint(host: str, mark) -> None:
    """Finds what Metal refuses and clang lets pass: pointers and references without an address space ("generic"), variables of
    the whole program outside of constant memory, and what came into C++ after C++14, on which Metal is based until 3.2. `if constexpr`
    is an exception: Apple's compiler takes it, with a warning."""
    dump = clang(*_FLAGS, "-fsyntax-only", "-fno-color-diagnostics", "-Wpre-c++17-compat", "-Xclang", "-ast-dump", "-", text=host)
    found, at = [], dump.find("__generic")
    while at >= 0:
        start, end = dump.rfind("\n", 0, at) + 1, dump.find("\n", at)
        line = dump[start:end]
        declared = re.search(r"(?:ParmVar|Var|Field)Decl .* (\w+) '([^']*__generic[^']*)'", line)
        if declared and "implicit" not in line:
            # a file is named only where it changes
            named = {file: dump.rfind(f"{file}:", 0, start + line.index("'")) for file in (".metal", "metal_stdlib", "<stdin>")}
            if max(named, key=named.get) == ".metal":
                found.append(f"'{declared[1]}' is a pointer or reference without an address space ({declared[2]})")
        at = dump.find("__generic", end)
    found += [f"'{name}' lives as long as the program ({kind.strip()}): make it constant"
              for name, kind in re.findall(r"VarDecl [^\n']* (\w+) '((?:const )?__global [^'\n*&]*)'", dump)]
    warnings = dump[:dump.find("TranslationUnitDecl")]         # come first; the dump has megabytes
    found += [f"{place} {what}" for place, what in re.findall(r"^([^\s:]+\.metal:\d+:)\d+: warning: (.*C\+\+.*) \[", warnings, re.M)
              if not what.startswith("constexpr if ")]
    if "LambdaExpr" in dump:
        found.append("a lambda: Metal has none before 3.2")
    if found:
        raise CompileError("\n".join(dict.fromkeys(found)))
    mark.touch()


def _to_numpy(x) -> np.ndarray:
    """The same memory, so with the same strides."""
    return np.asarray(x.view(mx.uint16) if isinstance(x, mx.array) and x.dtype == mx.bfloat16 else x)


class metal_kernel:
    """mx.fast.metal_kernel without template, atomics and options that our kernels do not use.

    Takes mx.arrays or NumPy arrays, and gives back what it was given. Not for use inside mx.compile or mx.vmap, where
    arrays have no values.
    """

    def __init__(self, name, input_names, output_names, source, header="", ensure_row_contiguous=True):
        self.name, self.input_names, self.output_names = name, list(input_names), list(output_names)
        self.source, self.header, self.contiguous, self.modules = source, header, ensure_row_contiguous, {}

    def __call__(self, *, inputs, output_shapes, output_dtypes, grid, threadgroup, init_value=None):
        types, out_types = [dtype_name(x.dtype) for x in inputs], [dtype_name(d) for d in output_dtypes]
        arrays = [_to_numpy(x) for x in inputs]
        known = tuple((t, a.ndim, a.size) for t, a in zip(types, arrays))
        key = (tuple((t, n, s < 8) for t, n, s in known), tuple(out_types))
        if key not in self.modules:
            self.modules[key] = _compile(self.name, self.header, self.source, self.input_names, known,
                                         self.output_names, out_types)
        arguments = []
        for n, a in zip(self.input_names, arrays):
            given = {n: a}
            if a.ndim:
                a = given[n] = np.ascontiguousarray(a) if self.contiguous else a
                given |= {f"{n}_shape": np.array(a.shape, np.int32), f"{n}_ndim": np.array([a.ndim], np.int32),
                          f"{n}_strides": np.array(a.strides, np.int64) // a.itemsize}
            arguments += [Buffer(k, v, False, True) for k, v in given.items() if k == n or k in self.source]
        stored = [np.dtype("uint16" if t == "bfloat16" else t) for t in out_types]
        results = [np.full(shape, init_value or 0, d) for shape, d in zip(output_shapes, stored)]
        outputs = [Buffer(n, r, True, init_value is not None) for n, r in zip(self.output_names, results)]
        group = [min(t, g) for t, g in zip(threadgroup, grid)]
        if prod(group) > THREADS:
            raise KernelFault(f"{prod(group)} threads in a group, of which only {THREADS} are sure to start")
        self.modules[key].launch("simt_entry", arguments + outputs, grid, group, THREADGROUP_MEMORY, name=self.name)
        if not any(isinstance(x, mx.array) for x in inputs):
            return results
        return [mx.array(r).view(mx.bfloat16) if t == "bfloat16" else mx.array(r) for r, t in zip(results, out_types)]
