"""Values and gradients of a recurrence against torch's autograd of the plain loop, in float64."""

import numpy as np
import torch

import ember_ml as em

#: what an engine computes in here, and how far from float64 it may be, relative to the largest number of a tensor
PRECISION = {"numpy": ("float64", 1e-11), "torch": ("float64", 1e-11), "mlx": ("float32", 2e-5)}


def weighted(outputs, cotangents):
    total = None
    for y, c in zip(outputs, cotangents):
        term = (y * c.conj()).real().sum() if np.iscomplexobj(c.numpy()) else (y * c).sum()
        total = term if total is None else total + term
    return total


def loop_results(loop, arrays, watched, seed=0):
    """(outputs, cotangents, gradients) of `loop(**torch tensors) -> tuple of tensors`, in float64."""
    rng = np.random.default_rng(seed)
    leaves = {n: torch.tensor(a, requires_grad=n in watched) for n, a in arrays.items()}
    outputs = loop(**leaves)
    cots = [rng.standard_normal(tuple(y.shape)) + (1j * rng.standard_normal(tuple(y.shape)) if y.is_complex() else 0.0)
            for y in outputs]
    loss = sum((y * torch.tensor(c).conj()).real.sum() if y.is_complex() else (y * torch.tensor(c)).sum()
               for y, c in zip(outputs, cots))
    grads = torch.autograd.grad(loss, [leaves[n] for n in watched], materialize_grads=True)
    return [y.detach().numpy() for y in outputs], cots, [g.numpy() for g in grads]


def near(got, want, relative, what):
    error = np.abs(got.numpy() - want).max(initial=0.0)
    assert got.shape == want.shape, what
    assert error <= relative * max(np.abs(want).max(initial=0.0), 1e-3), f"{what}: error {error:.2e}"


def check(engine, ours, loop, arrays, watched=None, slack=1.0, modes=("auto", "tape"), compiled=False):
    """`ours(**ember tensors) -> tuple` equals `loop` on one engine, values and gradients, native and taped."""
    watched = list(arrays) if watched is None else watched
    outputs, cots, grads = loop_results(loop, arrays, watched)
    dtype, relative = PRECISION[engine]
    narrow = {"float64": {"f": "float64", "c": "complex128"}, "float32": {"f": "float32", "c": "complex64"}}[dtype]
    relative *= slack

    def tensor(a):
        return em.tensor(a.astype(narrow[a.dtype.kind]) if a.dtype.kind in narrow else a)

    given, c = {n: tensor(a) for n, a in arrays.items()}, [tensor(np.asarray(x)) for x in cots]
    for i, (got, want) in enumerate(zip(ours(**given), outputs)):
        near(got, want, relative, f"output {i}")

    def loss(*values):
        return weighted(ours(**{**given, **dict(zip(watched, values))}), c)

    for mode in modes:
        gradient = em.grad(loss, tuple(range(len(watched))), mode=mode)
        gradient = em.compile(gradient) if compiled else gradient
        for n, got, want in zip(watched, gradient(*[given[n] for n in watched]), grads):
            near(got, want, 2 * relative, f"gradient of {n} ({mode})")


def check_slopes(fn, arrays, watched=None, seed=0):
    """The tape's gradients of `fn(**tensors) -> tuple` on NumPy in float64 are the slopes of its own values."""
    rng = np.random.default_rng(seed)
    watched = list(arrays) if watched is None else watched
    with em.using("numpy"):
        cots = [em.tensor(rng.standard_normal(y.shape)) for y in fn(**{n: em.tensor(a) for n, a in arrays.items()})]

        def loss(*values):
            return weighted(fn(**{**{n: em.tensor(a) for n, a in arrays.items()}, **dict(zip(watched, values))}), cots)

        given = [em.tensor(arrays[n]) for n in watched]
        for i, (n, g) in enumerate(zip(watched, em.grad(loss, tuple(range(len(watched))))(*given))):
            direction, h = rng.standard_normal(g.shape), 1e-6
            up, down = (float(loss(*[x + s * h * em.tensor(direction) if j == i else x for j, x in enumerate(given)]).numpy())
                        for s in (1, -1))
            slope, got = (up - down) / (2 * h), (g.numpy() * direction).sum()
            assert abs(got - slope) <= 1e-6 * max(abs(slope), 1.0), f"{n}: {got} is not the slope {slope}"


def mlx_peak(fn, arrays) -> tuple[int, int]:
    """(bytes at the peak of one gradient of the sum of `fn(**tensors)`, bytes of its inputs, output and their gradients), on MLX."""
    import mlx.core as mx

    with em.using("mlx"):
        given = [em.tensor(a.astype("float32")) for a in arrays.values()]

        def loss(*values):
            return (fn(**dict(zip(arrays, values))) ** 2).sum()

        gradient = em.grad(loss, tuple(range(len(given))))
        out = fn(**dict(zip(arrays, given)))
        mx.eval([x.data for x in given], out.data)
        io = 2 * (sum(x.data.nbytes for x in given) + out.data.nbytes)
        del out
        mx.clear_cache()
        mx.reset_peak_memory()
        mx.eval([g.data for g in gradient(*given)])
        return mx.get_peak_memory(), io
