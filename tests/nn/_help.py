"""What the tests of nn share: reference numbers, float64 modules, comparisons relative to the largest element."""

import numpy as np

import ember_ml as em


def numbers(seed: int, *shape) -> np.ndarray:
    """float64 normal numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def put(array, dtype="float32", engine=None) -> em.EmberTensor:
    """An array as a tensor of the current (or that) engine."""
    return em.tensor(np.asarray(array), dtype=dtype, device=engine)


def get(x: em.EmberTensor) -> np.ndarray:
    """A tensor as a float64 array."""
    return np.asarray(x.numpy(), np.float64)


def tensors64(module) -> dict:
    """The module's tensors as float64 arrays, by name."""
    return {name: get(t) for name, t in module.tensors().items()}


def cast(tree, dtype):
    """The floating-point tensors of a tree in another dtype."""
    return em.tree.map(lambda t: t.astype(dtype) if t.dtype.kind == "float" else t, tree)


def close(got, want, tolerance: float, what: str = ""):
    """got and want (tensors or arrays) agree to `tolerance` times the largest element of want (at least 1e-3)."""
    got, want = (get(x) if isinstance(x, em.EmberTensor) else np.asarray(x, np.float64) for x in (got, want))
    assert got.shape == want.shape, f"{what}: shape {got.shape}, expected {want.shape}"
    assert np.isfinite(got).all(), f"{what}: not finite"
    error = np.abs(got - want).max(initial=0.0) / max(np.abs(want).max(initial=0.0), 1e-3)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def same_trees(got, want, tolerance: float, what: str = ""):
    """All leaves of two trees of one form agree, as in `close`."""
    got, want = em.tree.named(got), em.tree.named(want)
    assert list(got) == list(want), f"{what}: {list(got)}, expected {list(want)}"
    for name in want:
        close(got[name], want[name], tolerance, f"{what} {name}")
