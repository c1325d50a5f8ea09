"""Factorizations, search and sets on MLX: its own on the CPU, and what it lacks through NumPy (see `host`).

MLX factorizes on the CPU only (memory is shared), real matrices and, in eigh and svd, complex ones. Results whose
shape depends on values have no form on a lazy engine.
"""

from __future__ import annotations

import mlx.core as mx

from ember_mlx.host import through_numpy

def _real(fn, name):
    """MLX's function for real matrices, NumPy's for complex ones."""
    host = through_numpy(name)
    return lambda *args, **kw: host(*args, **kw) if args[0].dtype == mx.complex64 else fn(*args, **kw)


def _qr(x, complete=False):
    """MLX has the reduced form only."""
    return through_numpy("qr_parts")(x, complete=True) if complete else tuple(mx.linalg.qr(x, stream=mx.cpu))


def _solve(a, b):
    """MLX broadcasts no batches here."""
    batch = mx.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return mx.linalg.solve(*(mx.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (a, b)), stream=mx.cpu)


def _svd(x, full=True):
    u, s, vh = mx.linalg.svd(x, stream=mx.cpu)
    k = s.shape[-1]
    return (u, s, vh) if full else (u[..., :k], s, vh[..., :k, :])


#: ops that go through NumPy whatever their input is; those above do for complex matrices
HOST = frozenset(("nonzero_places", "unique_parts", "searchsorted_rows"))

TABLE = {
    "cholesky_lower": _real(lambda x: mx.linalg.cholesky(x, stream=mx.cpu), "cholesky_lower"),
    "inv": _real(lambda x: mx.linalg.inv(x, stream=mx.cpu), "inv"),
    "det": _real(lambda x: mx.linalg.det(x, stream=mx.cpu), "det"),
    "slogdet_parts": _real(lambda x: tuple(mx.linalg.slogdet(x, stream=mx.cpu)), "slogdet_parts"),
    "solve_rows": _real(_solve, "solve_rows"),
    "eigh_parts": lambda x: tuple(mx.linalg.eigh(x, stream=mx.cpu)),
    "eig_parts": _real(lambda x: tuple(mx.linalg.eig(x, stream=mx.cpu)), "eig_parts"),   # MLX 0.32 conjugates the vectors of complex ones
    "qr_parts": _real(_qr, "qr_parts"), "svd_parts": _svd,
    **{name: through_numpy(name) for name in HOST},
}
