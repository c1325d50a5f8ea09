"""What ptxas says of the CUDA kernels, which needs no GPU: nothing spills, registers and shared memory are as the specs say."""

import re
import shutil
import subprocess
import sys

import pytest

from ember_ml.kernels import DTYPES, SPECS, source_text
from tests.kernels.calls import STEMS, calls


@pytest.fixture
def launched(cuda, monkeypatch):
    """Names of the kernels that are launched."""
    cupy, names = sys.modules["cupy"], []

    class Module(cupy.RawModule):
        def get_function(self, name):
            names.append(name)
            return super().get_function(name)

    monkeypatch.setattr(cupy, "RawModule", Module)
    return names


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS)
def test_resources(stem, cuda, launched, tmp_path):
    nvcc = shutil.which("nvcc")
    assert nvcc, "nvcc is not on the PATH; Debian and Ubuntu have it in the package nvidia-cuda-toolkit"
    for call in calls(stem):
        for dtype in DTYPES:
            call(cuda, dtype)
    names = sorted(set(launched))
    specs = {entry.name: spec for spec in SPECS for entry in spec.entries}
    file = tmp_path / f"{stem}.cu"
    # a kernel is made where its address is taken
    file.write_text(source_text("cuda", stem) + "".join(f"void* made_{i}() {{ return (void*){n}; }}\n" for i, n in enumerate(names)))
    done = subprocess.run([nvcc, "-arch=sm_90", "-std=c++17", "-Werror=all-warnings", "-cubin", "-Xptxas", "-v", "-o",
                           tmp_path / "out.cubin", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                       r"(\d+) bytes spill loads.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?", done.stderr, re.DOTALL)
    assert len(found) == len(names)
    for mangled, stack, stores, loads, registers, shared in found:
        assert (int(stack), int(stores), int(loads)) == (0, 0, 0), f"{mangled} spills"
        name = re.match(r"_Z(\d+)(\w+)", mangled)
        spec = specs.get(name[2][:int(name[1])])
        if spec is not None:
            assert int(registers) <= spec.registers, f"{mangled} uses {registers} registers, at most {spec.registers} were meant"
            assert int(shared or 0) == spec.shared_bytes, f"{mangled} uses {shared or 0} bytes of shared memory"
