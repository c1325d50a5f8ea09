"""What NVIDIA's own compiler says of the CUDA kernels, which needs no GPU: it takes them, and their resources."""

import re
import shutil
import subprocess

import pytest

from ember_ml.kernels import DTYPES, SPECS, source_text

C_TYPES = dict(zip(DTYPES, ("float", "__half", "__nv_bfloat16")))
FILES = {stem: [spec for spec in SPECS if spec.stem == stem] for stem in sorted({spec.stem for spec in SPECS})}


def parameters(stem: str, name: str, c_type: str) -> str:
    """Parameter list of a kernel, as the file has it, for T = c_type."""
    found = re.search(rf"__global__ void {name}\((.*?)\) {{", source_text("cuda", stem), re.DOTALL)
    return re.sub(r"\bT\b", c_type, found[1])


@pytest.mark.slow
@pytest.mark.parametrize("stem", FILES)
def test_resources(stem, tmp_path):
    nvcc = shutil.which("nvcc")
    assert nvcc, "nvcc is not on the PATH; Debian and Ubuntu have it in the package nvidia-cuda-toolkit"
    ceilings = {entry.name: spec.registers for spec in FILES[stem] for entry in spec.entries}
    shared = {entry.name: spec.shared_bytes for spec in FILES[stem] for entry in spec.entries}
    instances = [f"template __global__ void {name}<{c}>({parameters(stem, name, c)});\n"
                 for name in ceilings for c in C_TYPES.values()]
    file = tmp_path / f"{stem}.cu"
    file.write_text(source_text("cuda", stem) + "".join(instances))
    done = subprocess.run([nvcc, "-arch=sm_90", "-std=c++17", "-Werror=all-warnings", "-cubin", "-Xptxas", "-v", "-o",
                           tmp_path / "out.cubin", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                       r"(\d+) bytes spill loads.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?", done.stderr, re.DOTALL)
    assert len(found) == len(instances)
    for mangled, stack, stores, loads, registers, smem in found:
        (name,) = [name for name in ceilings if f"{len(name)}{name}I" in mangled]
        ceiling = ceilings[name]
        assert int(smem or 0) == shared[name], f"{mangled} uses {smem or 0} bytes of shared memory"
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{mangled} spills"
        assert int(registers) <= ceiling, f"{mangled} uses {registers} registers, at most {ceiling} were meant"
