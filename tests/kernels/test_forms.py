"""The check at the first use of a form: its sample takes the very kernels of the call, and one that fails takes the composite alone."""

import itertools
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import ember_ml as em
from ember_ml.cli import doctor
from ember_ml.kernels import FFTCONV, FFTCONV_GRAD, SHORT_CONV, SHORT_CONV_GRAD, SPECS, selfcheck, shortconv, source, source_text
from ember_ml.kernels import fftconv_form as forms
from ember_ml.kernels.selfcheck import KernelWarning
from ember_ml.kernels.spec import DTYPES, Prepared, TemplateEntry
from ember_ml.ops import REGISTRY
from ember_ml.ops.kernel import body
from tests.kernels import long_convolution as fftconv
from tests.kernels.test_op_takes_kernel import engine, tensors  # noqa: F401 - a fixture
from tests.kernels.test_torch_operator import calls, torch_cuda  # noqa: F401 - fixtures

OP = REGISTRY["fftconv_rows"]


class OfMlx(np.ndarray):
    """Host sides tell Metal by the module of their arrays."""


OfMlx.__module__ = "mlx.core"


class Compiles:
    """A `Gpu` that compiles and launches nothing, and notes what it would compile."""

    def __init__(self, language):
        self.language, self.kernels = language, set()
        self.type = OfMlx if language == "metal" else np.ndarray

    def array(self, *shape):
        return np.broadcast_to(np.float32(0), shape).view(self.type)

    def dtype(self, x):
        return str(x.dtype)

    def cast(self, x, dtype):
        return x

    copy = contiguous = lambda self, x: x

    def widened(self, x, columns):
        return x

    def constants(self, make, arguments, like):
        return self.array(8)

    def in_turns(self, compute, some, few, axes, rows, filters, masks):
        return compute(**rows, **filters, **masks)

    def launch_template(self, entry, inputs, outputs, grid, numbers=(), *, types=(), template="", shared=0):
        room = shared if self.language == "metal" else max(4 * shared, 48 << 10)       # as each language's `_template` has it
        there = tuple(x is not None for x in (*inputs, *outputs))
        self.kernels.add((entry.name, tuple(types), template, room, there))
        return tuple(self.array(*o[0]) if isinstance(o, tuple) else o for o in outputs)

    def prepared(self, k, k_reverse):
        k, k_reverse = (None if f is None else SimpleNamespace(shape=f.shape, data=f) for f in (k, k_reverse))
        return SimpleNamespace(k=k, k_reverse=k_reverse, spectrum=lambda key, make: make())


def compiled(spec, language, arguments, static):
    gpu = Compiles(language)
    spec.launch(gpu, *arguments, **static)
    return gpu.kernels


def long_calls(gpu):
    """(arguments, keywords) of fftconv: every option with the other way and pairs, for lengths and taps on all sides of a plan's ends."""
    sizes = [(n, t) for n in (1, 31, 32, 40, 64, 66, 100, 128, 130, 200) for t in (1, 9, n // 2 + 1, n)]
    sizes += [(4096, 4096), (5000, 64), (8194, 8194), (16384, 9), (20000, 64), (40000, 64), (40000, 40000), (1 << 19, 400)]
    for at, (length, taps) in enumerate(sizes):
        for D, v, q, mask, gelu in itertools.islice(itertools.product((0, 1), repeat=5), at % 11, None, 11):
            for head_dim, ahead, prepared in ((1, 0, 0), (1, taps, at % 2), (1, 3, 0), (1, 0, 1), *(((2, 0, 0), (2, taps, 1)) if v and q else ())):
                rows, heads = gpu.array(3, 10, length), 10 // head_dim
                k, k_reverse = gpu.array(heads, taps), gpu.array(heads, ahead) if ahead else None
                if prepared:
                    k, k_reverse = gpu.prepared(k, k_reverse), None
                yield (rows, k, gpu.array(heads) if D else None, rows if v else None, rows if q else None, k_reverse,
                       gpu.array(3, heads) if mask else None), {"gelu": bool(gelu), "head_dim": head_dim}


def short_calls(gpu):
    for taps, bias, anticausal, silu in itertools.product((1, 4, 8, 9, 32, 33, 64), (0, 1), (False, True), (False, True)):
        yield (gpu.array(3, 10, 50), gpu.array(10, taps), gpu.array(10) if bias else None), {"anticausal": anticausal, "silu": silu}


@pytest.mark.parametrize("language", ["metal", "cuda"])
@pytest.mark.parametrize("spec, of, grad", [(FFTCONV, long_calls, False), (FFTCONV_GRAD, long_calls, True), (SHORT_CONV, short_calls, False),
                                            (SHORT_CONV_GRAD, short_calls, True)], ids=["fftconv", "fftconv_grad", "short", "short_grad"])
def test_a_sample_takes_the_kernels_of_its_form(spec, of, grad, language, monkeypatch):
    gpu, found = Compiles(language), {}
    for module in (forms, shortconv):                       # shapes alone matter
        monkeypatch.setattr(module, "sample_values", lambda *shape, **_: gpu.array(*shape))
    for arguments, static in of(gpu):
        given = (arguments[0], *arguments) if grad else arguments
        found.setdefault(spec.form(*given, **static), []).append(frozenset(compiled(spec, language, given, static)))
    assert len(found) > 4
    for form, kernels in found.items():
        arrays, static = spec.sample(form)
        arguments = [gpu.prepared(*x) if isinstance(x, Prepared) else x for x in arrays]
        assert spec.form(*arguments, **static) == form
        assert {frozenset(compiled(spec, language, arguments, static))} == set(kernels), str(form)
    assert len({str(form) for form in found}) == len(found)


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not isinstance(spec.entries[0], TemplateEntry)], ids=lambda spec: spec.name)
def test_no_array_of_a_sample_is_one_of_mlx_s_constants(spec):
    """Which has a kernel of its own: calls would take another one than the check saw."""
    for form in spec.forms:
        assert all(np.size(x) >= 8 for x in spec.sample(form).arrays)


def test_small_arrays_are_no_constants_where_a_kernel_is_compiled_for_what_there_is():
    mx = pytest.importorskip("mlx.core", reason="MLX is not built for this machine")
    from ember_mlx.kernels import _all_there
    given = [mx.zeros((1, 1, 5))] + [None] * 2 + [mx.zeros((1, 32, 2)), None, mx.ones((1,)), mx.ones((1, 1)), mx.zeros((40,))]
    there = _all_there(FFTCONV.entries[0], given)
    assert all(x.size >= 8 for x in there[3:]) and there[5][0].item() == there[6][0].item() == 1


def late_failure(mx):
    """A number that MLX makes at once, and cannot compute when it is asked for it: on a CPU this product has no half precision."""
    half = mx.ones((32, 32), mx.float16)
    return mx.block_masked_mm(half, half, 32, mx.ones((1, 1), mx.bool_))[0, 0]


def wrong_numbers(machine, monkeypatch, tmp_path, request):
    right = machine.kernels.KERNELS["fftconv"]
    monkeypatch.setitem(machine.kernels.KERNELS, "fftconv", lambda u, *args, **static: right(u, *args, **static) * (
        1.01 if 64 < u.shape[2] <= 128 else 1))
    return "output 0 differs from the composite"


def does_not_compile(machine, monkeypatch, tmp_path, request):
    language = "metal" if machine.kernels.__name__.startswith("ember_mlx") else "cuda"
    part = "fftconv_transform" + {"metal": ".metal", "cuda": ".cu"}[language]
    text = (source.PLACES[0] / language / part).read_text()
    first = " int LOG_M = LOG_M_"
    assert text.count(first) == 1
    (tmp_path / language).mkdir()
    (tmp_path / language / part).write_text(text.replace(first, f"{first} / (LOG_M_ != 7)"))
    monkeypatch.setattr(source, "PLACES", (tmp_path, *source.PLACES))
    source_text.cache_clear()
    request.addfinalizer(source_text.cache_clear)
    return "CompileError"


def does_not_launch(machine, monkeypatch, tmp_path, request):
    """On MLX, lazy, it shows when the result is asked for."""
    if machine.kernels.__name__.startswith("ember_mlx"):
        import mlx.core as mx

        class Late(mx.fast.metal_kernel):
            def __call__(self, **given):
                found = super().__call__(**given)
                return [x + late_failure(mx).astype(x.dtype) for x in found] if self.name.startswith("fftconv_forward_Plan_7") else found
        monkeypatch.setattr(mx.fast, "metal_kernel", Late)
        return "Currently only supports float32"
    real = machine.kernels._template

    def template(entry, types, template, *rest):
        def refuse(*_, **how):
            raise RuntimeError("CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources requested for launch")
        return refuse if entry.name == "fftconv_forward" and template.startswith("7,") else real(entry, types, template, *rest)
    monkeypatch.setattr(machine.kernels, "_template", template)
    return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"


@pytest.fixture
def torch_engine(calls, cuda):  # noqa: F811
    """As `engine`, with torch's CPU in the part of a GPU."""
    return em.backend.get("torch"), cuda, calls


def convolution(found, calls):  # noqa: F811
    """A function of length and options that computes a long convolution, right, and tells how many launches that took."""
    def convolved(length, options):
        arrays, _, gelu = fftconv.case(length, length, options)
        native = dict(zip(arrays, tensors(found, *arrays.values())))
        before = len(calls)
        y = em.ops.fftconv(native.pop("u"), native.pop("k"), native.pop("D", None), **native, gelu=gelu)
        want = fftconv.definition(arrays, np.zeros(arrays["u"].shape), gelu)["y"]
        np.testing.assert_allclose(y.numpy(), want, atol=1e-5 * np.abs(want).max())
        return len(calls) - before
    return convolved


def one_plan_fails(found, machine, calls, plant):  # noqa: F811
    """Rows of 100 numbers, by a transform of 128 points, take the composite; those of 50, by one of 64, and others stay as they are."""
    convolved, words = convolution(found, calls), plant()
    with pytest.warns(KernelWarning) as told:
        convolved(100, "v q")
    assert len(told) == 1
    for word in ("kernel fftconv (", "is not used for rows of 1 to 127 numbers by a transform of 128 points, a gate before, a gate after, float32,", words):
        assert word in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert convolved(100, "v q") == 0                   # without asking again
        assert convolved(50, "v q") == 2 and convolved(50, "v q") == 1       # checked, used; used
    with pytest.warns(KernelWarning, match="of 128 points, gelu, float32"):
        convolved(100, "gelu")                              # another form of the same plan
    state = doctor.kernel_state(OP, found, found.default_device, False)
    assert state["path"] == "failed" and state["reason"].count("a transform of 128 points") == 2 and words in state["reason"]
    assert "64 points" not in state["reason"]


@pytest.mark.parametrize("fault", [wrong_numbers, does_not_compile, does_not_launch], ids=lambda f: f.__name__)
def test_one_plan_that_fails_falls_back_alone(engine, fault, monkeypatch, tmp_path, request):  # noqa: F811
    found, machine, calls = engine  # noqa: F811
    if machine.on_gpu and fault is does_not_launch:
        pytest.skip("planted in the stand-in")
    one_plan_fails(found, machine, calls, lambda: fault(machine, monkeypatch, tmp_path, request))


@pytest.mark.parametrize("fault", [wrong_numbers, does_not_launch], ids=lambda f: f.__name__)
def test_one_plan_that_fails_falls_back_alone_on_torch(torch_engine, fault, monkeypatch, tmp_path, request):
    found, machine, calls = torch_engine  # noqa: F811
    one_plan_fails(found, machine, calls, lambda: fault(machine, monkeypatch, tmp_path, request))


def test_a_plan_that_fails_to_launch_after_its_check_is_given_up_alone(engine, monkeypatch):  # noqa: F811
    found, machine, calls = engine  # noqa: F811
    right, broken, convolved = machine.kernels.KERNELS["fftconv"], [], convolution(found, calls)

    def launcher(u, *args, **static):
        if broken and u.shape[2] == 100:
            raise RuntimeError("too many threads")
        return right(u, *args, **static)

    monkeypatch.setitem(machine.kernels.KERNELS, "fftconv", launcher)
    assert [convolved(length, "v q") for length in (100, 50, 100)] == [2, 2, 1]
    broken.append(1)
    with pytest.warns(KernelWarning, match="of 128 points, a gate before, a gate after, float32, .* RuntimeError: too many threads") as told:
        assert [convolved(length, "v q") for length in (100, 90, 50)] == [0, 0, 1]
    assert len(told) == 1


def test_a_second_call_asks_nothing_but_whether_its_form_is_in_use(engine, monkeypatch):  # noqa: F811
    found, _, calls = engine  # noqa: F811
    asked = []
    monkeypatch.setattr(selfcheck, "trusted", lambda spec, form, dtype, *rest, trusted=selfcheck.trusted: asked.append(
        (spec.name, form.log_m, dtype)) or trusted(spec, form, dtype, *rest))
    for dtype in DTYPES[:2]:
        for length in (40, 40, 41, 70, 40):
            arrays, _, _ = fftconv.case(length, length, "", dtype)
            em.ops.fftconv(*tensors(found, arrays["u"], arrays["k"]))
    assert asked == [("fftconv", log_m, dtype) for dtype in DTYPES[:2] for log_m in (6, 7)]
    assert calls.count("fftconv") == len(asked) + 5 * 2


@pytest.mark.parametrize("off", [1.0, 1.01], ids=["right", "wrong"])
def test_the_check_stands_apart_from_a_step_that_mlx_compiles(metal, off, resolved_anew, monkeypatch):
    """It has arrays of its own, which MLX may compute while it traces. The stand-in could not run here: MLX's own functions launch."""
    if metal.on_gpu:
        pytest.skip("there kernels are what other tests compile")
    found = em.backend.get("mlx")
    monkeypatch.setattr(selfcheck, "_outcomes", {})
    monkeypatch.setitem(metal.kernels.KERNELS, "fftconv", lambda *args, **kw: body(OP, found, args, kw) * off)
    arrays, _, _ = fftconv.case(40, 40, "v")
    u, k, v = (em.tensor(arrays[n], device="mlx") for n in ("u", "k", "v"))
    with pytest.warns(KernelWarning, match="rows of 1 to 63 numbers") if off != 1 else warnings.catch_warnings():
        y = em.compile(lambda u, k, v: em.ops.fftconv(u, k, v=v))(u, k, v)
    np.testing.assert_allclose(y.numpy(), fftconv.causal(arrays["u"] * arrays["v"], arrays["k"]), atol=1e-5)
    assert [bool(o.reason) for o in selfcheck.outcomes()] == [off != 1]
