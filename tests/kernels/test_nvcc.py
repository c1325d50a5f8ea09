"""What ptxas says of the CUDA kernels, which needs no GPU: nothing spills, registers and shared memory are as the specs say."""

import re
import shutil
import subprocess
import sys

import pytest

from ember_ml.kernels import DTYPES, SPECS, source_text
from ember_ml.kernels import fftconv_launch as fftconv
from ember_ml.kernels.fftconv_plan import LONGEST, cuda_plans
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


def resources(stem: str, names: list[str], tmp_path, spilled: int = 0) -> list[tuple[str, int, int]]:
    """(mangled name, registers, bytes of static shared memory) of kernels of a file, none of which spills, or more than so many bytes."""
    nvcc = shutil.which("nvcc")
    assert nvcc, "nvcc is not on the PATH; Debian and Ubuntu have it in the package nvidia-cuda-toolkit"
    file = tmp_path / f"{stem}.cu"
    # a kernel is made where its address is taken
    file.write_text(source_text("cuda", stem) + "".join(f"void* made_{i}() {{ return (void*){n}; }}\n" for i, n in enumerate(names)))
    done = subprocess.run([nvcc, "-arch=sm_90", "-std=c++17", "-Werror=all-warnings", "-cubin", "-Xptxas", "-v", "-o",
                           tmp_path / "out.cubin", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
                       r"(\d+) bytes spill loads.*?Used (\d+) registers(?:[^\n]*?(\d+) bytes smem)?", done.stderr, re.DOTALL)
    assert len(found) == len(names)
    for mangled, stack, stores, loads, *_ in found:
        assert max(int(stack), int(stores), int(loads)) <= spilled, f"{mangled} spills"
    return [(mangled, int(registers), int(shared or 0)) for mangled, _, _, _, registers, shared in found]


@pytest.mark.slow
@pytest.mark.parametrize("stem", STEMS)
def test_resources(stem, cuda, launched, tmp_path):
    for call in calls(stem):
        for dtype in DTYPES:
            call(cuda, dtype)
    specs, most = {entry.name: spec for spec in SPECS for entry in spec.entries}, {}
    for mangled, registers, shared in resources(stem, sorted(set(launched)), tmp_path):
        name = re.match(r"_Z(\d+)(\w+)", mangled)
        spec = specs.get(name[2][:int(name[1])])
        if spec is not None:
            assert registers <= spec.registers, f"{mangled} uses {registers} registers, at most {spec.registers} were meant"
            most[spec.name] = max(most.get(spec.name, 0), shared)
    assert most == {spec.name: spec.shared_bytes for spec in SPECS if spec.stem == stem}


@pytest.mark.slow
@pytest.mark.parametrize("log_m", range(5, 15))
def test_the_long_convolutions_plans_leave_room_for_their_blocks(log_m, tmp_path):
    forward, backward = cuda_plans(log_m)
    gates = fftconv.GATE_BEFORE | fftconv.GATE_AFTER
    everything = gates | fftconv.SKIP | fftconv.MASK | fftconv.GELU
    names = [f"fftconv_{kind}<{dtype}, {plan.log_m}, {plan.log_points}, {plan.rows}, {str(plan.split).lower()}, {options}, "
             f"{plan.blocks}{more}>"
             for kind, plan, more in (("forward", forward, ""), ("backward", backward, f", {backward.keep}"))
             for dtype, options in (("float", 0), ("float", gates), ("float", everything), ("__nv_bfloat16", everything))]
    for mangled, registers, shared in resources("fftconv", names, tmp_path):
        plan = backward if "backward" in mangled else forward
        assert shared == 0 and -(-registers // 8) * 8 * plan.threads * plan.blocks <= 65536, f"{mangled} uses {registers} registers"


@pytest.mark.slow
@pytest.mark.parametrize("log_m, spilled", [(10, 0), (12, 16), (13, 0), (14, 0)])
def test_rows_of_any_length_spill_a_few_numbers_at_most(log_m, spilled, tmp_path):
    """Where a row ends within the second half of its transform, as those of 2^j + 2 do; 4096 points have 64 registers a thread."""
    options = fftconv.GATE_BEFORE | fftconv.GATE_AFTER | fftconv.FOLD | fftconv.RAGGED | fftconv.TAIL
    plan, _ = cuda_plans(log_m)
    name = f"fftconv_forward<float, {log_m}, {plan.log_points}, {plan.rows}, {str(plan.split).lower()}, {options}, {plan.blocks}>"
    assert resources("fftconv", [name, "fftconv_tail<float, 1, false>", "fftconv_tail<float, 31, true>"], tmp_path, spilled)


@pytest.mark.slow
def test_columns_of_the_longest_rows(tmp_path):
    plan, _ = cuda_plans(LONGEST)
    gates = fftconv.GATE_BEFORE | fftconv.GATE_AFTER
    names = [f"fftconv_columns<float, {plan.outer}, {plan.inner.log_m}, {gates}, fftconv::{stage}>"
             for stage in ("SIGNAL", "OUTPUT", "TURN", "BACK")]
    for mangled, registers, _ in resources("fftconv", names, tmp_path):
        assert registers * 256 <= 65536, f"{mangled} uses {registers} registers"
