"""Kernels as torch operators: NVIDIA's path of the torch engine, run on CPU tensors with the stand-in for CuPy."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import ember_ml as em
from ember_ml import backend as engines
from ember_ml.kernels import fftconv_plan as plans
from ember_ml.kernels import selfcheck
from ember_ml.ops import REGISTRY
from ember_ml.ops.kernel import sample_call
from tests.kernels import long_convolution
from tests.kernels import test_moe_combine as moe
from tests.kernels import test_scan as scan
from tests.kernels.conftest import on_the_stand_in

KERNEL_OPS = [op for op in REGISTRY.values() if op.kernel is not None]


@pytest.fixture
def torch():
    """Not imported by those who only collect the tests."""
    import torch
    return torch


@pytest.fixture
def torch_cuda():
    from ember_ml.backend.torch import cuda
    return cuda


@pytest.fixture
def calls(cuda, torch_cuda, resolved_anew, monkeypatch):
    """torch's CPU takes the part of a GPU; the names of the kernels that were launched, in order."""
    backend, launched = engines.get("torch"), []

    def launch(name, *args, **static):
        launched.append(name)
        return torch_cuda._launch(cuda.kernels.KERNELS[name], *args, **static)

    table = {name: lambda *args, name=name, **static: launch(name, *args, **static) for name in cuda.kernels.KERNELS}
    on_the_stand_in(monkeypatch)
    monkeypatch.setattr(type(backend), "launchers", lambda self, device: table)
    monkeypatch.setattr(selfcheck, "_outcomes", {})
    return launched


def on_torch(*arrays):
    return [em.tensor(a, device="torch:cpu") for a in arrays]


def scan_loss(g, g_final):
    def loss(a, b, initial):
        h, final = em.ops.linear_scan(a, b, initial)
        return (h * g).sum() + (final * g_final).sum()
    return loss


@pytest.mark.parametrize("mode, compiler", [("auto", None), ("tape", None), ("auto", "aot_eager"),
                                            pytest.param("auto", "inductor", marks=pytest.mark.slow)])
def test_value_and_gradients_come_from_the_kernels(calls, torch, compiler, mode, monkeypatch):
    """The compiled step is made with fullgraph=True, so that a graph break would be an error."""
    compiled = compiler is not None
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=compiler))
    a, b, initial, g, g_final = scan.case(2, 70, 5)
    arrays, (g_, final_) = on_torch(a, b, initial), on_torch(g, g_final)
    step = em.value_and_grad(scan_loss(g_, final_), (0, 1, 2), mode=mode)
    step = em.compile(step) if compiled else step
    h, final = scan.forward(a, b, initial)
    for _ in range(2):
        value, grads = step(*arrays)
        assert value.item() == pytest.approx((h * g).sum() + (final * g_final).sum(), rel=1e-4)
        for got, want in zip(grads, scan.backward(g, g_final, a, h, initial)):
            np.testing.assert_allclose(got.numpy(), want, atol=2e-5)
    check, traced = 1, int(compiled)
    assert calls.count("linear_scan") == calls.count("linear_scan_grad") == check + 2 + traced


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_crosses_over(calls, dtype):
    _, expert_out, inverse, weights = moe.case(5, 3, 33, dtype)
    y = em.ops.moe_combine(*on_torch(expert_out, inverse, weights))
    assert str(y.dtype) == dtype and calls[-1] == "moe_combine"
    expected, magnitude = moe.forward(expert_out, inverse, weights), moe.forward(np.abs(expert_out), inverse, weights)
    moe.check(y.numpy(), expected, dtype, magnitude)


def test_strided_tensors_are_read_where_they_are(calls):
    a, b, initial, _, _ = scan.case(2, 20, 6)
    turned = em.ops.permute_dims(*on_torch(np.ascontiguousarray(a.transpose(0, 2, 1))), (0, 2, 1))
    assert not turned.data.is_contiguous()
    h, _ = em.ops.linear_scan(turned, *on_torch(b, initial))
    np.testing.assert_allclose(h.numpy(), scan.forward(a, b, initial)[0], atol=1e-5)
    assert calls[-1] == "linear_scan"


@pytest.mark.parametrize("shape", [(0, 2, 8), (3, 0, 8), (3, 2, 0)], ids=["no tokens", "no slots", "no columns"])
def test_nothing_to_do(calls, shape):
    tokens, slots, width = shape
    _, expert_out, inverse, weights = moe.case(*shape, spare=1)
    assert em.ops.moe_combine(*on_torch(expert_out, inverse, weights)).shape == (tokens, width)


def test_other_dtypes_take_the_composite(calls):
    a, b, initial, _, _ = (x.astype(np.float64) for x in scan.case(2, 20, 6))
    h, _ = em.ops.linear_scan(*on_torch(a, b, initial))
    np.testing.assert_allclose(h.numpy(), scan.forward(a, b, initial)[0], atol=1e-12)
    assert calls == []


@pytest.mark.parametrize("op", KERNEL_OPS, ids=lambda op: op.name)
def test_the_operator_is_one(calls, torch, op):
    """torch's own examination: schema, fake shapes, gradients, and the same under torch.compile's tracing."""
    backend = engines.get("torch")
    args, static = sample_call(op, backend, "cpu", "float32", op.kernel.sample(op.kernel.forms[0]))
    out = op.resolve(backend)(*args, **static)
    operator = getattr(torch.ops.ember_kernel, op.name).default
    for mine, theirs in zip(out if isinstance(out, tuple) else (out,), operator(*args, **static)):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    if op.kernel.stem in ("scan", "fftconv", "shortconv"):     # it traces composites that loop over time and taps: few turns tell as much
        args = [a[tuple(slice(5) if n > 20 else slice(n) for n in a.shape)].contiguous() for a in args]
    differentiable = [a.detach().requires_grad_(a.is_floating_point()) for a in args]
    torch.library.opcheck(operator, tuple(differentiable), static, test_utils=("test_schema", "test_autograd_registration",
                                                                      "test_faketensor", "test_aot_dispatch_static"))


def test_second_derivatives_go_through_the_composite(calls):
    """d/dw of |d loss / d rows|^2, where moe_combine_grad has no rule of its own; against central differences."""
    g, expert_out, inverse, weights = moe.case(4, 2, 3, spare=1)
    rows, index, w, upstream = on_torch(expert_out, inverse, weights, g)

    def slope(w):
        return (em.grad(lambda r: ((em.ops.moe_combine(r, index, w) ** 2) * upstream).sum())(rows) ** 2).sum()

    def reference(w):
        y = moe.forward(expert_out, inverse, w)
        return (moe.backward(2 * y * g, expert_out, inverse, w)[0] ** 2).sum()

    direction = np.random.default_rng(3).standard_normal(weights.shape)
    wide, step = weights.astype(np.float64), 1e-5
    expected = (reference(wide + step * direction) - reference(wide - step * direction)) / (2 * step)
    assert (em.grad(slope)(w).numpy() * direction).sum() == pytest.approx(expected, rel=1e-4)


def test_cupy_works_on_torch_s_device_and_stream(cuda, torch, torch_cuda, monkeypatch):
    import cupy
    entered = []

    class Entered:
        def __init__(self, *args):
            self.args = args

        def __enter__(self):
            entered.append(self.args)

        def __exit__(self, *_):
            pass

    torch_cuda._made_place.cache_clear()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(cupy.cuda, "ExternalStream", Entered)
    monkeypatch.setattr(cupy.cuda, "Device", Entered)
    for _ in range(2):
        with torch_cuda._place(torch.device("cuda:3")):
            assert entered[-2:] == [(3,), (77, 3)]
    torch_cuda._made_place.cache_clear()


def test_what_a_kernel_is_given_is_torch_s_own_memory(torch, torch_cuda):
    arrays, x = torch_cuda.TorchArrays(), torch.arange(25.0)
    assert arrays.argument(x) == x.data_ptr()
    assert arrays.aligned(x) is x
    moved = arrays.aligned(x[1:])
    assert moved.data_ptr() % 16 == 0 and torch.equal(moved, x[1:])
    assert torch.equal(arrays.aligned(x.view(5, 5).T), x.view(5, 5).T) and arrays.aligned(x.view(5, 5).T).is_contiguous()


def test_without_cupy_the_reason_is_told(torch_cuda, monkeypatch):
    def absent():
        raise ModuleNotFoundError("No module named 'cupy'")

    torch_cuda.missing.cache_clear()
    monkeypatch.setattr(torch_cuda, "_kernels", absent)
    assert "No module named 'cupy'" in torch_cuda.missing() and 'pip install "ember-ml[cuda]"' in torch_cuda.missing()
    torch_cuda.missing.cache_clear()


@pytest.mark.parametrize("options", ["plain", "all"])
def test_arguments_that_are_not_there(calls, options):
    """fftconv: absent gates, skip and mask go in as None, and gradients come out only for what was there."""
    arrays, g, gelu = long_convolution.case(20, 20, long_convolution.OPTIONS[options], batch=2)
    names = [n for n in long_convolution.NAMES if n in arrays and n != "dropout_mask"]
    given, (upstream,) = dict(zip(arrays, on_torch(*arrays.values()))), on_torch(g)

    def loss(*some):
        now = given | dict(zip(names, some))
        return (em.ops.fftconv(now.pop("u"), now.pop("k"), now.pop("D", None), **now, gelu=gelu) * upstream).sum()

    value, grads = em.value_and_grad(loss, tuple(range(len(names))))(*(given[n] for n in names))
    expected = long_convolution.definition(arrays, g, gelu)
    assert value.item() == pytest.approx((expected["y"] * g).sum(), rel=1e-4)
    for name, got in zip(names, grads):
        np.testing.assert_allclose(got.numpy(), expected[name], atol=2e-5 * np.abs(expected[name]).max(), err_msg=name)
    assert {"fftconv", "fftconv_grad"} <= set(calls)


def test_a_prepared_filter(calls, monkeypatch):
    """With a device's name as torch has it: launchers are asked for "cuda:0", which they look at."""
    backend, table = engines.get("torch"), engines.get("torch").launchers("cpu")
    monkeypatch.setattr(type(backend), "launchers", lambda self, device: table if device == "cpu" else {})
    arrays, _, _ = long_convolution.case(40, 40, "", batch=2)
    u, k = on_torch(arrays["u"], arrays["k"])
    prepared = em.ops.prepare_filter(k)
    for _ in range(2):
        y = em.ops.fftconv(u, prepared)
        np.testing.assert_allclose(y.numpy(), long_convolution.causal(arrays["u"], arrays["k"]), atol=1e-5)
    assert calls[-2:] == ["fftconv", "fftconv"] and len(prepared._spectra) == 1


def test_what_a_kernel_does_not_serve_takes_another_way(calls, monkeypatch):
    """A transform beyond the longest."""
    monkeypatch.setattr(plans, "LONGEST", 4)
    arrays, _, _ = long_convolution.case(40, 40, "")
    y = em.ops.fftconv(*on_torch(arrays["u"], arrays["k"]))
    np.testing.assert_allclose(y.numpy(), long_convolution.causal(arrays["u"], arrays["k"]), atol=1e-5)
    assert calls == []
