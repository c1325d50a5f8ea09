"""The router by softmax: both twins against float64 NumPy, with logits that are not finite and ties; gradients by differences."""

import numpy as np
import pytest

SIZES = [(1, 1, 1), (3, 4, 2), (9, 33, 3), (20, 8, 2), (2, 130, 7)]


def case(rows, width, k, broken=True):
    rng = np.random.default_rng([rows, width, k])
    z = (rng.integers(-6, 7, size=(rows, width)) / 2.0).astype(np.float32)            # ties in almost every row
    if broken:
        z.reshape(-1)[rng.random(z.size) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    ids = np.argsort(rng.random((rows, width)), axis=1)[:, :k].astype(np.int32)
    return z, (rng.integers(-2, 3, size=width) / 8.0).astype(np.float32), ids


def scores(z):
    there = np.isfinite(z)
    wide = np.where(there, z, 0.0).astype(np.float64)
    e = np.where(there, np.exp(wide - wide.max()), 0.0)
    return e / np.maximum(e.sum(-1, keepdims=True), 1e-300)


def weights(z, ids, normalize, eps, scale):
    w = np.take_along_axis(scores(z), ids, -1)
    return scale * (w / (w.sum(-1, keepdims=True) + eps) if normalize else w)


def run(machine, name, *given, **static):
    out = machine.kernels.KERNELS[name](*map(machine.array, given), **static)
    return [machine.numpy(x) for x in out] if isinstance(out, tuple) else machine.numpy(out)


@pytest.mark.parametrize("rows, width, k", SIZES)
def test_choice(machine, rows, width, k):
    z, bias, _ = case(rows, width, k)
    ids = run(machine, "moe_choose", z, bias, k=k)
    value = np.where(np.isfinite(z), scores(z) + bias, -1e30)
    chosen, best = np.take_along_axis(value, ids, 1), -np.sort(-value, axis=1)[:, :k]
    assert ids.dtype == np.int32 and all(len(set(row)) == k for row in ids.tolist())
    np.testing.assert_allclose(chosen, best, rtol=1e-6, atol=1e-7)
    equal = np.isclose(chosen[:, 1:], chosen[:, :-1], rtol=0, atol=0) & (z[np.arange(rows)[:, None], ids[:, 1:]] ==
                                                                     z[np.arange(rows)[:, None], ids[:, :-1]])
    assert (ids[:, 1:] > ids[:, :-1])[equal].all()                                   # ties to the lower index


def test_a_row_without_finite_logits_chooses_the_first(machine):
    z = np.full((1, 5), np.nan, np.float32)
    assert run(machine, "moe_choose", z, np.zeros(5, np.float32), k=2).tolist() == [[0, 1]]
    w, s = run(machine, "moe_weigh", z, np.array([[0, 1]], np.int32), normalize=True, eps=1e-20, scale=1.0)
    assert not w.any() and not s.any()


@pytest.mark.parametrize("normalize, eps, scale", [(True, 1e-20, 2.5), (False, 0.0, 1.0), (True, 0.1, 1.0)])
@pytest.mark.parametrize("rows, width, k", SIZES)
def test_weights(machine, rows, width, k, normalize, eps, scale):
    z, _, ids = case(rows, width, k)
    z[:, 0] = 1.0                                                                    # a finite logit in every row
    w, s = run(machine, "moe_weigh", z, ids, normalize=normalize, eps=eps, scale=scale)
    np.testing.assert_allclose(s, scores(z), rtol=2e-6, atol=1e-9)
    usable = np.take_along_axis(scores(z), ids, -1).sum(-1) > 1e-6
    np.testing.assert_allclose(w[usable], weights(z, ids, normalize, eps, scale)[usable], rtol=5e-6, atol=1e-7)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("rows, width, k", SIZES)
def test_gradient(machine, rows, width, k, normalize):
    """Of sum(g w) + sum(h s) along a direction, against central differences in float64."""
    z, _, ids = case(rows, width, k, broken=False)
    rng, how = np.random.default_rng(width), {"normalize": normalize, "eps": 1e-3, "scale": 1.5}
    g, h, along = (rng.standard_normal(shape) for shape in (ids.shape, z.shape, z.shape))
    s = scores(z).astype(np.float32)
    d_z = run(machine, "moe_weigh_grad", g.astype(np.float32), h.astype(np.float32), ids, s, **how)

    def value(z):
        return (g * weights(z, ids, **how)).sum() + (h * scores(z)).sum()
    wide, step = z.astype(np.float64), 1e-5
    slope = (value(wide + step * along) - value(wide - step * along)) / (2 * step)
    assert (d_z * along).sum() == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_indices_out_of_range_read_nothing_foreign(machine):
    z, _, _ = case(2, 4, 2, broken=False)
    ids = np.array([[-1, 4], [2 ** 31 - 1, -2 ** 31]], np.int32)
    w, s = run(machine, "moe_weigh", z, ids, normalize=False, eps=0.0, scale=1.0)
    np.testing.assert_allclose(w, np.take_along_axis(s, np.clip(ids, 0, 3), -1), rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_do(machine, rows):
    z, ids = np.zeros((rows, 4), np.float32), np.zeros((rows, 0), np.int32)
    how = {"normalize": True, "eps": 1e-20, "scale": 1.0}
    assert run(machine, "moe_choose", z, np.zeros(4, np.float32), k=0).shape == ids.shape
    w, s = run(machine, "moe_weigh", z, ids, **how)
    assert w.shape == ids.shape and s.shape == z.shape
    assert run(machine, "moe_weigh_grad", w, s, ids, s, **how).shape == z.shape
