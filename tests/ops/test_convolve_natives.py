"""The engines' own convolutions: folding, mending, blocks and threads, at sizes where each of them takes its special ways."""

import math
import platform
import sys

import numpy as np
import pytest

import ember_ml as em
from ember_ml.backend import right_angle
from ember_ml.ops.convolve import convolve_grad, convolve_rows
from tests.ops.small_blocks import force_small_blocks

RNG = np.random.default_rng(5)

#: MLX on a CPU takes NumPy's blocks for any number of numbers
ALWAYS = {"fftconv_rows": 0, "convolve_rows": 0, "convolve_grad": 0}


def definition(x, k, D=None, k_reverse=None):
    """The double sum in float64."""
    y, each = np.zeros_like(x), x.shape[1] // k.shape[0]
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            y[b, c] = np.convolve(x[b, c], k[c // each])[:x.shape[2]]
            if k_reverse is not None:
                y[b, c] += np.convolve(x[b, c, ::-1], k_reverse[c // each])[:x.shape[2]][::-1]
            if D is not None:
                y[b, c] += D[c] * x[b, c]
    return y


@pytest.fixture
def blockwise(backend, monkeypatch):
    """The current engine with its ways for long rows forced upon short ones, a few rows a block, on several threads."""
    force_small_blocks(monkeypatch, backend, points=10)
    return backend


@pytest.fixture
def as_graph(monkeypatch):
    """MLX's graph, which compiled steps take, with its ways for long rows forced upon short ones."""
    module = pytest.importorskip("ember_mlx.fftconv", reason="needs mlx")
    for name, value in {"SMALL": 1, "ALONE": 0, "MANY": 40, "PARTS": 3, "at_hand": lambda arrays: False}.items():
        monkeypatch.setattr(module, name, value)
    with em.using("mlx"):
        yield


@pytest.fixture
def blocks_on_mlx(monkeypatch):
    """MLX's blocks, for any number of numbers; a list of the calls that took them."""
    module, taken = pytest.importorskip("ember_mlx.fftconv", reason="needs mlx"), []
    if module.mx.default_device() != module.mx.cpu:
        pytest.skip("blocks are for a CPU")
    monkeypatch.setattr(module, "WORTH", ALWAYS)
    monkeypatch.setattr(module, "Results", lambda made=module.Results: taken.append("blocks") or made())
    with em.using("mlx"):
        yield taken


def dtypes(engine):
    return [("float32", 2e-6)] + ([("float64", 1e-13)] if engine != "mlx" else [])


LENGTHS = [(1, 1), (2, 2), (3, 3), (7, 7), (16, 16), (17, 17), (18, 18), (34, 34), (33, 40), (30, 5), (31, 3), (40, 1), (9, 20), (66, 66)]


def check_values_and_gradients(engine, length, taps, both_ways, each):
    arrays = {"x": RNG.standard_normal((3, 4, length)), "k": RNG.standard_normal((4 // each, taps)), "D": RNG.standard_normal(4)}
    if both_ways:
        arrays["k_reverse"] = RNG.standard_normal((4 // each, max(1, taps - 2)))
    g, want = RNG.standard_normal(arrays["x"].shape), definition(**arrays)
    along = {name: RNG.standard_normal(a.shape) for name, a in arrays.items()}
    # the convolution is linear in each argument: the difference is the derivative
    slopes = [((definition(**{**arrays, n: a + along[n]}) - want) * g).sum() for n, a in arrays.items()]
    for dtype, allowed in dtypes(engine):
        t = [em.tensor(a.astype(dtype)) for a in arrays.values()]
        got = convolve_rows(*t).numpy()
        assert got.dtype == dtype and np.abs(got - want).max() <= allowed * max(1.0, np.abs(want).max())
        grads = convolve_grad(em.tensor(g.astype(dtype)), *t)
        for name, grad, slope in zip(arrays, grads, slopes):
            size = np.abs(grad.numpy()).max() * np.abs(along[name]).sum()
            assert abs((grad.numpy() * along[name]).sum() - slope) <= 4 * allowed * max(size, 1.0), (name, dtype)
        again = convolve_grad(em.tensor(g.astype(dtype)), *t)
        assert all(np.array_equal(a.numpy(), b.numpy()) for a, b in zip(grads, again))


@pytest.mark.parametrize("length, taps", LENGTHS)
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("each", [1, 2])
def test_values_and_gradients(blockwise, length, taps, both_ways, each):
    check_values_and_gradients(blockwise, length, taps, both_ways, each)


@pytest.mark.parametrize("length, taps", LENGTHS)
@pytest.mark.parametrize("both_ways", [False, True])
@pytest.mark.parametrize("each", [1, 2])
def test_mlx_as_a_graph(as_graph, length, taps, both_ways, each):
    check_values_and_gradients("mlx", length, taps, both_ways, each)


def test_which_form_mlx_takes(monkeypatch):
    """Blocks where all arrays have values, also inside a gradient; the graph where any has none, as the filter that a compiled step
    trains, and for few numbers."""
    mx = pytest.importorskip("mlx.core", reason="needs mlx")
    if mx.default_device() != mx.cpu:
        pytest.skip("blocks are for a CPU")
    from ember_mlx import fftconv
    monkeypatch.setattr(fftconv, "WORTH", ALWAYS)
    taken = []
    real = fftconv._spectrum
    monkeypatch.setattr(fftconv, "_spectrum", lambda *args: taken.append("graph") or real(*args))
    with em.using("mlx"):
        x, k = (em.tensor(RNG.standard_normal(s).astype(np.float32)) for s in ((2, 2, 18), (2, 18)))

        def loss(k):
            return (em.ops.fftconv(x, k) ** 2).sum()
        eager = em.value_and_grad(loss)(k)
        assert taken == []
        compiled = em.compile(em.value_and_grad(loss))(k)
        assert taken
        for a, b in zip(eager, compiled):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)
        for few in ({"fftconv_rows": x.size + 1, "convolve_rows": x.size + 1}, {"convolve_grad": x.size + 1}):
            taken.clear()
            monkeypatch.setattr(fftconv, "WORTH", ALWAYS | few)
            for a, b in zip(eager, em.value_and_grad(loss)(k)):
                np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-4)
            assert taken


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [18, 33])
def test_a_prepared_filter_serves_both_forms_on_mlx(monkeypatch, dtype, length):
    """Each keeps the spectrum of its own scale, computed once."""
    fftconv = pytest.importorskip("ember_mlx.fftconv", reason="needs mlx")
    x, taps = RNG.standard_normal((2, 4, length)), RNG.standard_normal((4, length))
    with em.using("mlx"):
        prepared = em.ops.prepare_filter(em.tensor(taps.astype(np.float32)).astype(dtype))
        want, t = definition(x, prepared.k.astype("float32").numpy().astype(np.float64)), em.tensor(x.astype(np.float32))
        monkeypatch.setattr(fftconv, "WORTH", ALWAYS)
        for form in (lambda t: em.ops.fftconv(t, prepared), em.compile(lambda t: em.ops.fftconv(t, prepared))) * 2:
            np.testing.assert_allclose(form(t).numpy(), want, atol=2e-5)
        assert len(prepared._spectra) == (2 if fftconv.mx.default_device() == fftconv.mx.cpu else 1)


@pytest.mark.parametrize("length, taps", [(1, 1), (18, 18), (33, 40), (30, 5)])
@pytest.mark.parametrize("both_ways", [False, True])
def test_torch_without_mkl(monkeypatch, length, taps, both_ways):
    """As on other processors: torch.fft's own transforms, in the same blocks."""
    module = pytest.importorskip("ember_ml.backend.torch.fftconv", reason="needs torch")
    for name, value in {"BLOCK": 10, "PLANNED": 2, "_has_mkl": lambda x: False}.items():
        monkeypatch.setattr(module, name, value)
    with em.using("torch:cpu"):
        check_values_and_gradients("torch", length, taps, both_ways, 2)


def test_mkl_is_called_where_torch_has_it():
    """On this system its functions are found and transform as NumPy does; many rows, one row, and a row of nothing finite."""
    torch = pytest.importorskip("torch")
    from ember_ml.backend.torch.cpu import mkl
    if sys.platform != "linux" or platform.machine() != "x86_64" or not torch.backends.mkl.is_available():
        pytest.skip("torch has no MKL on this system")
    assert mkl.works()
    for rows, length, size in ((1, 1, 2), (6, 5, 16), (6, 16, 16), (3, 7, 30)):
        x = torch.tensor(RNG.standard_normal((rows, 1, length)))
        memory, shape = mkl.InPlace(rows + 1, size, torch.float64), (rows, 1, 1, 1, length)
        memory.rows(shape).copy_(x[:, :, None, None])
        np.testing.assert_allclose(memory.forward(shape)[:, 0].numpy(), np.fft.rfft(x.numpy(), size), atol=1e-13)
        np.testing.assert_allclose(memory.back(shape)[:, 0, 0].numpy(), size * x.numpy(), atol=1e-13)
    with pytest.raises(RuntimeError, match="DftiCreateDescriptor"):
        mkl._Plan(False, -1, 1, 1, torch.float32, 1)


def gated_definition(u, k, D=None, v=None, q=None, k_reverse=None, dropout_mask=None, *, gelu=False, head_dim=1):
    """The formula of `ember_ml.ops.fftconv` around the double sum, in float64."""
    B, channels, L = u.shape
    by_head = B, channels // head_dim, head_dim
    x = u if v is None else u.reshape(*by_head, 1, L) * v.reshape(*by_head[:2], 1, head_dim, L)
    x = x.reshape(B, -1, L)
    z = definition(x, k, None if D is None else np.repeat(D, head_dim ** 2), k_reverse)
    a = 0.5 * z * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0))) if gelu else z
    a = a.reshape(*by_head, -1, L) * (1.0 if dropout_mask is None else dropout_mask[:, :, None, None, None])
    return (a * (1.0 if q is None else q.reshape(*by_head, 1, L))).sum(axis=2).reshape(u.shape)


GATED = {"before": ("v",), "after": ("q", "D"), "both": ("v", "q", "D"), "gelu": ("D", "gelu"), "mask": ("v", "dropout_mask"),
         "heads": ("v", "q", "heads"), "all": ("D", "v", "q", "k_reverse", "dropout_mask", "gelu", "heads")}


@pytest.fixture(params=["numpy", "torch:cpu"])
def gated(request, monkeypatch):
    """An engine that has all of `fftconv` in blocks, of a few rows."""
    force_small_blocks(monkeypatch, request.param, points=60)
    with em.using(request.param):
        yield


def gated_case(options, length, taps):
    head_dim = 2 if "heads" in options else 1
    shapes = {"u": (3, 4, length), "k": (4 // head_dim, taps), "D": (4 // head_dim,), "v": (3, 4, length), "q": (3, 4, length),
              "k_reverse": (4 // head_dim, 4), "dropout_mask": (3, 4 // head_dim)}
    arrays = {n: RNG.standard_normal(s) for n, s in shapes.items() if n in ("u", "k", *options)}
    return arrays, {"gelu": "gelu" in options, "head_dim": head_dim}


@pytest.mark.parametrize("options", GATED)
@pytest.mark.parametrize("length, taps", [(18, 18), (17, 5), (16, 16)])
def test_gates_in_blocks(gated, options, length, taps):
    """Values and the slope along a direction in each argument, in float64; a prepared filter has the other gradients all the same."""
    arrays, static = gated_case(GATED[options], length, taps)
    g, names = RNG.standard_normal(arrays["u"].shape), [n for n in arrays if n != "dropout_mask"]

    def loss(k, **t):
        return (em.ops.fftconv(t.pop("u"), k, t.pop("D", None), **t, **static) * em.tensor(g)).sum()
    t = {n: em.tensor(a) for n, a in arrays.items()}
    y = em.ops.fftconv(t["u"], t["k"], t.get("D"), **{n: a for n, a in t.items() if n not in ("u", "k", "D")}, **static)
    np.testing.assert_allclose(y.numpy(), gated_definition(**arrays, **static), atol=1e-12)
    for mode in ("auto", "tape"):
        found = dict(zip(names, em.grad(lambda *a: loss(**{**t, **dict(zip(names, a))}), tuple(range(len(names))), mode=mode)(*[t[n] for n in names])))
        for n in names:
            along, h = RNG.standard_normal(arrays[n].shape), 1e-5
            up, down = ((gated_definition(**{**arrays, n: arrays[n] + s * h * along}, **static) * g).sum() for s in (1, -1))
            assert (found[n].numpy() * along).sum() == pytest.approx((up - down) / (2 * h), rel=1e-7, abs=1e-6), (mode, n)
    if "k_reverse" in arrays:
        return
    prepared, rest = em.ops.prepare_filter(t["k"]), [n for n in names if n != "k"]
    grads = em.grad(lambda *a: loss(prepared, **{**{n: x for n, x in t.items() if n != "k"}, **dict(zip(rest, a))}), tuple(range(len(rest))))
    for n, grad in zip(rest, grads(*[t[n] for n in rest])):
        np.testing.assert_allclose(grad.numpy(), found[n].numpy(), atol=1e-11, err_msg=n)


@pytest.mark.parametrize("options", GATED)
def test_gates_in_blocks_on_mlx(blocks_on_mlx, options):
    """Forward; strided gates too."""
    arrays, static = gated_case(GATED[options], 18, 18)
    t = {n: em.tensor(a.astype(np.float32)) for n, a in arrays.items()}
    t |= {n: em.ops.swap_axes(em.tensor(arrays[n].swapaxes(1, 2).astype(np.float32))) for n in "uvq" if n in t}
    y = em.ops.fftconv(t.pop("u"), t.pop("k"), t.pop("D", None), **t, **static).numpy()
    want = gated_definition(**arrays, **static)
    np.testing.assert_allclose(y, want, atol=3e-6 * np.abs(want).max())
    assert blocks_on_mlx == ["blocks"]


@pytest.mark.parametrize("options", ["both", "all"])
@pytest.mark.parametrize("dtype, allowed", [("float16", 1e-3), ("bfloat16", 5e-3)])
def test_gates_of_half_precision_that_lie_beside_each_other(gated, options, dtype, allowed):
    """u, v and q as a layer's projection has them: every third part of one array, channels last; multiplied in float32."""
    arrays, static = gated_case(GATED[options], 18, 18)
    whole = em.tensor(RNG.standard_normal((3, 18, 12)).astype(np.float32)).astype(dtype)
    t = {n: em.tensor(a.astype(np.float32)).astype(dtype) for n, a in arrays.items()}
    for i, n in enumerate("uvq"):
        t[n] = em.ops.swap_axes(whole[:, :, 4 * i:4 * i + 4])
    exact = {n: a.astype("float32").numpy().astype(np.float64) for n, a in t.items()}
    y = em.ops.fftconv(t.pop("u"), t.pop("k"), t.pop("D", None), **t, **static)
    want = gated_definition(**exact, **static)
    assert str(y.dtype) == dtype
    assert np.linalg.norm(y.astype("float32").numpy() - want) / np.linalg.norm(want) < allowed


def test_what_is_not_finite_stays_in_its_row(blockwise):
    for bad in (np.nan, np.inf, -np.inf):
        x, k = RNG.standard_normal((2, 4, 34)).astype(np.float32), RNG.standard_normal((4, 34)).astype(np.float32)
        want = convolve_rows(em.tensor(x), em.tensor(k)).numpy()
        x[1, 2, 5] = bad
        got = convolve_rows(em.tensor(x), em.tensor(k)).numpy()
        touched = ~np.isfinite(got).all(-1)
        assert touched[1, 2] and touched.sum() == 1
        np.testing.assert_array_equal(got[~touched], want[~touched])
        dx = convolve_grad(em.tensor(x), em.tensor(np.ones_like(x)), em.tensor(k))[0].numpy()
        assert (~np.isfinite(dx).all(-1)).sum() == 1


def test_second_derivatives(blockwise):
    """Of sum(y^2) along v, through the gradient of the gradient, against differences of first ones."""
    dtype, allowed = dtypes(blockwise)[-1]
    x, k, v = (RNG.standard_normal(s).astype(dtype) for s in ((2, 2, 18), (2, 18), (2, 18)))

    def first(k):
        return em.grad(lambda k: (em.ops.fftconv(em.tensor(x), k) ** 2).sum())(k)
    got = em.grad(lambda k: (first(k) * em.tensor(v)).sum())(em.tensor(k)).numpy()
    want = (first(em.tensor(k + v)).numpy() - first(em.tensor(k - v)).numpy()) / 2   # the gradient is linear in k
    np.testing.assert_allclose(got, want, atol=20 * allowed * np.abs(want).max())


def test_strided_and_broadcast_input(blockwise):
    x = RNG.standard_normal((34, 4, 2)).astype(np.float32)
    wide = em.ops.permute_dims(em.tensor(x), (2, 1, 0))
    k = em.tensor(RNG.standard_normal((34, 4)).astype(np.float32))
    k = em.ops.swap_axes(k)
    want = definition(np.transpose(x, (2, 1, 0)).astype(np.float64), k.numpy().astype(np.float64))
    np.testing.assert_allclose(convolve_rows(wide, k).numpy(), want, atol=2e-5)
    same = em.ops.broadcast_to(wide[:1], (3, 4, 34))
    np.testing.assert_allclose(convolve_rows(same, k).numpy(), np.repeat(want[:1], 3, 0), atol=2e-5)


@pytest.mark.parametrize("length, taps, both_ways, points, left", [
    (1026, 1026, False, 1024, 3), (32770, 32770, False, 32768, 3), (1024, 1024, False, 1024, 0), (1025, 1025, False, 1024, 1),
    (1026, 1026, True, 1080, 0), (160002, 160002, False, 162000, 0), (3, 3, False, 2, 1), (1, 1, False, 1, 0),
    (4096, 128, False, 2160, 0), (8, 2, False, 4, 1)])
def test_the_plan_takes_fast_sizes(length, taps, both_ways, points, left):
    how = right_angle.plan(length, taps, both_ways)
    assert how == (points, left)
    assert how.points * 2 + how.left >= length + taps - 1 and how.points * 2 >= length


def test_smooth_sizes_are_the_smallest():
    products = sorted(2 ** a * 3 ** b * 5 ** c for a in range(12) for b in range(8) for c in range(6))
    for n in range(1, 2000):
        assert right_angle.smooth(n) == next(p for p in products if p >= n)


@pytest.mark.parametrize("length", [4096, 4098])
def test_long_rows_keep_the_contract(backend, length):
    """At the engines' own block sizes: relative L2 error below 1e-6, and the past alone counts."""
    x, k = RNG.standard_normal((2, 8, length)), RNG.standard_normal((8, length)) * np.exp(-np.arange(length) / 500)
    want = definition(x, k)
    prepared = em.ops.prepare_filter(em.tensor(k.astype(np.float32)))
    for f in (prepared, prepared.k):
        got = em.ops.fftconv(em.tensor(x.astype(np.float32)), f).numpy()
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-6
    x[:, :, :3000] = 0.0
    leak = np.abs(em.ops.fftconv(em.tensor(x.astype(np.float32)), prepared).numpy()[:, :, :3000]).max()
    assert leak < 1e-6 * np.abs(want).max()


@pytest.mark.parametrize("anticausal", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("length", [1, 2, 9])
def test_short_convolutions_of_rows_on_torch_are_passes_over_them(anticausal, biased, length):
    """Channels beside each other in memory, as layers have them; the same formula as for channels apart, in float64."""
    torch = pytest.importorskip("torch")
    from ember_ml.backend.torch import base
    rng = np.random.default_rng(3)
    x, w, b = rng.standard_normal((2, length, 5)), rng.standard_normal((5, 4)), rng.standard_normal(5)
    wide = np.pad(x, ((0, 0), (0, 3) if anticausal else (3, 0), (0, 0)))
    taps = w[:, ::-1] if anticausal else w
    want = sum(wide[:, j:j + length] * taps[:, j] for j in range(4)) + (b if biased else 0.0)
    got = base._depthwise(torch.tensor(x).mT, torch.tensor(w), torch.tensor(b) if biased else None, anticausal)
    assert got.stride(1) == 1                              # the way that is meant was taken
    np.testing.assert_allclose(got.mT.numpy(), want, rtol=1e-12, atol=1e-12)
