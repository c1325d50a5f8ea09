"""The executor finds what it is there to find: every kind of mistake is planted, in both languages."""

import numpy as np
import pytest

from tests.simt import CompileError, KernelFault, unavailable

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)

import ml_dtypes  # noqa: E402
import mlx.core as mx  # noqa: E402

from tests.simt import cuda, metal  # noqa: E402

THREADS, GROUP = 128, 64
X = np.arange(THREADS, dtype=np.float32)

#: what the kernels below are written in; each language has its own words for these
WORDS = {
    "metal": {"SHARED": "threadgroup float", "BARRIER": "threadgroup_barrier(mem_flags::mem_threadgroup);",
              "CONST": "const device", "DEVICE": "device"},
    "cuda": {"SHARED": "__shared__ float", "BARRIER": "__syncthreads();", "CONST": "const", "DEVICE": ""},
}
METAL_HEAD = "uint i = thread_position_in_grid.x, t = thread_position_in_threadgroup.x;\n"
CUDA_KERNEL = """
__device__ inline float simd_sum(float v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  return v;
}
__global__ void planted(const float* a, float* o) {
unsigned i = blockIdx.x * blockDim.x + threadIdx.x, t = threadIdx.x;
%s
}"""


def run_metal(source: str, a=X, group: int = GROUP, header: str = "", dtype=X.dtype):
    """The output of a Metal kernel with one input `a` and one output `o`, a thread for each element of `a`."""
    kernel = metal.metal_kernel("planted", ["a"], ["o"], source, header)
    return kernel(inputs=[a], grid=(a.size, 1, 1), threadgroup=(group, 1, 1), output_shapes=[a.shape],
                  output_dtypes=[dtype])[0]


def run(language: str, text: str) -> np.ndarray:
    """The output of a kernel with one input `a`, X, and one output `o`; i counts threads, t within a group."""
    for word, meaning in WORDS[language].items():
        text = text.replace(word, meaning)
    if language == "metal":
        return run_metal(METAL_HEAD + text)
    cupy = cuda.stand_in()["cupy"]
    out = cupy.empty(X.shape, X.dtype)
    module = cupy.RawModule(code=CUDA_KERNEL % text, name_expressions=["planted"])
    module.get_function("planted")((THREADS // GROUP,), (GROUP,), (X, out))
    return out


languages = pytest.mark.parametrize("language", ["metal", "cuda"])

#: name -> (kernel, what the fault says)
BUGS = {
    "race within a group": ("o[i & ~1u] = a[i]; o[i | 1u] = a[i];", r"data race \(write after write\)"),
    "race of a read and a write": ("SHARED s[64]; s[t] = a[i]; BARRIER\n float v = s[t ^ 1]; s[t] = 1; o[i] = v;",
                                   r"data race \((read after write|write after read)\) on threadgroup memory"),
    "race between groups": ("o[t] = a[i]; o[i] = a[i];", "data race .* between groups"),
    "race of an input's neighbours": ("o[i] = a[i]; if (i > 0) o[i] += o[i - 1];", "data race|uninitialised read"),
    "missing barrier": ("SHARED s[64]; s[t] = a[i];\n o[i] = s[t ^ 1];", "uninitialised read|data race"),
    "missing second barrier": ("SHARED s[64];\n for (int k = 0; k < 2; k++) { s[t] = a[i]; BARRIER\n"
                               " o[i] = s[t ^ 1]; }", r"data race \((read after write|write after read)\)"),
    "barrier in half of a group": ("if (t < 32) { BARRIER }\n o[i] = a[i];", "divergent barrier.*its end"),
    "two different barriers": ("if (t < 32) { BARRIER }\n else { BARRIER }\n o[i] = a[i];", "divergent barrier"),
    "simdgroup operation in half of a simdgroup": (
        "float v = a[i]; if (t % 32 < 16) v = simd_sum(v);\n BARRIER\n o[i] = v;",
        "divergent simdgroup operation.*a barrier"),
    "read behind the end": ("o[i] = a[i + 1];", "read out of bounds of .*byte 512"),
    "read before the start": ("o[i] = a[(int)i - 1];", "read out of bounds of .*byte -4"),
    "read far away": ("o[i] = a[i + 100000000];", "read out of bounds"),
    "write behind the end": ("o[i + 1] = a[i];", "write out of bounds of .*byte 512"),
    "overrun of a threadgroup array": ("SHARED s[64]; s[t + 1] = a[i]; BARRIER\n o[i] = s[t];",
                                       "index 64 is outside its array"),
    "overrun into the next threadgroup array": (
        "SHARED s[64]; SHARED q[64]; q[t] = 1; s[t + 1] = a[i]; BARRIER\n o[i] = s[t] + q[t];",
        "index 64 is outside its array"),
    "overrun of a threadgroup array by its address": ("SHARED s[64]; *(s + t + 1) = a[i]; BARRIER\n o[i] = s[t];",
                                                      "write out of bounds of threadgroup memory, byte 256"),
    "uninitialised threadgroup memory": ("SHARED s[64]; if (t) s[t] = a[i];\n BARRIER\n o[i] = s[63 - t];",
                                         "uninitialised read of threadgroup memory, byte 0"),
    "threadgroup memory of the group before": (
        "SHARED s[64]; if (i < 64) s[t] = a[i];\n BARRIER\n o[i] = s[t];",
        r"uninitialised read of threadgroup memory.*group \(1, 0, 0\)"),
    "uninitialised output": ("o[i] += a[i];", "uninitialised read"),
    "output not written": ("if (i != 5) o[i] = a[i];", "4 of 512 bytes of .* were never written, the first is byte 20"),
    "misaligned pair": ("float2 v = *(CONST float2*)(a + i % 64); o[i] = v.x + v.y;", "misaligned access"),
    "misaligned quad": ("float4 v = *(CONST float4*)(a + i % 64 / 2 * 2); o[i] = v.x + v.w;", "misaligned access"),
    "write to an input": ("((DEVICE float*)a)[i] = 0; o[i] = 0;", "write to the input"),
}


@languages
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug, language):
    text, message = BUGS[bug]
    with pytest.raises(KernelFault, match=message):
        run(language, text)


@languages
@pytest.mark.parametrize("text, expected", [
    ("SHARED s[64]; s[t] = a[i]; BARRIER\n o[i] = s[t ^ 1];", X.reshape(-1, 2)[:, ::-1].ravel()),
    ("SHARED s[64];\n for (int k = 0; k < 2; k++) { s[t] = a[i] + k; BARRIER\n o[i] = s[63 - t];\n BARRIER\n }",
     X.reshape(-1, 64)[:, ::-1].ravel() + 1),
    ("o[i] = simd_sum(a[i]);", np.repeat(X.reshape(-1, 32).sum(1), 32)),
    ("if (t < 32) o[i] = simd_sum(a[i]);\n else o[i] = a[i];",
     np.where(np.arange(128) % 64 < 32, np.repeat(X.reshape(-1, 32).sum(1), 32), X)),
    ("float2 v = *(CONST float2*)(a + i / 2 * 2); o[i] = v.x + v.y;", X // 2 * 4 + 1),
], ids=["barrier", "barriers in a loop", "sum", "sum in one simdgroup of two", "aligned pair"])
def test_right_kernels_pass(text, expected, language):
    np.testing.assert_array_equal(run(language, text), expected)


def test_the_fault_names_the_line():
    where = r"^planted\.metal:9: read out of bounds of a, byte 512 \[thread \(63, 0, 0\) of group \(1, 0, 0\)\]"
    with pytest.raises(KernelFault, match=where):
        run("metal", "float v = 0;\nv +=\n a[i + 1];\no[i] = v;")
    with pytest.raises(KernelFault, match=r"^kernel\.cu:10: read out of bounds of argument 0"):
        run("cuda", "float v = 0;\nv +=\n a[i + 1];\no[i] = v;")


def test_a_barrier_that_orders_other_memory_does_not_help():
    text = "threadgroup float s[64]; s[t] = a[i]; threadgroup_barrier(mem_flags::mem_device);\n o[i] = s[t ^ 1];"
    with pytest.raises(KernelFault, match=r"data race \(read after write\)"):
        run("metal", text)


def test_too_much_threadgroup_memory():
    text = "SHARED s[%d]; s[t] = a[i]; BARRIER\n o[i] = s[t];"
    with pytest.raises(KernelFault, match="36864 bytes of threadgroup memory, the machine has 32768"):
        run("metal", text % 9216)
    with pytest.raises(KernelFault, match="49408 bytes of threadgroup memory, the machine has 49152"):
        run("cuda", text % 12352)


def test_too_many_threads():
    with pytest.raises(KernelFault, match="2048 threads in a group"):
        run_metal("o[thread_position_in_grid.x] = a[0];", np.zeros(2048, np.float32), group=2048)


@pytest.mark.parametrize("text, message", [
    ("o[i] = from_shared(a);", "no matching function"),
    ("threadgroup float s[64]; s[t] = a[i]; o[i] = from_device(s);", "no matching function"),
    ("float* p = nullptr; o[i] = *p;", "'p' is a pointer or reference without an address space"),
    ("double x = a[i]; o[i] = x;", "metal_has_no_double"),
    ("bfloat b = a[i]; o[i] = b;", "no viable conversion"),
    ("a[i] = 0; o[i] = 0;", "read-only"),
    ("o[i] = missing;", "undeclared identifier 'missing'"),
])
def test_what_metal_refuses_does_not_compile(text, message):
    header = ("inline float from_shared(threadgroup float* p) { return p[0]; }\n"
              "inline float from_device(const device float* p) { return p[0]; }\n")
    with pytest.raises(CompileError, match=message):
        run_metal(METAL_HEAD + text, header=header)


def test_metal_groups_at_the_edge_are_smaller():
    out = run_metal("o[thread_position_in_grid.x] = threadgroup_position_in_grid.x;", X[:100])
    np.testing.assert_array_equal(out, np.arange(100) // 64)


@pytest.mark.parametrize("arguments, message", [
    ((X.astype(np.float64), X), r"argument 0 is float64\*, the kernel takes const float32\*"),
    ((X, np.float32(1)), r"argument 1 is float32, the kernel takes float32\*"),
    ((X,), "takes 2 arguments, got 1"),
    ((X[::2], X), "argument 0 is not contiguous"),
])
def test_wrong_cuda_arguments(arguments, message):
    module = cuda.RawModule(code=CUDA_KERNEL % "o[i] = a[i];", name_expressions=["planted"])
    with pytest.raises(KernelFault, match=message):
        module.get_function("planted")((2,), (64,), arguments)


def test_bfloat16_rounds_to_nearest_even():
    """In both languages, against ml_dtypes: ties, the largest number, infinity and NaN."""
    values = np.array([1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, 3.3895e38, 3.4e38, -0.0, np.inf, np.nan,
                       1e-40], np.float32)
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    out = run_metal("uint i = thread_position_in_grid.x; o[i] = bfloat(a[i]);", mx.array(values), dtype=mx.bfloat16)
    np.testing.assert_array_equal(np.array(out.astype(mx.float32)), expected)
    code = ("#include <cuda_bf16.h>\n__global__ void rounds(const float* a, float* o) "
            "{ o[threadIdx.x] = __nv_bfloat16(a[threadIdx.x]); }")
    out = np.empty_like(values)
    cuda.RawModule(code=code, name_expressions=["rounds"]).get_function("rounds")((1,), (10,), (values, out))
    np.testing.assert_array_equal(out, expected)
