"""LTC and CfC against plain loops: values, gradients, irregular times, chunks."""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError
from ember_ml.ops.recurrence import Memory, cfc, ltc

torch = pytest.importorskip("torch", reason="the oracle of these tests is torch's autograd")
from tests.ops.oracle import check, check_slopes, near  # noqa: E402

RNG = np.random.default_rng(29)
SYNAPSES = ("sigma", "mu", "w", "erev")


def ltc_case(length, batch=2, inputs=3, n=4, times=None):
    def synapses(prefix, sources):
        return {prefix + "sigma": RNG.uniform(3, 8, (sources, n)), prefix + "mu": RNG.uniform(0.3, 0.8, (sources, n)),
                prefix + "w": RNG.uniform(0.01, 1.0, (sources, n)) * (RNG.random((sources, n)) < 0.7),
                prefix + "erev": RNG.choice([-1.0, 1.0], (sources, n))}
    arrays = {"x": RNG.standard_normal((batch, length, inputs)), **synapses("s_", inputs), **synapses("r_", n),
              "c": RNG.uniform(0.4, 0.6, n), "gleak": RNG.uniform(0.1, 1.0, n), "vleak": RNG.uniform(-0.2, 0.2, n),
              "v": RNG.standard_normal((batch, n))}
    if times:
        arrays["elapsed"] = RNG.uniform(0.1, 2.0, (batch, length, times))
    return arrays


def ours_ltc(x, c, gleak, vleak, v, elapsed=None, **synapses):
    parts = [tuple(synapses[p + s] for s in SYNAPSES) for p in ("s_", "r_")]
    return ltc(x, *parts, c, gleak, vleak, v, elapsed, unfolds=3)


def loop_ltc(x, c, gleak, vleak, v, elapsed=None, **s):
    ys = []
    for t in range(x.shape[1]):
        cm = c / ((1.0 if elapsed is None else elapsed[:, t]) / 3)
        a = s["s_w"] * torch.sigmoid(s["s_sigma"] * (x[:, t, :, None] - s["s_mu"]))
        num, den = (a * s["s_erev"]).sum(1), a.sum(1)
        for _ in range(3):
            a = s["r_w"] * torch.sigmoid(s["r_sigma"] * (v[:, :, None] - s["r_mu"]))
            v = (cm * v + gleak * vleak + num + (a * s["r_erev"]).sum(1)) / (cm + gleak + den + a.sum(1) + 1e-8)
        ys.append(v)
    return torch.stack(ys, 1), v


@pytest.mark.parametrize("length, times", [(1, None), (7, None), (7, 1), (5, 4)])
def test_ltc_equals_the_loop(backend, length, times):
    check(backend, ours_ltc, loop_ltc, ltc_case(length, times=times), slack=5.0)


@pytest.mark.parametrize("space", [1, 200, 10 ** 6])
def test_ltc_in_chunks(backend, space, monkeypatch):
    """The workspace decides how many steps the gradient holds: one, some, all."""
    import importlib
    monkeypatch.setattr(importlib.import_module("ember_ml.ops.recurrence.ltc"), "WORKSPACE", space)
    check(backend, ours_ltc, loop_ltc, ltc_case(9, times=1), modes=("auto",), slack=5.0)


def cfc_case(length, mode, layers, batch=2, inputs=3, n=4, units=5, times=None):
    arrays = {"x": RNG.standard_normal((batch, length, inputs)), "h": RNG.standard_normal((batch, n))}
    width = inputs + n
    for i in range(layers):
        arrays |= {f"w{i}": RNG.standard_normal((units, width)) / 2, f"b{i}": RNG.standard_normal(units)}
        width = units
    heads = n * (1 if mode == "pure" else 4)
    arrays |= {"head_w": RNG.standard_normal((heads, width)) / 2, "head_b": RNG.standard_normal(heads)}
    if mode == "pure":
        arrays |= {"w_tau": RNG.uniform(0.1, 1.0, n), "amplitude": RNG.uniform(0.5, 1.5, n)}
    if times:
        arrays["elapsed"] = RNG.uniform(0.1, 2.0, (batch, length, times))
    return arrays


def ours_cfc(mode, layers, chunk=64):
    def run(x, h, head_w, head_b, w_tau=None, amplitude=None, elapsed=None, **backbone):
        return cfc(x, [(backbone[f"w{i}"], backbone[f"b{i}"]) for i in range(layers)], (head_w, head_b), h, elapsed, mode=mode,
                   pure=None if w_tau is None else (w_tau, amplitude), chunk=chunk)
    return run


def loop_cfc(mode, layers):
    def run(x, h, head_w, head_b, w_tau=None, amplitude=None, elapsed=None, **backbone):
        ys = []
        for t in range(x.shape[1]):
            z, ts = torch.cat([x[:, t], h], 1), 1.0 if elapsed is None else elapsed[:, t]
            for i in range(layers):
                z = 1.7159 * torch.tanh(0.666 * (z @ backbone[f"w{i}"].T + backbone[f"b{i}"]))
            z = z @ head_w.T + head_b
            if mode == "pure":
                h = -amplitude * torch.exp(-ts * (w_tau.abs() + z.abs())) * z + amplitude
            else:
                f1, f2, a, b = z.chunk(4, 1)
                f1, f2, s = torch.tanh(f1), torch.tanh(f2), torch.sigmoid(a * ts + b)
                h = f1 * (1 - s) + s * f2 if mode == "default" else f1 + s * f2
            ys.append(h)
        return torch.stack(ys, 1), h
    return run


@pytest.mark.parametrize("mode", ["default", "no_gate", "pure"])
@pytest.mark.parametrize("layers, chunk, times", [(1, 64, None), (0, 3, 1), (2, 1, 4)])
def test_cfc_equals_the_loop(backend, mode, layers, chunk, times):
    check(backend, ours_cfc(mode, layers, chunk), loop_cfc(mode, layers), cfc_case(7, mode, layers, times=times), slack=5.0)


@pytest.mark.parametrize("mode", ["auto", "tape"])
def test_second_order_of_a_layered_scan(backend, mode):
    """The slope of CfC's gradient along a direction, over three chunks, against torch's double backward of the loop."""
    arrays = cfc_case(7, "default", 1)
    along = {n: RNG.standard_normal(a.shape) for n, a in arrays.items()}
    leaves = {n: torch.tensor(a, requires_grad=True) for n, a in arrays.items()}
    first = torch.autograd.grad(loop_cfc("default", 1)(**leaves)[0].pow(3).sum(), list(leaves.values()), create_graph=True)
    want = torch.autograd.grad(sum((g * torch.tensor(along[n])).sum() for n, g in zip(leaves, first)), list(leaves.values()))
    dtype = "float32" if backend == "mlx" else "float64"
    given, directions = ([em.tensor(x.astype(dtype)) for x in of.values()] for of in (arrays, along))

    def slope(*values):
        grads = em.grad(lambda *v: (ours_cfc("default", 1, 3)(**dict(zip(arrays, v)))[0] ** 3).sum(), tuple(range(len(values))),
                        mode=mode)(*values)
        return em.ops.concat([(g * d).sum().reshape((1,)) for g, d in zip(grads, directions)]).sum()

    for n, got, expected in zip(arrays, em.grad(slope, tuple(range(len(given))), mode=mode)(*given), want):
        near(got, expected.numpy(), 1e-4 if backend == "mlx" else 1e-9, n)


def memory_case(arrays, n=4):
    batch, length, _ = arrays["x"].shape
    return arrays | {"gates": RNG.standard_normal((batch, length, 4 * n)), "weight_hh": RNG.standard_normal((4 * n, n)) / 2,
                     "c_last": RNG.standard_normal((batch, n))}


def with_memory(cell):
    """An LSTM's step before each of a loop's."""
    def run(x, gates, weight_hh, c_last, elapsed=None, **rest):
        name = "v" if "v" in rest else "h"
        h, c, ys = rest.pop(name), c_last, []
        for t in range(x.shape[1]):
            i, f, g, o = (gates[:, t] + h @ weight_hh.T).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            _, h = cell(x[:, t:t + 1], elapsed=None if elapsed is None else elapsed[:, t:t + 1], **{name: h}, **rest)
            ys.append(h)
        return torch.stack(ys, 1), h, c
    return run


def test_mixed_memory_equals_the_loop(backend):
    def ours_with_ltc(x, c, gleak, vleak, v, gates, weight_hh, c_last, elapsed, **synapses):
        parts = [tuple(synapses[p + s] for s in SYNAPSES) for p in ("s_", "r_")]
        return ltc(x, *parts, c, gleak, vleak, v, elapsed, unfolds=3, memory=Memory(gates, weight_hh, c_last))

    def ours_with_cfc(x, h, w0, b0, head_w, head_b, gates, weight_hh, c_last, elapsed):
        return cfc(x, [(w0, b0)], (head_w, head_b), h, elapsed, memory=Memory(gates, weight_hh, c_last), chunk=3)

    check(backend, ours_with_ltc, with_memory(loop_ltc), memory_case(ltc_case(6, times=1)), slack=5.0)
    check(backend, ours_with_cfc, with_memory(loop_cfc("default", 1)), memory_case(cfc_case(7, "default", 1, times=1)), slack=5.0)


@pytest.mark.parametrize("name, shape", [("gates", (2, 5, 16)), ("weight_hh", (16, 3)), ("c", (2, 3))])
def test_misuse_of_the_memory_is_told(name, shape):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in memory_case(cfc_case(7, "default", 1)).items()}
        memory = {"gates": arrays["gates"], "weight_hh": arrays["weight_hh"], "c": arrays["c_last"], name: em.ops.ones(shape)}
        with pytest.raises(ShapeError, match=f"cfc: expected the memory's {name} of shape"):
            cfc(arrays["x"], [(arrays["w0"], arrays["b0"])], (arrays["head_w"], arrays["head_b"]), memory=Memory(**memory))


def test_where_no_time_passes_a_neuron_stays(backend):
    arrays = {n: em.tensor(a.astype("float32")) for n, a in ltc_case(1, times=1).items()}
    y, last = ours_ltc(**arrays | {"elapsed": arrays["elapsed"] * 0.0})
    near(last, arrays["v"].numpy(), 1e-6, "v")


def test_gradients_are_slopes():
    check_slopes(ours_ltc, ltc_case(5, times=1))
    check_slopes(ours_cfc("default", 1, chunk=3), cfc_case(7, "default", 1))


def test_half_precision_keeps_its_state_in_float32(backend):
    arrays = {n: em.tensor(a.astype("float32")).astype("float16") for n, a in cfc_case(20, "default", 1).items()}
    y, h = ours_cfc("default", 1)(**arrays)
    want, last = loop_cfc("default", 1)(**{n: torch.tensor(t.astype("float32").numpy()) for n, t in arrays.items()})
    assert str(y.dtype) == "float16" and str(h.dtype) == "float32"
    near(y.astype("float32"), want.numpy(), 2.0 ** -10, "y")
    near(h, last.numpy(), 1e-5, "h")


def test_compiled_is_eager_on_mlx():
    pytest.importorskip("mlx.core")
    with em.using("mlx"):
        check("mlx", ours_ltc, loop_ltc, ltc_case(4), modes=("auto",), compiled=True, slack=5.0)
        check("mlx", ours_cfc("default", 1), loop_cfc("default", 1), cfc_case(5, "default", 1), modes=("auto",), compiled=True, slack=5.0)


@pytest.mark.parametrize("change, says", [(dict(x=(2, 3)), "x of shape"), (dict(r_w=(3, 4)), "synapses' w of shape"),
                                          (dict(s_mu=(4, 4)), "sensory mu of shape"), (dict(v=(4,)), "v of shape"),
                                          (dict(elapsed=(2, 5)), "elapsed of shape"), (dict(gleak=(3,)), "gleak of shape")])
def test_misuse_of_ltc_is_told(change, says):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in ltc_case(5).items()}
        with pytest.raises(ShapeError, match=f"ltc: expected {says}"):
            ours_ltc(**{**arrays, **{n: em.ops.ones(s) for n, s in change.items()}})


@pytest.mark.parametrize("change, says", [(dict(x=(2, 3)), "x of shape"), (dict(w0=(5, 6)), "backbone layer 0"),
                                          (dict(head_w=(16, 6)), "weight of heads"), (dict(h=(2, 3)), "h of shape"),
                                          (dict(elapsed=(2, 5)), "elapsed of shape")])
def test_misuse_of_cfc_is_told(change, says):
    with em.using("numpy"):
        arrays = {n: em.tensor(a) for n, a in cfc_case(5, "default", 1).items()}
        with pytest.raises(ShapeError, match=f"cfc: expected .*{says}"):
            ours_cfc("default", 1)(**{**arrays, **{n: em.ops.ones(s) for n, s in change.items()}})
        with pytest.raises(ValueError, match="expected mode among"):
            ours_cfc("other", 1)(**arrays)
