"""The text that MLX compiles on a Mac is the text that the executor runs: MLX tells its own, also without Metal."""

import ctypes
import os
import tempfile

import pytest

from ember_ml.kernels import SPECS, moe, scan, source_text

mx = pytest.importorskip("mlx.core", reason="MLX is not built for this machine")

from ember_mlx.kernels import body  # noqa: E402
from tests.simt.metal import dtype_name, generated  # noqa: E402


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


def sizes_of(entry, n, width):
    """Shapes of an entry's arrays, by name: few or many elements."""
    if entry.stem == "moe":
        rows, pairs = (2 * n, width), (n, 2)
        return {"g": (n, width), "expert_out": rows, "inverse": pairs, "weights": pairs, "y": (n, width), "d_expert_out": rows,
                "d_weights": pairs, "h": (n, 2 * width), "d_h": (n, 2 * width), "a": (n, width), "scaled": (n, width),
                "row_weights": (n, 1)}
    states = ("initial", "h_final", "g_final", "d_initial")
    return {name: (1, width) if name in states else (1, n, width) for name in (*entry.input_names, *entry.outputs)}


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("n, width", [(1, 1), (2, 5), (20, 33)], ids=["all small", "some small", "none small"])
@pytest.mark.parametrize("entry", [entry for spec in SPECS for entry in spec.entries], ids=lambda e: e.name)
def test_our_text_is_the_text_of_mlx(entry, n, width, dtype, tmp_path):
    shapes = sizes_of(entry, n, width)
    native = {"T": dtype, "int32": mx.int32, "float32": mx.float32}
    inputs = [mx.zeros(shapes[name], native[kind]) for name, kind in entry.inputs]
    outputs = [mx.float32 if name in ("d_weights", "h_final", "d_initial") else dtype for name in entry.outputs]
    header = source_text("metal", entry.stem)
    kernel = mx.fast.metal_kernel(name=entry.name, input_names=entry.input_names, output_names=entry.outputs,
                                  source=body(entry), header=header)
    theirs = text_of_mlx(kernel, inputs, [shapes[name] for name in entry.outputs], outputs, tmp_path)
    known = [(dtype_name(x.dtype), x.ndim, x.size) for x in inputs]
    _, ours, _ = generated(entry.name, header, body(entry), entry.input_names, known, entry.outputs,
                           [dtype_name(d) for d in outputs])
    assert ours == theirs


def test_every_form_of_an_input(tmp_path):
    """Scalars, strides and ndim, and every thread attribute that the stand-in knows."""
    source = ("o[thread_position_in_grid.x] = x[0] * x_shape[0] * x_strides[0] * x_ndim + s + w_shape[0]"
              " + thread_index_in_simdgroup + thread_position_in_threadgroup.x + threadgroup_position_in_grid.x;\n")
    inputs = [mx.zeros((4, 16)), mx.array(1.0), mx.zeros((3,), mx.bfloat16)]
    kernel = mx.fast.metal_kernel(name="forms", input_names=["x", "s", "w"], output_names=["o"], source=source,
                                  header="#define X 1\n")
    theirs = text_of_mlx(kernel, inputs, [(1,)], [mx.uint32], tmp_path)
    known = [(dtype_name(x.dtype), x.ndim, x.size) for x in inputs]
    assert generated("forms", "#define X 1\n", source, ["x", "s", "w"], known, ["o"], ["uint32"])[1] == theirs
