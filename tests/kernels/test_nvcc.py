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


def resources(stem: str, names: list[str], tmp_path) -> list[tuple[str, int, int]]:
    """(mangled name, registers, bytes of static shared memory) of kernels of a file, none of which spills."""
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
        assert max(int(stack), int(stores), int(loads)) == 0, f"{mangled} spills"
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


GATES = fftconv.GATE_BEFORE | fftconv.GATE_AFTER
EVERYTHING = GATES | fftconv.SKIP | fftconv.MASK | fftconv.GELU
EARLY = fftconv.FOLD | fftconv.RAGGED                      # a row ends within the second half of its transform


def check_room(log_m, forms, tmp_path):
    """Neither forward nor gradient of the forms (type, options) spills, and a multiprocessor holds the plan's blocks."""
    forward, backward = cuda_plans(log_m)
    names = [f"fftconv_{kind}<{c_type}, {plan.template('cuda', options)}{more}>"
             for kind, plan, more in (("forward", forward, ""), ("backward", backward, f", {backward.keep}")) for c_type, options in forms]
    for mangled, registers, shared in resources("fftconv", names, tmp_path):
        plan = backward if "backward" in mangled else forward
        assert shared == 0 and -(-registers // 8) * 8 * plan.threads * plan.blocks <= 65536, f"{mangled} uses {registers} registers"


@pytest.mark.slow
@pytest.mark.parametrize("log_m", range(5, 15))
def test_the_long_convolutions_plans_leave_room_for_their_blocks(log_m, tmp_path):
    check_room(log_m, [("float", 0), ("float", GATES), ("__nv_bfloat16", EVERYTHING)], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("log_m", [6, 10, 12, 13, 14])
def test_rows_of_any_length_and_heads_of_several_channels_leave_room(log_m, tmp_path):
    """The forms with most to hold, of plans that differ in a thread's points or registers."""
    shapes = fftconv.RAGGED, EARLY, EARLY | fftconv.TAIL, EARLY | fftconv.PAIRS
    forms = [("float", shape | options) for shape in shapes for options in (GATES, EVERYTHING)]
    check_room(log_m, [*forms, ("__nv_bfloat16", shapes[2] | EVERYTHING), ("__half", shapes[3] | EVERYTHING)], tmp_path)


@pytest.mark.slow
def test_rows_of_three_passes(tmp_path):
    for log_m in (LONGEST - 1, LONGEST):
        plan, _ = cuda_plans(log_m)
        rows = plan.inner.template("cuda", fftconv.SKIP, plan.outer)
        names = [f"fftconv_rows<{rows}, fftconv::{stage}>" for stage in ("SPECTRUM", "CONVOLVE", "ADJOINT")]
        names += [f"fftconv_columns<float, {plan.columns('cuda', options)[0]}, fftconv::{stage}>"
                  for options in (GATES, EVERYTHING | EARLY | fftconv.TAIL, EVERYTHING | EARLY | fftconv.PAIRS)
                  for stage in ("SIGNAL", "OUTPUT", "TURN", "BACK")]
        for mangled, registers, _ in resources("fftconv", names, tmp_path):
            threads = 256 if "columns" in mangled else plan.inner.threads * plan.inner.blocks
            assert -(-registers // 8) * 8 * threads <= 65536, f"{mangled} uses {registers} registers"


@pytest.mark.slow
def test_what_is_around_the_long_convolution(tmp_path):
    """Filters' spectra and gradients, both ways and with the ends of a tail; the tail itself."""
    plans = [cuda_plans(log_m)[1] for log_m in (10, 12, 13, 14)]
    both = EARLY | fftconv.REVERSE | fftconv.TAIL
    names = [f"fftconv_{kind}<{plan.template('cuda', both)}>" for plan in plans for kind in ("spectrum", "filter_grad")]
    assert resources("fftconv", [*names, "fftconv_tail<float, 1, false>", "fftconv_tail<float, 31, true>"], tmp_path)
