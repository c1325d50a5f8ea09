"""Factorizations, search and sets on torch."""

from __future__ import annotations

import torch

from ember_ml.backend.numpy import backend as reference


def _unique(x):
    """torch.unique gives no first places, and knows no complex numbers: those go through NumPy."""
    if x.is_complex():
        found = reference.table["unique_parts"](x.detach().resolve_conj().cpu().numpy())
        return tuple(torch.from_numpy(part).to(x.device) for part in found)
    values, inverse, counts = torch.unique(x, return_inverse=True, return_counts=True)
    places = torch.arange(x.numel(), device=x.device)
    first = torch.full(values.shape, x.numel(), device=x.device).scatter_reduce(0, inverse.reshape(-1), places, "amin")
    return values, first.int(), inverse.int(), counts.int()


def _svd(x, full=True):
    return tuple(torch.linalg.svd(x, full_matrices=full))


TABLE = {
    "cholesky_lower": torch.linalg.cholesky, "inv": torch.linalg.inv, "det": torch.linalg.det, "solve_rows": torch.linalg.solve,
    "slogdet_parts": lambda x: tuple(torch.linalg.slogdet(x)), "eigh_parts": lambda x: tuple(torch.linalg.eigh(x)),
    "eig_parts": lambda x: tuple(torch.linalg.eig(x)),
    "qr_parts": lambda x, complete=False: tuple(torch.linalg.qr(x, mode="complete" if complete else "reduced")),
    "svd_parts": _svd, "svdvals": torch.linalg.svdvals,
    "nonzero_places": lambda x: tuple(i.int() for i in torch.nonzero(x, as_tuple=True)),
    "unique_parts": _unique,
    "searchsorted_rows": lambda x, values, right=False: torch.searchsorted(x.contiguous(), values.contiguous(), right=right, out_int32=True),
}
