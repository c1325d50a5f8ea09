"""Ops take their kernels where they agree with the composite, and fall back where they do not."""

import importlib

import numpy as np
import pytest

import ember_ml as em
from ember_ml import backend as engines
from ember_ml.cli import doctor
from ember_ml.kernels import selfcheck, source, source_text
from ember_ml.kernels.selfcheck import KernelWarning
from ember_ml.nn.moe.experts.base import weighted_sum
from ember_ml.nn.moe.routing import Routing
from ember_ml.ops import REGISTRY
from ember_ml.registry import layers
from tests.kernels import long_convolution, test_scan, test_selective_scan, test_shortconv
from tests.kernels.test_moe_combine import backward, case, forward

OPS = [REGISTRY["moe_combine_rows"], REGISTRY["moe_combine_grad"]]
SCANS = [REGISTRY["linear_scan_rows"], REGISTRY["linear_scan_grad"]]
SELECTIVE = [REGISTRY["selective_scan_rows"], REGISTRY["selective_scan_grad"]]
CONVOLUTIONS = [REGISTRY["fftconv_rows"], REGISTRY["fftconv_grad"]]
SHORT = [REGISTRY["depthwise_rows"], REGISTRY["depthwise_grad"]]

#: launches of the check at the first use of a form in a dtype
CHECK = 1


@pytest.fixture(params=["metal", "cuda"])
def engine(request, resolved_anew, monkeypatch):
    """(engine, its launchers, calls): kernels run on a GPU or on the CPU stand-in; `calls` counts launches."""
    machine = request.getfixturevalue(request.param)
    monkeypatch.setattr(selfcheck, "_outcomes", {})
    if request.param == "cuda":
        found = importlib.import_module("ember_ml.backend.cupy").backend
        monkeypatch.setitem(engines._loaded, "cupy", found)
    else:
        found = engines.get("mlx")
    calls = []
    for name, launcher in list(machine.kernels.KERNELS.items()):
        def counted(*args, name=name, launcher=launcher, **static):
            calls.append(name)
            return launcher(*args, **static)
        monkeypatch.setitem(machine.kernels.KERNELS, name, counted)
    return found, machine, calls


def tensors(found, *arrays):
    return [em.tensor(a, device=f"{found.name}:{found.default_device}") for a in arrays]


@pytest.mark.parametrize("mode", ["auto", "tape"])
def test_value_and_gradients_come_from_the_kernels(engine, mode):
    found, _, calls = engine
    g, expert_out, inverse, weights = case(5, 3, 33, spare=2)
    rows, index, w, upstream = tensors(found, expert_out, inverse, weights, g)
    loss = em.value_and_grad(lambda rows, w: (em.ops.moe_combine(rows, index, w) * upstream).sum(), (0, 1), mode=mode)
    value, (d_rows, d_weights) = loss(rows, w)
    expected = backward(g, expert_out, inverse, weights)
    assert value.item() == pytest.approx(float((forward(expert_out, inverse, weights) * g).sum()), rel=1e-5)
    np.testing.assert_allclose(d_rows.numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(d_weights.numpy(), expected[1], atol=1e-5)
    assert calls.count("moe_combine") == calls.count("moe_combine_backward") == CHECK + 1
    assert all(op.path(found) == "kernel" for op in OPS)
    assert doctor.kernel_state(OPS[0], found, found.default_device, False) == {"path": "kernel", "reason": "agrees with the composite"}


def test_an_index_out_of_range_does_not_write_where_another_pair_does(engine):
    """The executor finds two writers of a row where the op moves such an index onto it before the kernel sees it."""
    found, _, calls = engine
    g, expert_out, inverse, weights = case(5, 3, 33)
    inverse[0, 0], inverse[1, 1] = -2 ** 31, 2 ** 31 - 1
    rows, index, w, upstream = tensors(found, expert_out, inverse, weights, g)
    d_rows, d_weights = em.grad(lambda rows, w: (em.ops.moe_combine(rows, index, w) * upstream).sum(), (0, 1))(rows, w)
    expected = backward(g, expert_out, inverse, weights)
    np.testing.assert_allclose(d_rows.numpy(), expected[0], atol=1e-5)
    np.testing.assert_allclose(d_weights.numpy(), expected[1], atol=1e-5)
    assert calls.count("moe_combine_backward") == CHECK + 1


def test_slots_without_an_expert_leave_the_last_experts_gradient_alone(engine):
    """They read a row of the last expert, which a slot that chose it owns: the sum over slots must add the two up."""
    found, _, _ = engine
    y, weights = np.arange(1.0, 13.0, dtype=np.float32).reshape(2, 3, 2), np.float32([[0.5, 0], [0, 0.25], [0, 0]])
    on, w, ids = tensors(found, y, weights, np.int32([[1, 2], [2, 1], [2, 2]]))
    d_y, d_w = em.grad(lambda y, w: weighted_sum(y, Routing(ids, w, False)).sum(), (0, 1))(on, w)
    expected = np.zeros_like(y)
    expected[1, 0], expected[1, 1] = 0.5, 0.25
    np.testing.assert_array_equal(d_y.numpy(), expected)
    np.testing.assert_array_equal(d_w.numpy(), np.repeat(y[1].sum(-1, keepdims=True), 2, axis=1))


@pytest.mark.parametrize("mode", ["auto", "tape"])
def test_the_linear_scan_and_its_gradient_come_from_the_kernels(engine, mode):
    found, _, calls = engine
    a, b, initial, g, g_final = test_scan.case(2, 70, 5)
    a_, b_, i_, g_, final_ = tensors(found, a, b, initial, g, g_final)

    def loss(a, b, i):
        h, final = em.ops.linear_scan(a, b, i)
        return (h * g_).sum() + (final * final_).sum()

    _, grads = em.value_and_grad(loss, (0, 1, 2), mode=mode)(a_, b_, i_)
    h, _ = test_scan.forward(a, b, initial)
    for got, want in zip(grads, test_scan.backward(g, g_final, a, h, initial)):
        np.testing.assert_allclose(got.numpy(), want, atol=2e-5)
    assert calls.count("linear_scan") == calls.count("linear_scan_grad") == CHECK + 1
    assert all(op.path(found) == "kernel" for op in SCANS)


@pytest.mark.parametrize("mode", ["auto", "tape"])
def test_the_selective_scan_s_gradient_comes_from_its_kernel(engine, mode):
    found, _, calls = engine
    names = ("x", "dt", "A", "B", "C", "D", "initial")
    arrays = dict(zip(names, test_selective_scan.case(2, 20, 3, 2)))
    g = np.random.default_rng(3).standard_normal(arrays["x"].shape)
    along = {n: np.random.default_rng(i).standard_normal(a.shape) for i, (n, a) in enumerate(arrays.items())}

    def value(step):
        return (g * test_selective_scan.loop(*(a.astype(np.float64) + step * along[n] for n, a in arrays.items()))[0]).sum()

    def loss(*given):
        y, _ = em.ops.selective_scan(**dict(zip(names, given)))
        return (y * g_).sum()
    (g_,) = tensors(found, g.astype(np.float32))
    got, grads = em.value_and_grad(loss, tuple(range(7)), mode=mode)(*tensors(found, *arrays.values()))
    slope = sum((d.numpy() * along[n]).sum() for n, d in zip(names, grads))
    assert got.item() == pytest.approx(value(0.0), rel=1e-4, abs=1e-4)
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=2e-4, abs=1e-3)
    assert calls.count("selective_scan") == calls.count("selective_scan_grad") == CHECK + 1
    assert all(op.path(found) == "kernel" for op in SELECTIVE)


def test_the_selective_scan_comes_from_its_kernel(engine):
    found, _, calls = engine
    given = test_selective_scan.case(1, 70, 5, 4)
    y, last = em.ops.selective_scan(*tensors(found, *given))
    for a, b in zip((y, last), test_selective_scan.loop(*given)):
        np.testing.assert_allclose(a.numpy(), b, atol=2e-5)
    assert calls.count("selective_scan") == CHECK + 1


def test_other_dtypes_take_the_composite(engine):
    found, _, calls = engine
    a = np.exp(1j * np.arange(12).reshape(1, 6, 2)).astype(np.complex64)
    h, _ = em.ops.linear_scan(*tensors(found, a, a))
    np.testing.assert_allclose(h.numpy(), test_scan.forward_complex(a, a), atol=1e-5)
    assert calls.count("linear_scan") == 0


@pytest.mark.parametrize("mode", ["auto", "tape"])
def test_the_long_convolution_and_its_gradient_come_from_the_kernels(engine, mode):
    found, _, calls = engine
    arrays, g, gelu = long_convolution.case(40, 40, long_convolution.OPTIONS["all"])
    names = [n for n in long_convolution.NAMES if n in arrays and n != "dropout_mask"]
    mask, g_ = tensors(found, arrays["dropout_mask"], g)

    def loss(*values):
        given = dict(zip(names, values))
        y = em.ops.fftconv(given.pop("u"), given.pop("k"), given.pop("D"), **given, dropout_mask=mask, gelu=gelu)
        return (y * g_).sum()

    value, grads = em.value_and_grad(loss, tuple(range(len(names))), mode=mode)(*tensors(found, *(arrays[n] for n in names)))
    expected = long_convolution.definition(arrays, g, gelu)
    assert value.item() == pytest.approx(float((expected["y"] * g).sum()), rel=1e-5, abs=1e-4)
    for name, d in zip(names, grads):
        np.testing.assert_allclose(d.numpy(), expected[name], atol=1e-5 * np.abs(expected[name]).max())
    assert calls.count("fftconv") == calls.count("fftconv_grad") == CHECK + 1
    assert all(op.path(found) == "kernel" for op in CONVOLUTIONS)


def test_a_prepared_filter_is_transformed_once(engine, monkeypatch):
    found, machine, calls = engine
    arrays, g, _ = long_convolution.case(40, 40, "v k_reverse")
    u, k, v, reverse, g_ = tensors(found, *(arrays[n] for n in ("u", "k", "v", "k_reverse")), g)
    filter_ = em.ops.prepare_filter(k, reverse)
    expected = long_convolution.definition(arrays, g, False)
    for _ in range(2):
        y, (du, dv) = em.value_and_grad(lambda u, v: (em.ops.fftconv(u, filter_, v=v) * g_).sum(), (0, 1))(u, v)
        np.testing.assert_allclose(du.numpy(), expected["u"], atol=1e-5 * np.abs(expected["u"]).max())
        np.testing.assert_allclose(dv.numpy(), expected["v"], atol=1e-5 * np.abs(expected["v"]).max())
    assert calls.count("fftconv") == calls.count("fftconv_grad") == CHECK + 2
    assert len(filter_._spectra) == 1


@pytest.mark.parametrize("mode", ["auto", "tape"])
@pytest.mark.parametrize("biased", [True, False])
def test_the_short_convolution_and_its_gradient_come_from_the_kernels(engine, mode, biased):
    found, _, calls = engine
    x, weight, bias, g = test_shortconv.case(2, 3, 70, 4)
    bias = bias if biased else None
    (g_,) = tensors(found, g)

    def loss(*given):
        return (em.ops.short_conv(*given, silu=True, channels_last=True) * em.ops.swap_axes(g_)).sum()

    given = (x, weight, bias) if biased else (x, weight)
    value, grads = em.value_and_grad(loss, tuple(range(len(given))), mode=mode)(*tensors(found, *given))
    y, *expected = test_shortconv.definition(x, weight, bias, g, silu=True)
    assert value.item() == pytest.approx(float((y * g).sum()), rel=1e-5, abs=1e-4)
    for got, want in zip(grads, expected):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5 * np.abs(want).max())
    # its first-use check computes the composite's gradient with the forward kernel
    assert calls.count("short_conv_grad") == CHECK + 1 and calls[-1] == "short_conv_grad"
    assert all(op.path(found) == "kernel" for op in SHORT)


def test_a_gated_convolution_s_layer_takes_both(engine):
    """Its short convolution makes rows along time, which the direct form of the long one reads as they are, gates and all."""
    found, _, calls = engine
    with em.using(f"{found.name}:{found.default_device}"):
        layer = layers.instantiate("gated_conv", d_input=3, filter={"kind": "taps", "taps": 6})
    z = np.random.default_rng(5).standard_normal((2, 70, 9)).astype(np.float32)
    y, _ = layer.convolve(*tensors(found, z))
    short = test_shortconv.definition(z.swapaxes(1, 2), layer.short.weight.numpy(), None if layer.short.bias is None else
                                      layer.short.bias.numpy(), np.zeros((2, 9, 70)))[0]
    q, v, u = np.split(short, 3, axis=1)
    given = {"u": u, "v": v, "q": q, "k": layer.filter.kernel("conv").numpy(), "D": layer.filter.D.numpy()}
    want = long_convolution.definition(given, np.zeros_like(u), False)["y"]
    np.testing.assert_allclose(y.numpy().swapaxes(1, 2), want, atol=1e-5 * np.abs(want).max())
    assert calls[-1] == "fftconv" and "short_conv" in calls


@pytest.mark.parametrize("shape", [(0, 3, 5), (2, 3, 0), (2, 0, 5)])
def test_a_short_convolution_of_nothing_launches_nothing(engine, shape):
    found, _, calls = engine
    x, weight = tensors(found, np.zeros(shape, np.float32), np.zeros((shape[1], 4), np.float32))
    dx = em.grad(lambda x: em.ops.short_conv(x, weight, silu=True).sum())(x)
    assert dx.shape == em.ops.short_conv(x, weight).shape == shape and not calls
    assert em.ops.short_conv(x, weight, channels_last=True).shape == (shape[0], shape[2], shape[1])


def test_a_short_convolution_in_float64_runs_the_composite(engine):
    found, _, calls = engine
    if found.name == "mlx":
        pytest.skip("MLX has no float64 on a GPU")
    x, weight, bias, g = (a.astype(np.float64) for a in test_shortconv.case(1, 2, 9, 4))
    y = em.ops.short_conv(*tensors(found, x, weight, bias), silu=True, channels_last=True)
    np.testing.assert_allclose(y.numpy().swapaxes(1, 2), test_shortconv.definition(x, weight, bias, g, silu=True)[0], rtol=1e-12)
    assert not calls


def test_more_taps_than_the_direct_form_takes_go_to_the_transform(engine):
    found, _, calls = engine
    x, weight, bias, g = test_shortconv.case(1, 2, 90, 70)
    x_, weight_, bias_, g_ = tensors(found, x, weight, bias, g)
    _, grads = em.value_and_grad(lambda *given: (em.ops.short_conv(*given) * g_).sum(), (0, 1, 2))(x_, weight_, bias_)
    for got, want in zip(grads, test_shortconv.definition(x, weight, bias, g)[1:]):
        np.testing.assert_allclose(got.numpy(), want, atol=1e-5 * np.abs(want).max())
    assert "fftconv_grad" in calls and "short_conv" not in calls


@pytest.mark.parametrize("length, head_dim", [(50, 2), (66, 1)])
def test_several_channels_a_head_and_some_numbers_more_come_from_the_kernels(engine, length, head_dim):
    found, _, calls = engine
    arrays, g, _ = long_convolution.case(length, length, "v q", head_dim=head_dim)
    g_, *given = tensors(found, g, *arrays.values())

    def loss(u, k, v, q):
        return (em.ops.fftconv(u, k, v=v, q=q, head_dim=head_dim) * g_).sum()

    _, grads = em.value_and_grad(loss, (0, 1, 2, 3))(*given)
    expected = long_convolution.definition(arrays, g, False)
    for name, d in zip(arrays, grads):
        np.testing.assert_allclose(d.numpy(), expected[name], atol=1e-5 * np.abs(expected[name]).max())
    assert calls.count("fftconv") == calls.count("fftconv_grad") == CHECK + 1


@pytest.mark.parametrize("fault, words", [
    (lambda launcher, *args: launcher(*args) * 1.01, "differs from the composite"),
    (lambda launcher, *args: 1 / 0, "ZeroDivisionError"),
])
def test_a_kernel_that_is_wrong_is_left_alone(engine, fault, words, monkeypatch):
    found, machine, _ = engine
    launcher = machine.kernels.KERNELS["moe_combine"]
    monkeypatch.setitem(machine.kernels.KERNELS, "moe_combine", lambda *args: fault(launcher, *args))
    _, expert_out, inverse, weights = case(5, 3, 33)
    rows, index, w = tensors(found, expert_out, inverse, weights)
    with pytest.warns(KernelWarning, match=words):
        y = em.ops.moe_combine(rows, index, w)
    np.testing.assert_allclose(y.numpy(), forward(expert_out, inverse, weights), atol=1e-5)
    assert em.ops.moe_combine(rows, index, w).shape == y.shape     # no second warning, which would be an error here
    assert doctor.kernel_state(OPS[0], found, found.default_device, False)["path"] == "failed"
    assert words in doctor.kernel_state(OPS[0], found, found.default_device, False)["reason"]


@pytest.mark.parametrize("error, falls_back", [(RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument"), True),
                                               (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY: out of memory"), False), (MemoryError("none left"), False)])
def test_a_kernel_that_fails_at_some_size_is_left_alone_from_there_on(engine, error, falls_back, monkeypatch):
    """As where a block asks for more shared memory than a smaller GPU has. Where memory is at its end the composite would take more."""
    found, machine, _ = engine
    launcher = machine.kernels.KERNELS["moe_combine"]
    _, expert_out, inverse, weights = case(5, 3, 33)
    rows, index, w = tensors(found, expert_out, inverse, weights)
    em.ops.moe_combine(rows, index, w)                             # agrees
    asked = []

    def fails(*args):
        asked.append(args)
        if args[0].shape == rows.shape:
            raise error
        return launcher(*args)

    kernel = REGISTRY["moe_combine_rows"]
    kernel.resolved.clear()
    monkeypatch.setitem(machine.kernels.KERNELS, "moe_combine", fails)
    if not falls_back:
        with pytest.raises(Exception, match="out of memory|none left"):
            em.ops.moe_combine(rows, index, w)
        return
    with pytest.warns(KernelWarning, match="moe_combine .* is not used for float32, .*: RuntimeError: CUDA_ERROR_INVALID_VALUE"):
        y = em.ops.moe_combine(rows, index, w)
    again = em.ops.moe_combine(rows, index, w)
    for got in (y, again):
        np.testing.assert_allclose(got.numpy(), forward(expert_out, inverse, weights), atol=1e-5)
    assert len(asked) == 1 and doctor.kernel_state(kernel, found, found.default_device, False)["path"] == "failed"


@pytest.mark.parametrize("planted, words", [("1.01f *", "differs from the composite"), ("no_such_name *", "no_such_name")])
def test_a_kernel_whose_text_is_wrong_is_left_alone(engine, planted, words, tmp_path, monkeypatch, request):
    """A factor too much, and a text that does not compile."""
    found, _, calls = engine
    language, suffix = ("metal", ".metal") if found.name == "mlx" else ("cuda", ".cu")
    (tmp_path / language).mkdir()
    text = source_text(language, "moe")
    assert text.count("+= weights[pair] *") == 1
    (tmp_path / language / f"moe{suffix}").write_text(text.replace("+= weights[pair] *", f"+= {planted} weights[pair] *"))
    monkeypatch.setattr(source, "PLACES", (tmp_path, *source.PLACES))
    source_text.cache_clear()
    request.addfinalizer(source_text.cache_clear)
    _, expert_out, inverse, weights = case(5, 3, 33)
    with pytest.warns(KernelWarning, match="moe_combine .* is not used"):
        y = em.ops.moe_combine(*tensors(found, expert_out, inverse, weights))
    np.testing.assert_allclose(y.numpy(), forward(expert_out, inverse, weights), atol=1e-5)
    state = doctor.kernel_state(OPS[0], found, found.default_device, False)
    assert state["path"] == "failed" and words in state["reason"]


def test_without_a_device_the_engine_s_own_way_serves():
    numpy = engines.get("numpy")
    expected = "native" if OPS[0].name in numpy.table else "composite"
    assert OPS[0].path(numpy) == expected
    assert doctor.kernel_state(OPS[0], numpy, "cpu", True) == {"path": expected, "reason": "no Metal or CUDA device"}
