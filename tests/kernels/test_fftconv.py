"""The kernels of the long convolution against its definition in float64, forward and gradients."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

import ember_ml as em
from ember_ml.kernels import fftconv_launch
from ember_ml.kernels import fftconv_plan as plans
from tests.kernels.conftest import MACHINES
from tests.kernels.long_convolution import NAMES, OPTIONS, case, check, definition, every_length_takes, launch, run
from tests.simt.executor import using


@pytest.fixture(params=[m for m in MACHINES if m != "metal"])
def cuda_machine(request):
    """For what CUDA alone has."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("options", OPTIONS)
def test_every_option(machine, options):
    arrays = case(50, 50, OPTIONS[options])
    check(run(machine, *arrays), definition(*arrays), "float32")


@pytest.mark.parametrize("length, taps", [(1, 1), (2, 2), (3, 5), (7, 3), (31, 31), (32, 32), (33, 2), (64, 64), (100, 100)])
def test_lengths_and_taps(machine, length, taps):
    arrays = case(length, taps, OPTIONS["all"])
    check(run(machine, *arrays), definition(*arrays), "float32")


@pytest.mark.parametrize("length", [256, 512, 1026, 2048, 4096, 8192])
def test_long_rows(machine, length):
    arrays = case(length, min(length, 300), OPTIONS["gated"], batch=1, heads=1)
    with using(schedule=length):
        check(run(machine, *arrays), definition(*arrays), "float32")


def long_plan(monkeypatch, outer, workspace=1 << 25, inner=plans.CudaPlan(8, 4)):
    """Rows take three passes from 256 points on, as they do beyond 2^14 with the real inner plans."""
    plan = plans.LongPlan(outer, inner, workspace)
    every_length_takes(monkeypatch, plan, plan)


@pytest.mark.parametrize("outer, length, taps, options", [(1, 500, 300, "all"), (3, 2048, 64, "reverse")])
def test_three_passes(machine, monkeypatch, outer, length, taps, options):
    long_plan(monkeypatch, outer)
    arrays = case(length, taps, OPTIONS[options], batch=2)
    check(run(machine, *arrays), definition(*arrays), "float32")


@pytest.mark.parametrize("outer, length, options, head_dim", [(6, 3000, "v q", 2), (7, 4096, "", 1)])
def test_columns_that_are_too_long_for_a_thread(metal, monkeypatch, outer, length, options, head_dim):
    """As on Metal beyond 2^18: 8 threads share one. A column has 64 or 128 points, as there, and a row 32, not 8192."""
    long_plan(monkeypatch, outer, inner=plans.Plan(5, 3))
    arrays = case(length, 300, options, batch=1, heads=1, head_dim=head_dim)
    check(run(metal, *arrays), definition(*arrays), "float32")


def test_what_the_gradient_keeps_may_be_in_device_memory(cuda_machine, monkeypatch):
    """And a kernel always asks for the same shared memory: the limit that CUDA is told belongs to the kernel."""
    module, asked = sys.modules["ember_ml.backend.cupy.kernels"], {}
    real = module._template

    def noted(entry, types, template, most_shared, device):
        asked.setdefault((entry.name, template), set()).add(most_shared)
        return real(entry, types, template, most_shared, device)

    monkeypatch.setattr(module, "_template", noted)
    monkeypatch.setattr(plans.CudaPlan, "parts", lambda self, batch, heads: 3)
    arrays = case(50, 50, OPTIONS["gated"], batch=5)        # parts of 2 rows, and one
    for keep in (0, 1, 2):
        both = plans.CudaPlan(6, 3, 16), plans.CudaPlan(6, 3, 16, keep=keep)
        monkeypatch.setattr(plans, "cuda_plans", lambda log_m, both=both: both)
        check(run(cuda_machine, *arrays), definition(*arrays), "float32")
    assert len(asked) == 6 and all(len(sizes) == 1 for sizes in asked.values())


def test_each_device_is_told_what_a_kernel_may_ask_for(cuda, monkeypatch):
    """CuPy has a function of a kernel for each device, and sets its limit of shared memory on the current one alone."""
    module, told = sys.modules["ember_ml.backend.cupy.kernels"], {0: [], 1: []}
    real, library = module._compiled, sys.modules["ember_ml.backend.cupy.arrays"].CupyArrays
    for device in (0, 0, 1):
        monkeypatch.setattr(module, "_compiled", lambda *kernel, device=device: told[device].append(kernel) or real(*kernel))
        monkeypatch.setattr(library, "device", lambda self, x, device=device: device)
        run(cuda, *case(50, 50, OPTIONS["plain"], batch=1, heads=1))
    assert len(told[0]) == 4 and told[0] == told[1]


@pytest.mark.parametrize("heads, head_dim", [(5, 1), (2, 2)])
def test_three_passes_of_some_rows_at_a_time(cuda_machine, monkeypatch, heads, head_dim):
    import cupy
    long_plan(monkeypatch, 1, workspace=2 * 2 * 8 * 512)    # forward: 4 rows, or one of 4 pairs; backward: 1 head of 2
    monkeypatch.setattr(cupy, "empty", cupy.zeros)         # no launch writes the whole of an output
    arrays = case(512, 512, OPTIONS["all"], batch=2, heads=heads, head_dim=head_dim)
    check(run(cuda_machine, *arrays), definition(*arrays), "float32")


@pytest.mark.parametrize("batch, heads, head_dim, taps, options, forward, back", [
    (2, 5, 1, 300, "all", 4, 4), (2, 3, 2, 300, "gated", 16, 16), (2, 3, 1, 514, "gelu", 4, 4), (6, 2, 1, 300, "all", 5, 6)])
def test_some_rows_at_a_time_have_the_bits_of_all(metal, monkeypatch, batch, heads, head_dim, taps, options, forward, back):
    """MLX's arrays are written once, so that workspaces of all rows would stand side by side. The gradient takes whole heads."""
    given, rows = case(514, taps, OPTIONS[options], batch=batch, heads=heads, head_dim=head_dim), []
    long_plan(monkeypatch, 1, workspace=1 << 30)
    at_once = run(metal, *given)
    long_plan(monkeypatch, 1, workspace=4 * 4 * head_dim ** 2 * 8 * 512)          # for 4 rows and pairs in the gradient, 5 without
    whole = fftconv_launch._Long.space
    monkeypatch.setattr(fftconv_launch._Long, "space", lambda self, count: rows.append(count) or whole(self, count))
    for name, x in run(metal, *given).items():
        np.testing.assert_array_equal(x, at_once[name])
    assert max(rows) == back
    check(at_once, definition(*given), "float32")
    with em.using("mlx"):                                   # a prepared filter's spectrum is made once, of all heads
        arrays = {n: em.tensor(x) for n, x in given[0].items()}
        prepared = em.ops.prepare_filter(arrays.pop("k"), arrays.pop("k_reverse", None))
        native = [arrays[n].data if n in arrays else None for n in NAMES[2:]]
        for _ in range(2):
            rows.clear()
            y = metal.kernels.KERNELS["fftconv"](arrays["u"].data, prepared, *native, gelu=given[2], head_dim=head_dim)
            np.testing.assert_array_equal(metal.numpy(y), at_once["y"])
    assert max(rows) == forward


@pytest.mark.parametrize("length, taps, options, batch", [(66, 66, "v q", 3), (68, 68, "D v q dropout_mask gelu", 2), (70, 66, "", 2),
                                                          (128, 8, "D gelu", 35)])
def test_some_numbers_more_than_a_transform_holds(machine, length, taps, options, batch):
    """HyenaDNA's 2^j + 2: no transform of twice the points, what came back is mended."""
    assert plans.transform_size(length, taps, False) == (6, True)
    arrays = case(length, taps, options, batch=batch)
    check(run(machine, *arrays), definition(*arrays), "float32")


def test_some_numbers_more_in_three_passes(machine, monkeypatch):
    long_plan(monkeypatch, 1)
    assert plans.transform_size(514, 514, False) == (9, True)
    arrays = case(514, 514, "v q dropout_mask gelu", batch=2)
    check(run(machine, *arrays), definition(*arrays), "float32")


@pytest.mark.parametrize("head_dim, options, dtype", [(2, "v q", "float32"), (3, "D v q k_reverse dropout_mask gelu", "bfloat16")])
def test_several_channels_in_a_head(machine, head_dim, options, dtype):
    """H3's outer product: each pair of a head's channels is a row, and the sums over them are made in float32."""
    arrays = case(50, 50, options, dtype, batch=5, heads=3, head_dim=head_dim)
    check(run(machine, *arrays), definition(*arrays), dtype)


def test_several_channels_in_three_passes(machine, monkeypatch):
    long_plan(monkeypatch, 1)
    arrays = case(512, 512, OPTIONS["all"], batch=1, head_dim=2)
    check(run(machine, *arrays), definition(*arrays), "float32")


def long_rows(machine, log_m):
    arrays = case(1 << log_m, 300, OPTIONS["plain"], batch=1, heads=1)
    check(run(machine, *arrays), definition(*arrays), "float32")


def test_the_longest_rows_of_one_pass(cuda_machine):
    long_rows(cuda_machine, 14)


def test_rows_of_three_passes(machine):
    long_rows(machine, 15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_computed_in_float32(machine, dtype):
    arrays = case(100, 100, OPTIONS["all"], dtype)
    check(run(machine, *arrays), definition(*arrays), dtype)


def test_slices_of_one_array(machine):
    """As in_proj gives them: u, v and q lie in one (B, 3 D, L) array."""
    arrays, g, gelu = case(40, 40, OPTIONS["gated"])
    packed = machine.array(np.concatenate([arrays[n] for n in "uvq"], axis=1))
    native = {n: packed[:, 2 * i:2 * i + 2] for i, n in enumerate("uvq")} | {"k": machine.array(arrays["k"])}
    check(launch(machine, native, machine.array(g), gelu), definition(arrays, g, gelu), "float32")


def test_strides_along_the_row(machine):
    arrays, g, gelu = case(40, 40, "")
    wide = machine.array(np.repeat(arrays["u"], 2, axis=2))
    got = launch(machine, {"u": wide[:, :, ::2], "k": machine.array(arrays["k"])}, machine.array(g), gelu)
    check(got, definition(arrays, g, gelu), "float32")


def test_the_same_bits_in_every_schedule(machine):
    arrays = case(100, 100, OPTIONS["all"], batch=5)
    with using(check=False):
        first = run(machine, *arrays)
    for schedule in (1, 2, 3):
        with using(check=False, schedule=schedule):
            for name, other in run(machine, *arrays).items():
                np.testing.assert_array_equal(first[name], other)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stays_in_its_row(machine, value):
    (arrays, g, gelu), (broken, *_) = case(33, 33, ""), case(33, 33, "")
    broken["u"][1, 0, 5] = value
    whole, got = run(machine, arrays, g, gelu), run(machine, broken, g, gelu)
    assert np.isnan(got["y"][1, 0]).any()
    others = np.ones((3, 2), bool)
    others[1, 0] = False
    np.testing.assert_array_equal(got["y"][others], whole["y"][others])
    np.testing.assert_array_equal(got["u"], whole["u"])
    np.testing.assert_array_equal(got["k"][1], whole["k"][1])


def test_tables_that_are_kept_are_there_for_every_stream(cuda, monkeypatch):
    """CuPy copies to the GPU in the order of one stream; the next call may be on another."""
    cupy, waited = sys.modules["cupy"], []
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: SimpleNamespace(synchronize=lambda: waited.append(True)))
    monkeypatch.setattr(cuda.kernels, "_tables", {})
    arrays = case(50, 50, "")
    run(cuda, *arrays)
    assert cuda.kernels._tables and len(waited) == len(cuda.kernels._tables)
    run(cuda, *arrays)
    assert len(waited) == len(cuda.kernels._tables)
