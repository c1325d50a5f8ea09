"""NVIDIA's own compiler takes every kernel that the launchers hand to CuPy: the same text, names and options, for compute capability 9.0.

NVRTC comes with pip and needs no GPU. Registers and spills are looked at by test_nvcc.py.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

from ember_ml.kernels import DTYPES
from tests.conftest import fail_in_ci
from tests.kernels.calls import STEMS, calls
from tests.simt.build import cached


@pytest.fixture(scope="module")
def nvrtc():
    """cupy.cuda.nvrtc, and the options that tell it where CUDA's headers are."""
    headers = importlib.util.find_spec("nvidia")
    include = [p for root in (headers.submodule_search_locations if headers else ()) for p in Path(root).glob("*/include")]
    if not any((p / "cuda_fp16.h").exists() for p in include):
        fail_in_ci("needs nvidia-cuda-nvrtc and nvidia-cuda-runtime, which `make test` installs on Linux")
    from cupy.cuda import nvrtc
    nvrtc.getVersion()                                         # loads the library while cupy is the real one
    return nvrtc, tuple(f"-I{p}" for p in include)


@pytest.fixture
def asked(nvrtc, cuda, monkeypatch):
    """Names of the kernels that would be launched, by (text, options); none is."""
    found = {}

    class Module:
        def __init__(self, *, code, options=(), name_expressions):
            self.key = code, options

        def get_function(self, name):
            found.setdefault(self.key, {})[name] = None
            return lambda *args, **more: None

    monkeypatch.setattr(sys.modules["cupy"], "RawModule", Module)
    return found


@pytest.mark.parametrize("stem", STEMS)
def test_every_kernel_compiles(nvrtc, asked, cuda, stem):
    """All kernels of a file at once: most of the time goes into CUDA's headers."""
    compiler, include = nvrtc
    for dtype in DTYPES:
        some = None if dtype == "float32" else 1               # longer rows have the same functions, which nvcc compiles for all dtypes
        for call in calls(stem)[:some if stem == "fftconv" else None]:
            call(cuda, dtype)
    assert asked
    for (text, options), names in asked.items():
        def make(path):
            program = compiler.createProgram(text, "kernel.cu", (), ())
            for name in names:
                compiler.addNameExpression(program, name)
            compiler.compileProgram(program, (*options, *include, "-arch=compute_90"))
            path.write_bytes(compiler.getPTX(program))

        ptx = cached("ptx", [*names, text, *options, str(compiler.getVersion())], make).read_text()
        assert ptx.count(".entry") >= len(names) and "sm_90" in ptx


def test_a_wrong_kernel_is_refused(nvrtc):
    """For example vector arithmetic, which the stand-in's vectors have and CUDA's do not."""
    compiler, include = nvrtc
    text = "__global__ void twice(float2* a) { a[0] = a[0] + a[0]; }"
    with pytest.raises(compiler.NVRTCError):
        compiler.compileProgram(compiler.createProgram(text, "kernel.cu", (), ()), (*include, "-arch=compute_90"))
