"""Factorizations of matrices on an array module with NumPy's interface."""

from __future__ import annotations


def build(xp) -> dict:
    """op name -> function. NumPy and CuPy call LAPACK and cuSOLVER, which know float32, float64 and the complex of both."""
    la = xp.linalg

    def eig(x):
        wide = "complex128" if x.dtype.itemsize == (16 if x.dtype.kind == "c" else 8) else "complex64"
        return tuple(part.astype(wide) for part in la.eig(x))     # real where all eigenvalues happen to be

    return {
        "cholesky_lower": la.cholesky, "inv": la.inv, "det": la.det, "solve_rows": la.solve,
        "slogdet_parts": lambda x: tuple(la.slogdet(x)), "eigh_parts": lambda x: tuple(la.eigh(x)), "eig_parts": eig,
        "qr_parts": lambda x, complete=False: tuple(la.qr(x, mode="complete" if complete else "reduced")),
        "svd_parts": lambda x, full=True: tuple(la.svd(x, full_matrices=full)),
        "svdvals": lambda x: la.svd(x, compute_uv=False),
    }
