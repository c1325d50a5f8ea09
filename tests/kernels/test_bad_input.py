"""What kernels are not made for goes another way, and does no harm: nothing at all, sizes beyond a limit, other dtypes, values that are
not finite. Through the ops, as a user calls them."""

import ml_dtypes
import numpy as np
import pytest

import ember_ml as em
from ember_ml.errors import ShapeError, UnsupportedDtype
from ember_ml.kernels import SPECS
from ember_ml.kernels import fftconv_plan as plans
from tests.kernels import long_convolution, test_selective_scan
from tests.kernels.test_op_takes_kernel import engine, tensors  # noqa: F401 - a fixture

#: the short convolution's launchers leave it to the op, see test_op_takes_kernel.py
ASKING = [spec for spec in SPECS if spec.stem != "shortconv"]


@pytest.mark.parametrize("spec", ASKING, ids=lambda spec: spec.name)
def test_a_dtype_that_no_kernel_serves_is_refused_by_every_launcher(machine, spec):
    """Integers for numbers, numbers for ids."""
    kinds = [kind for _, kind in spec.entries[0].inputs]
    wrong = "float32" if kinds[0] == "int32" else "int32"
    arrays, static = spec.sample(spec.forms[0])
    given = [machine.array(np.array(x, wrong if kind == kinds[0] else kind)) for x, kind in zip(arrays, kinds)]
    with pytest.raises(UnsupportedDtype, match=f"expected .*, got {wrong}"):
        machine.kernels.KERNELS[spec.name](*given, **static)


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5)], ids=["no rows", "no channels"])
def test_a_long_convolution_of_nothing(engine, shape):  # noqa: F811
    found, _, calls = engine
    u, k = tensors(found, np.zeros(shape, np.float32), np.ones((shape[1], 40), np.float32))
    du, dk = em.grad(lambda u, k: em.ops.fftconv(u, k, v=u).sum(), (0, 1))(u, k)
    assert em.ops.fftconv(u, k).shape == du.shape == shape and dk.shape == k.shape
    assert not dk.numpy().any() and not calls


def test_length_0_is_refused_before_anything_is_launched(engine):  # noqa: F811
    found, _, calls = engine
    u, k = tensors(found, np.zeros((2, 3, 0), np.float32), np.ones((3, 5), np.float32))
    with pytest.raises(ShapeError, match="a length of at least 1"):
        em.ops.fftconv(u, k)
    with pytest.raises(ShapeError, match="without empty axes"):
        em.ops.selective_scan(*tensors(found, *test_selective_scan.case(2, 0, 3, 2)))
    assert not calls


def test_a_transform_beyond_the_longest_runs_the_composite(engine, monkeypatch):  # noqa: F811
    found, _, calls = engine
    monkeypatch.setattr(plans, "LONGEST", 4)
    arrays, _, _ = long_convolution.case(70, 70, "D")
    y = em.ops.fftconv(*tensors(found, *(arrays[n] for n in ("u", "k", "D"))))
    expected = long_convolution.causal(arrays["u"], arrays["k"]) + arrays["D"][:, None] * arrays["u"]
    np.testing.assert_allclose(y.numpy(), expected, atol=1e-5 * np.abs(expected).max())
    assert "fftconv" not in calls


@pytest.mark.parametrize("taps", [40, 5], ids=["transform", "direct"])
@pytest.mark.parametrize("gate", ["v", "q"])
def test_a_gate_in_another_dtype_is_not_read_as_if_it_were_in_u_s(engine, gate, taps):  # noqa: F811
    """A kernel would see other numbers, and those behind the end."""
    found, _, calls = engine
    arrays, g, gelu = long_convolution.case(40, taps, "v q", batch=2)
    arrays[gate] = arrays[gate].astype(np.float16)
    expected = long_convolution.definition(arrays, g, gelu)
    g_, *given = tensors(found, g, *arrays.values())

    def loss(u, k, v, q):
        return (em.ops.fftconv(u, k, v=v, q=q) * g_).sum()

    _, grads = em.value_and_grad(loss, (0, 1, 2, 3))(*given)
    for (name, x), d in zip(arrays.items(), grads):
        assert d.numpy().dtype == x.dtype
        np.testing.assert_allclose(d.numpy(), expected[name], atol=(1e-3 if name == gate else 1e-5) * np.abs(expected[name]).max())
    assert not calls


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_stays_in_its_channel_of_a_selective_scan(engine, value):  # noqa: F811
    found, _, calls = engine
    given = test_selective_scan.case(2, 40, 5, 3)
    broken = [a.copy() for a in given]
    broken[0][1, 7, 2] = value

    def both(arrays):
        outs = em.ops.selective_scan(*tensors(found, *arrays))
        dx = em.grad(lambda x, *rest: em.ops.selective_scan(x, *rest)[0].sum())(*tensors(found, *arrays))
        return [t.numpy() for t in (*outs, dx)]

    clean, got = both(given), both(broken)
    assert not np.isfinite(got[0][1, 7:, 2]).any() and "selective_scan" in calls
    others = np.ones((2, 5), bool)
    others[1, 2] = False
    for a, b in zip(got, clean):
        by_channel = (lambda t: t) if a.shape == given[-1].shape else (lambda t: t.swapaxes(1, 2))
        np.testing.assert_array_equal(by_channel(a)[others], by_channel(b)[others])
    np.testing.assert_array_equal(got[0][1, :7], clean[0][1, :7])


@pytest.mark.parametrize("name, dtype", [("combine", ml_dtypes.bfloat16), ("combine", np.float32), ("gather", np.float32),
                                         ("swiglu", np.float32)])
def test_what_is_not_finite_stays_in_its_row_of_an_expert_layer(machine, name, dtype):
    """moe_combine, moe_gather, moe_swiglu: an infinite row and one with a NaN reach the tokens that own them and no others."""
    rng = np.random.default_rng(5)
    rows = rng.standard_normal((8, 34)).astype(dtype)
    broken = rows.copy()
    broken[3, 4], broken[6, 33] = np.nan, np.inf
    order = np.array([[0, 3], [1, 2], [4, 5], [6, 7]], np.int32)     # token 0 owns row 3, token 3 row 6
    weights = np.abs(rng.standard_normal((4, 2))).astype(np.float32)

    def launch(x):
        kernel, more = machine.kernels.KERNELS[f"moe_{name}"], []
        if name == "combine":
            more = [order, weights]
        if name == "gather":
            inverse = order.reshape(-1, 1)                           # every token goes to one place
            more = [np.arange(8, dtype=np.int32), np.argsort(inverse[:, 0]).astype(np.int32).reshape(-1, 1)]
        out = machine.numpy(kernel(machine.array(x), *map(machine.array, more)))
        return out.astype(np.float32)

    clean, got = launch(rows), launch(broken)
    touched = {"combine": [0, 3]}.get(name, [3, 6])
    for row in range(len(clean)):
        assert np.isfinite(got[row]).all() == (row not in touched), row
    kept = [row for row in range(len(clean)) if row not in touched]
    np.testing.assert_array_equal(got[kept], clean[kept])
    if name != "swiglu":                                             # and in the row only the column
        assert (~np.isfinite(got[touched])).sum() == 2
