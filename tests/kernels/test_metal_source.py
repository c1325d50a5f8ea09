"""The text that MLX compiles on a Mac is the text that the executor runs: MLX tells its own, also without Metal."""

import ctypes
import os
import re
import tempfile
from pathlib import Path

import pytest

from ember_ml.kernels import DTYPES, moe, scan, source_text

mx = pytest.importorskip("mlx.core", reason="MLX is not built for this machine")

from ember_mlx.kernels import body  # noqa: E402
from tests.kernels.calls import STEMS, calls  # noqa: E402
from tests.simt.metal import dtype_name, generated, metal_kernel  # noqa: E402

#: MLX's own, before a fixture puts the stand-in in its place
METAL_KERNEL = mx.fast.metal_kernel


def text_of_mlx(kernel, inputs, shapes, dtypes, folder) -> str:
    """What MLX prints for a verbose call while it exports, when nothing is computed and so no GPU is needed."""
    def call(*arrays):
        return kernel(inputs=list(arrays), grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=shapes,
                      output_dtypes=dtypes, verbose=True)

    libc, saved = ctypes.CDLL(None), os.dup(1)
    with tempfile.TemporaryFile() as file:                 # MLX prints from C++, past sys.stdout
        os.dup2(file.fileno(), 1)
        try:
            mx.export_function(str(folder / "call.mlxfn"), call, *inputs)
        finally:
            libc.fflush(None)
            os.dup2(saved, 1)
            os.close(saved)
        file.seek(0)
        printed = file.read().decode()
    return printed.partition("```\n")[2].rpartition("\n```")[0]


def test_the_body_is_one_call():
    assert body(moe.FORWARD) == (
        "moe::combine_forward(expert_out, inverse, weights, y, uint(expert_out_shape[0]), uint(expert_out_shape[1]), "
        "uint(inverse_shape[0]), uint(inverse_shape[1]), thread_position_in_grid);")
    assert body(scan.FORWARD) == (
        "threadgroup scan::Totals shared; scan::linear_forward(a, b, initial, h, h_final, uint(a_shape[1]), "
        "uint(a_shape[2]), shared, thread_position_in_grid);")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stem", STEMS)
def test_our_text_is_the_text_of_mlx(stem, dtype, metal, tmp_path, monkeypatch):
    """For each launch of the calls in calls.py; MLX would print the text that it compiles on a Mac."""
    if metal.on_gpu:
        pytest.skip("a GPU runs the text of MLX itself")
    launches = {}

    class Recorder(metal_kernel):
        def __call__(self, *, inputs, output_shapes, output_dtypes, **_):
            known = [(dtype_name(x.dtype), x.ndim, x.size) for x in inputs]
            name, text, _ = generated(self.name, self.header, self.source, self.input_names, known, self.output_names,
                                      [dtype_name(d) for d in output_dtypes])
            launches[name, self.source] = (self, inputs, output_shapes, output_dtypes, text)
            return [mx.zeros(shape, d) for shape, d in zip(output_shapes, output_dtypes)]

    monkeypatch.setattr(mx.fast, "metal_kernel", Recorder)
    try:
        source_text("metal", stem)
    except FileNotFoundError:
        pytest.skip("has no Metal twin yet")                   # test_source tells which twins have to be there
    for call in calls(stem):
        call(metal, dtype)
    assert launches
    for kernel, inputs, shapes, dtypes, ours in launches.values():
        theirs = METAL_KERNEL(name=kernel.name, input_names=kernel.input_names, output_names=kernel.output_names,
                              source=kernel.source, header=kernel.header)
        assert ours == text_of_mlx(theirs, inputs, shapes, dtypes, tmp_path)


def test_every_form_of_an_input(tmp_path):
    """Scalars, strides and ndim, and every thread attribute that the stand-in knows."""
    source = ("o[thread_position_in_grid.x] = x[0] * x_shape[0] * x_strides[0] * x_ndim + s + w_shape[0]"
              " + thread_index_in_simdgroup + thread_position_in_threadgroup.x + threadgroup_position_in_grid.x"
              " + simdgroup_index_in_threadgroup + thread_index_in_threadgroup + threadgroups_per_grid.x"
              " + threads_per_threadgroup.x;\n")
    inputs = [mx.zeros((4, 16)), mx.array(1.0), mx.zeros((3,), mx.bfloat16)]
    kernel = mx.fast.metal_kernel(name="forms", input_names=["x", "s", "w"], output_names=["o"], source=source,
                                  header="#define X 1\n")
    theirs = text_of_mlx(kernel, inputs, [(1,)], [mx.uint32], tmp_path)
    known = [(dtype_name(x.dtype), x.ndim, x.size) for x in inputs]
    assert generated("forms", "#define X 1\n", source, ["x", "s", "w"], known, ["o"], ["uint32"])[1] == theirs


def test_what_mlx_puts_before_the_text():
    """Its wheel has it. Types are as the stand-in has them, and none of its macros and names is a word of ours."""
    folder, known = Path(mx.__file__).parent / "include", {}

    def read(name):
        if name not in known:
            known[name] = (folder / name).read_text()
            for part in re.findall(r'#include "([^"]+)"', known[name]):
                read(part)

    read("mlx/backend/metal/kernels/utils.h")
    theirs = "\n".join(known.values())
    assert "typedef half float16_t;" in theirs and "typedef bfloat bfloat16_t;" in theirs and "using namespace metal;" in theirs
    assert not set(STEMS) & set(re.findall(r"\w+", theirs))
    ours = set(re.findall(r"\w+", " ".join(source_text("metal", stem) for stem in STEMS)))
    assert not ours & set(re.findall(r"#\s*define\s+(\w+)", theirs))
