"""Optimisers against torch.optim in float64, clipping against its formula."""

import math

import numpy as np
import pytest

import ember_ml as em
from ember_ml.nn.optimizers import (
    OPTIMIZERS, SGD, Adam, AdamConfig, AdamW, AdamWConfig, Schedule, SGDConfig, clip_by_global_norm,
)
from tests.nn._help import close, get, numbers, put

torch = pytest.importorskip("torch")
STEPS = 10
START = {"matrix": numbers(0, 4, 3), "bias": numbers(1, 5)}
GRADS = [{name: numbers(10 * i + j, *x.shape) * 3.0 for j, (name, x) in enumerate(START.items())} for i in range(STEPS)]


def peer(make) -> dict[str, np.ndarray]:
    """The parameters after all steps of a torch optimiser, in float64."""
    params = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in START.items()}
    optimizer = make(params)
    for grads in GRADS:
        for name, p in params.items():
            p.grad = torch.tensor(grads[name])
        optimizer.step()
    return {name: p.detach().numpy() for name, p in params.items()}


def ours(optimizer, dtype="float32"):
    params = {name: put(x, dtype) for name, x in START.items()}
    state = optimizer.init(params)
    for grads in GRADS:
        params, state = optimizer.update(params, {name: put(g, dtype) for name, g in grads.items()}, state)
    assert state["step"].item() == STEPS and all(p.dtype is em.tensor(0, dtype=dtype).dtype for p in params.values())
    return params


def decay_matrices(weight_decay):
    """AdamW decays matrices alone, as is the custom; torch does so by parameter groups."""
    return lambda p: torch.optim.AdamW([{"params": [p["matrix"]], "weight_decay": weight_decay},
                                        {"params": [p["bias"]], "weight_decay": 0.0}], lr=0.01, betas=(0.8, 0.99))


CASES = {
    "sgd": (SGD(SGDConfig(0.1)), lambda p: torch.optim.SGD(p.values(), lr=0.1)),
    "sgd, momentum": (SGD(SGDConfig(0.1, momentum=0.9)), lambda p: torch.optim.SGD(p.values(), lr=0.1, momentum=0.9)),
    "sgd, nesterov": (SGD(SGDConfig(0.1, momentum=0.9, nesterov=True)),
                      lambda p: torch.optim.SGD(p.values(), lr=0.1, momentum=0.9, nesterov=True)),
    "sgd, weight decay": (SGD(SGDConfig(0.1, momentum=0.5, weight_decay=0.3)),
                          lambda p: torch.optim.SGD(p.values(), lr=0.1, momentum=0.5, weight_decay=0.3)),
    "adam": (Adam(AdamConfig(0.01)), lambda p: torch.optim.Adam(p.values(), lr=0.01)),
    "adam, betas and eps": (Adam(AdamConfig(0.1, betas=(0.5, 0.9), eps=0.3)),
                            lambda p: torch.optim.Adam(p.values(), lr=0.1, betas=(0.5, 0.9), eps=0.3)),
    "adam, beta1 = 0": (Adam(AdamConfig(0.01, betas=(0.0, 0.999))),
                        lambda p: torch.optim.Adam(p.values(), lr=0.01, betas=(0.0, 0.999))),
    "adamw": (AdamW(AdamWConfig(0.01, betas=(0.8, 0.99), weight_decay=0.2)), decay_matrices(0.2)),
}


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_like_torch(name, backend):
    optimizer, make = CASES[name]
    for param, want in peer(make).items():
        moved = np.abs(want - START[param]).max()
        assert moved > 1e-3
        close(ours(optimizer)[param], want, 1e-6, param)


@pytest.mark.parametrize("engine", ["numpy", "torch"])
@pytest.mark.parametrize("name", CASES)
def test_ten_steps_in_float64(name, engine):
    """Rates and bias corrections are float32 scalars, so float64 parameters follow torch to their precision."""
    optimizer, make = CASES[name]
    with em.using(engine):
        got = ours(optimizer, "float64")
    for param, want in peer(make).items():
        moved = np.abs(want - START[param]).max()
        assert np.abs(get(got[param]) - want).max() <= 5e-7 * moved, param


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW])
def test_update_is_pure(cls, backend):
    optimizer = cls(cls.Config(0.1, momentum=0.9) if cls is SGD else cls.Config(0.1))
    params = {name: put(x) for name, x in START.items()}
    grads = {name: put(g) for name, g in GRADS[0].items()}
    state = optimizer.init(params)
    before = [t.tolist() for t in em.tree.tensors((params, grads, state))]
    first, second = optimizer.update(params, grads, state), optimizer.update(params, grads, state)
    assert [t.tolist() for t in em.tree.tensors((params, grads, state))] == before
    assert [t.tolist() for t in em.tree.tensors(first)] == [t.tolist() for t in em.tree.tensors(second)]


def test_a_schedule_sets_the_rate_of_each_update(backend):
    schedule = Schedule(peak=0.5, total=4, warmup=2, floor=0.1, shape="linear")
    optimizer = SGD(SGDConfig(schedule))
    params, moves = {"x": em.zeros((1,))}, []
    state = optimizer.init(params)
    for _ in range(5):
        before = params["x"].item()
        params, state = optimizer.update(params, {"x": em.ones((1,))}, state)
        moves.append(before - params["x"].item())
    np.testing.assert_allclose(moves, [0.25, 0.5, 0.5, 0.3, 0.1], rtol=1e-6)


def test_gradients_must_have_the_parameters_names(backend):
    for cls in OPTIMIZERS.values():
        optimizer = cls(cls.Config())
        params = {"x": em.ones((2,))}
        with pytest.raises(KeyError, match="x"):
            optimizer.update(params, {"y": em.ones((2,))}, optimizer.init(params))


def test_an_infinite_limit_leaves_the_gradients_alone(backend):
    """Also where their squares overflow."""
    grads = {"a": put(np.array([1e30, -2.0])), "b": put(numbers(1, 6))}
    with np.errstate(over="ignore", invalid="ignore"):
        clipped, norm = clip_by_global_norm(grads, math.inf)
    assert clipped is grads and norm.item() == math.inf


@pytest.mark.parametrize("limit", [1.0, 1e3])
def test_clip_by_global_norm(limit, backend):
    grads = {"a": numbers(0, 3, 4), "b": numbers(1, 6)}
    norm = np.sqrt(sum((g ** 2).sum() for g in grads.values()))
    clipped, before = clip_by_global_norm({k: put(g) for k, g in grads.items()}, limit)
    close(before, norm, 1e-6)
    for name, g in grads.items():
        close(clipped[name], g * min(1.0, limit / norm), 1e-6, name)


def test_clip_counts_complex_numbers_whole(backend):
    clipped, before = clip_by_global_norm({"z": em.tensor([3 + 4j]), "x": em.tensor([12.0])}, 6.5)
    assert before.item() == pytest.approx(13.0, rel=1e-6)
    assert clipped["z"].item() == pytest.approx(1.5 + 2j, rel=1e-6)


def test_clip_leaves_zero_gradients_and_dtypes(backend):
    clipped, before = clip_by_global_norm({"a": em.zeros((3,)), "b": em.zeros((2,), dtype="float16")}, 1.0)
    assert before.item() == 0.0 and clipped["a"].tolist() == [0.0] * 3 and clipped["b"].dtype is em.float16


@pytest.mark.parametrize("engine", ["numpy", "torch", "mlx"])
def test_strided_gradients_and_parameters_are_read_right(engine):
    """A transposed gradient is the same gradient: fused kernels that read memory in order must not be fooled."""
    rng = np.random.default_rng(0)
    p, g = (rng.normal(size=(4, 6)).astype(np.float32) for _ in range(2))
    with em.using(engine):
        optimizer = AdamW(AdamWConfig(rate=0.1, weight_decay=0.1))
        straight = {"w": em.tensor(p)}, {"w": em.tensor(g)}
        turned = {"w": em.tensor(p.T.copy()).T}, {"w": em.tensor(g.T.copy()).T}
        mixed = {"w": em.tensor(p)}, {"w": em.tensor(g.T.copy()).T}
        results = [optimizer.update(params, grads, optimizer.init(params))[0]["w"].numpy()
                   for params, grads in (straight, turned, mixed)]
    for got in results:                                      # the first step of Adam is the sign of the gradient
        np.testing.assert_allclose(got, p - 0.1 * np.sign(g) - 0.01 * p, atol=1e-5)
