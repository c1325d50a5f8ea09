"""Matrix products, factorizations, search and sets on torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ember_ml.backend.numpy import backend as reference


def matmul(x, y):
    """torch.matmul; for integers on a GPU, where cuBLAS has none, the sum of products."""
    if x.is_floating_point() or x.is_complex() or not x.is_cuda:
        return torch.matmul(x, y)
    return integer_matmul(x, y)


def unit_inverse(a):
    """By substitution, in float32 at least: torch's solver has no 16-bit form."""
    wide = a.to(torch.promote_types(a.dtype, torch.float32))
    one = torch.eye(a.shape[-1], dtype=wide.dtype, device=a.device)
    return torch.linalg.solve_triangular(one - wide, one.expand(a.shape), upper=False, unitriangular=True).to(a.dtype)


def linear(x, weight, bias=None):
    """torch's own; for integers, which it has not everywhere, by `matmul`."""
    if x.is_floating_point():
        return F.linear(x, weight, bias)
    y = matmul(x, weight.mT)
    return y if bias is None else y + bias


def integer_matmul(x, y):
    row, column = x.dim() == 1, y.dim() == 1
    x, y = x[None] if row else x, y[:, None] if column else y
    out = (x[..., :, :, None] * y[..., None, :, :]).sum(-2, dtype=x.dtype)
    out = out.squeeze(-2) if row else out
    return out.squeeze(-1) if column else out


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
    "matmul": matmul, "linear_rows": linear, "unit_inverse": unit_inverse,
    "cholesky_lower": torch.linalg.cholesky, "inv": torch.linalg.inv, "det": torch.linalg.det, "solve_rows": torch.linalg.solve,
    "slogdet_parts": lambda x: tuple(torch.linalg.slogdet(x)), "eigh_parts": lambda x: tuple(torch.linalg.eigh(x)),
    "eig_parts": lambda x: tuple(torch.linalg.eig(x)),
    "qr_parts": lambda x, complete=False: tuple(torch.linalg.qr(x, mode="complete" if complete else "reduced")),
    "svd_parts": _svd, "svdvals": torch.linalg.svdvals,
    "nonzero_places": lambda x: tuple(i.int() for i in torch.nonzero(x, as_tuple=True)),
    "unique_parts": _unique,
    "searchsorted_rows": lambda x, values, right=False: torch.searchsorted(x.contiguous(), values.contiguous(), right=right, out_int32=True),
}
