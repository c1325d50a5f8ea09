"""The executor finds what it is there to find: every kind of mistake is planted, in both languages."""

import numpy as np
import pytest

from tests.simt import CompileError, KernelFault, unavailable

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)

import ml_dtypes  # noqa: E402
import mlx.core as mx  # noqa: E402

from tests.simt import cuda, metal  # noqa: E402
from tests.simt.executor import Launch, counted, using  # noqa: E402

THREADS, GROUP = 128, 64
X = np.arange(THREADS, dtype=np.float32)

#: what the kernels below are written in; each language has its own words for these
WORDS = {
    "metal": {"SHARED": "threadgroup float", "SIMDGROUP_BARRIER": "simdgroup_barrier(mem_flags::mem_threadgroup);",
              "BARRIER": "threadgroup_barrier(mem_flags::mem_threadgroup);",
              "CONST": "const device", "DEVICE": "device"},
    "cuda": {"SHARED": "__shared__ float", "SIMDGROUP_BARRIER": "__syncwarp();", "BARRIER": "__syncthreads();",
             "CONST": "const", "DEVICE": ""},
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
    "barrier of the simdgroup alone": ("SHARED s[64]; s[t] = a[i]; SIMDGROUP_BARRIER\n o[i] = s[t ^ 32];",
                                       "uninitialised read|data race"),
    "simdgroup barrier, then another simdgroup overwrites": (
        "SHARED s[64]; s[t] = a[i]; BARRIER\n float v = s[t] + s[t ^ 32]; SIMDGROUP_BARRIER\n s[t] = 0; o[i] = v;",
        r"data race \((read after write|write after read)\) on threadgroup memory"),
    "simdgroup barrier in half of a simdgroup": ("if (t % 32 < 16) { SIMDGROUP_BARRIER }\n o[i] = a[i];",
                                                 "divergent simdgroup operation.*its end"),
    "barrier in half of a group": ("if (t < 32) { BARRIER }\n o[i] = a[i];", "divergent barrier.*its end"),
    "two different barriers": ("if (t < 32) { BARRIER }\n else { BARRIER }\n o[i] = a[i];", "divergent barrier"),
    "simdgroup operation in half of a simdgroup": (
        "float v = a[i]; if (t % 32 < 16) v = simd_sum(v);\n BARRIER\n o[i] = v;",
        "divergent simdgroup operation.*a barrier"),
    "read behind the end": ("o[i] = a[i + 1];", "read out of bounds of .*byte 512"),
    "read before the start": ("o[i] = a[(int)i - 1];", "read out of bounds of .*byte -4"),
    "read far away": ("o[i] = a[i + (size_t(1) << 44)];", "read out of bounds"),   # where nothing can be mapped
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
    ("SHARED s[64]; s[t] = a[i]; SIMDGROUP_BARRIER\n float v = s[t ^ 1];\n SIMDGROUP_BARRIER\n s[t] = v;\n"
     " SIMDGROUP_BARRIER\n o[i] = s[t] + s[t ^ 31];", 2 * X // 64 * 64 + 31 + 0 * X),
    ("o[i] = simd_sum(a[i]);", np.repeat(X.reshape(-1, 32).sum(1), 32)),
    ("if (t < 32) o[i] = simd_sum(a[i]);\n else o[i] = a[i];",
     np.where(np.arange(128) % 64 < 32, np.repeat(X.reshape(-1, 32).sum(1), 32), X)),
    ("float2 v = *(CONST float2*)(a + i / 2 * 2); o[i] = v.x + v.y;", X // 2 * 4 + 1),
], ids=["barrier", "barriers in a loop", "simdgroup barriers", "sum", "sum in one simdgroup of two", "aligned pair"])
def test_right_kernels_pass(text, expected, language):
    np.testing.assert_array_equal(run(language, text), expected)


@languages
@pytest.mark.parametrize("schedule", [0, 1, 2, 3])
def test_every_schedule_gives_the_same_bits(schedule, language):
    """A right kernel does; one with a missing barrier gives itself away in some order, even unchecked."""
    right = ("SHARED s[64]; s[t] = a[i]; BARRIER\n float v = simd_sum(s[63 - t] / 3.0f);\n BARRIER\n s[t] = v; BARRIER\n"
             " o[i] = s[t ^ 32];")
    with using(check=True):
        expected = run(language, right)
    for check in (True, False):
        with using(check=check, schedule=schedule):
            np.testing.assert_array_equal(run(language, right), expected)
    with using(check=False, schedule=schedule):
        wrong = run(language, "SHARED s[64]; s[t] = a[i];\n o[i] = s[t ^ 1];")
    turned = X.reshape(-1, 2)[:, ::-1].ravel()
    assert not np.array_equal(wrong, turned)


@languages
def test_traffic_is_counted(language):
    with counted() as launches:
        run(language, "SHARED s[64]; s[t] = a[i]; BARRIER\n o[i] = s[t] + s[t ^ 1] + a[0];")
    assert launches == [Launch("planted", loaded=2 * X.nbytes, stored=X.nbytes, read=X.nbytes, written=X.nbytes)]


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
    with pytest.raises(KernelFault, match="49408 bytes of shared memory and 0 dynamic ones; allowed are 49152"):
        run("cuda", text % 12352)


def dynamic(floats: int, given: int, allowed: int | None = None):
    code = CUDA_KERNEL % "o[i] = a[i];" + """
        __global__ void reversed(const float* a, float* o) {
          extern __shared__ __align__(16) float s[];
          s[threadIdx.x + %d] = a[threadIdx.x];
          __syncthreads();
          o[threadIdx.x] = s[blockDim.x - 1 - threadIdx.x + %d];
        }""" % (floats - THREADS, floats - THREADS)
    kernel = cuda.RawModule(code=code, name_expressions=["reversed"]).get_function("reversed")
    if allowed is not None:
        kernel.max_dynamic_shared_size_bytes = allowed
    out = np.empty_like(X)
    kernel((1,), (THREADS,), (X, out), shared_mem=given)
    np.testing.assert_array_equal(out, X[::-1])


def test_dynamic_shared_memory():
    dynamic(THREADS, 4 * THREADS)
    dynamic(50_000, 200_000, allowed=200_000)
    with pytest.raises(KernelFault, match="write out of bounds of threadgroup memory, byte 508"):
        dynamic(THREADS, 4 * THREADS - 4)
    with pytest.raises(KernelFault, match="200000 dynamic ones; allowed are 49152 and 49152"):
        dynamic(50_000, 200_000)
    with pytest.raises(KernelFault, match="240000 bytes of threadgroup memory, the machine has 232448"):
        dynamic(60_000, 240_000, allowed=240_000)


def test_strided_arrays_are_seen_as_they_lie_in_memory():
    """As with ensure_row_contiguous=False on Metal, and for every pointer of CUDA."""
    wide = np.arange(64, dtype=np.float32).reshape(4, 16)
    part = wide[1:3, 3:9].T
    source = "uint i = thread_position_in_grid.x; o[i] = a[i / 2 * a_strides[0] + i % 2 * a_strides[1]];"
    for array in (part, mx.array(wide)[1:3, 3:9].T):
        kernel = metal.metal_kernel("strided", ["a"], ["o"], source, ensure_row_contiguous=False)
        (out,) = kernel(inputs=[array], grid=(12, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(6, 2)],
                        output_dtypes=[np.dtype("float32")])
        np.testing.assert_array_equal(np.array(out), part)
    out = np.zeros((2, 12), np.float32)
    code = "__global__ void strided(const float* a, float* o) { o[2 * threadIdx.x] = a[threadIdx.x / 2 + threadIdx.x % 2 * 16]; }"
    kernel = cuda.RawModule(code=code, name_expressions=["strided"]).get_function("strided")
    kernel((1,), (12,), (part, out.reshape(-1)[::2]))
    np.testing.assert_array_equal(out.reshape(-1)[::2], part.ravel())
    with pytest.raises(KernelFault, match="read out of bounds of argument 0, byte 84"):
        kernel((1,), (12,), (part[:-1], out.reshape(-1)[::2]))


def test_lanes_exchange_what_they_should():
    """Shuffles, votes and prefix sums of both languages against NumPy."""
    lanes, rows = np.arange(32), X.reshape(-1, 32)
    expected = {"xor": rows[:, lanes ^ 5], "up": np.where(lanes < 3, rows, np.roll(rows, 3, 1)),
                "down": np.where(lanes > 28, rows, np.roll(rows, -3, 1)), "from": np.repeat(rows[:, 7:8], 32, 1),
                "halves": rows.reshape(-1, 2, 16)[:, :, ::-1].reshape(-1, 32),
                "votes": np.repeat((rows % 3 == 0).sum(1)[:, None], 32, 1)}
    words = {"metal": {"xor": "simd_shuffle_xor(a[i], 5)", "up": "simd_shuffle_up(a[i], 3)", "down": "simd_shuffle_down(a[i], 3)",
                       "from": "simd_broadcast(a[i], 7)", "halves": "simd_shuffle(a[i], (t & 16) | (15 - t % 16))",
                       "votes": "popcount((uint)(simd_vote::vote_t)simd_ballot(int(a[i]) % 3 == 0))"},
             "cuda": {"xor": "__shfl_xor_sync(0xffffffffu, a[i], 5)", "up": "__shfl_up_sync(0xffffffffu, a[i], 3)",
                      "down": "__shfl_down_sync(0xffffffffu, a[i], 3)", "from": "__shfl_sync(0xffffffffu, a[i], 7)",
                      "halves": "__shfl_sync(0xffffffffu, a[i], 15 - t % 16, 16)",
                      "votes": "__popc(__ballot_sync(0xffffffffu, int(a[i]) % 3 == 0))"}}
    for language, expressions in words.items():
        for name, expression in expressions.items():
            np.testing.assert_array_equal(run(language, f"o[i] = {expression};").reshape(-1, 32), expected[name], f"{language} {name}")
    sums = run_metal(METAL_HEAD + "o[i] = simd_prefix_exclusive_sum(a[i]) + simd_max(a[i]) - simd_min(a[i]);")
    np.testing.assert_array_equal(sums.reshape(-1, 32), np.cumsum(rows, 1) - rows + 31)


def test_a_warp_operation_needs_the_whole_warp():
    with pytest.raises(KernelFault, match=r"kernel\.cu:8: a warp operation on a part of the warp"):
        run("cuda", "o[i] = __shfl_xor_sync(0xffffu, a[i], 1);")


def test_constant_tables():
    assert run_metal("uint i = thread_position_in_grid.x; o[i] = table[i & 1];",
                     header="constant float table[2] = {1.0f, 2.0f};\n").tolist() == [1.0, 2.0] * 64
    code = ("__constant__ float table[2] = {1.0f, 2.0f};\n__global__ void planted(const float* a, float* o) "
            "{ const float* p = table; o[threadIdx.x] = p[(unsigned)a[threadIdx.x] & 1]; }")
    out = np.empty_like(X)
    cuda.RawModule(code=code, name_expressions=["planted"]).get_function("planted")((1,), (THREADS,), (X, out))
    assert out.tolist() == [1.0, 2.0] * 64


def test_too_many_threads():
    with pytest.raises(KernelFault, match="512 threads in a group, of which only 256 are sure to start"):
        run_metal("o[thread_position_in_grid.x] = a[0];", np.zeros(512, np.float32), group=512)
    kernel = cuda.RawModule(code=CUDA_KERNEL % "o[i] = a[0];", name_expressions=["planted"]).get_function("planted")
    with pytest.raises(KernelFault, match="2048 threads in a group"):
        kernel((1,), (2048,), (X, np.empty(2048, np.float32)))


@pytest.mark.parametrize("text, message", [
    ("o[i] = from_shared(a);", "no matching function"),
    ("threadgroup float s[64]; s[t] = a[i]; o[i] = from_device(s);", "no matching function"),
    ("float* p = nullptr; o[i] = *p;", "'p' is a pointer or reference without an address space"),
    ("double x = a[i]; o[i] = x;", "metal_has_no_double"),
    ("bfloat b = a[i]; o[i] = b;", "no viable conversion"),
    ("a[i] = 0; o[i] = 0;", "read-only"),
    ("o[i] = missing;", "undeclared identifier 'missing'"),
    ("o[i] = exp(a[i]);", "undeclared identifier 'exp'"),
    ("o[i] = precise::erf(a[i]);", "no member named 'erf'"),
    ("ulong k = i; int n = k; o[i] = n;", "implicit conversion loses integer precision"),
    ("static float x; x = a[i]; o[i] = x;", "'x' lives as long as the program"),
    ("auto f = [](float x) { return x; }; o[i] = f(a[i]);", "a lambda"),
    ("if (int k = 3; k > a[i]) o[i] = k; else o[i] = 0;", r"planted.metal:9: if initialization statements are incompatible"),
    ("o[i] = a[i];  // \u00b5", "MLX hands Metal ASCII text"),
])
def test_what_metal_refuses_does_not_compile(text, message):
    header = ("inline float from_shared(threadgroup float* p) { return p[0]; }\n"
              "inline float from_device(const device float* p) { return p[0]; }\n")
    with pytest.raises(CompileError, match=message):
        run_metal(METAL_HEAD + text, header=header)


@pytest.mark.parametrize("text, message", [
    ("constexpr float X = 2.0f;", r"'X' lives as long as the program \(const __global float\): make it constant"),
    ("struct S { static constexpr int N = 2; };", "'N' lives as long as the program"),
    ("struct S { virtual int f() { return 1; } };", "virtual functions are not supported"),
    ("namespace a::b { inline int f() { return 1; } }", r"planted.metal:1: nested namespace definition is incompatible"),
    ("template <class... T> inline int f(T... t) { return (t + ...); }", "fold expression is incompatible"),
])
def test_what_metal_refuses_in_a_header(text, message):
    source = "o[thread_position_in_grid.x] = a[thread_position_in_grid.x];"
    with pytest.raises(CompileError, match=message):
        run_metal(source, header=text + "\n")
    run_metal(source, header="constant constexpr float X = 2.0f;\ntemplate <int N> inline int f() { if constexpr (N > 1) return 1; return 0; }\n")


def test_too_many_arguments():
    names = [f"a{i}" for i in range(31)]
    kernel = metal.metal_kernel("many", names, ["o"], "o[0] = a0[0];")
    with pytest.raises(CompileError, match="32 arguments, Metal allows 31"):
        kernel(inputs=[X] * 31, grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)], output_dtypes=[X.dtype])


def test_metal_groups_at_the_edge_are_smaller():
    out = run_metal("o[thread_position_in_grid.x] = threadgroup_position_in_grid.x;", X[:100])
    np.testing.assert_array_equal(out, np.arange(100) // 64)


@pytest.mark.parametrize("arguments, message", [
    ((X.astype(np.float64), X), r"argument 0 is float64\*, the kernel takes const float32\*"),
    ((X, np.float32(1)), r"argument 1 is float32, the kernel takes float32\*"),
    ((X,), "takes 2 arguments, got 1"),
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
