"""Kernels on the hardware at hand: each one, in each of its dtypes, against its op's composite in float64 on NumPy."""

from __future__ import annotations

import numpy as np

from ember_ml import backend as engines
from ember_ml.kernels.selfcheck import TOLERANCE
from ember_ml.kernels.spec import Form
from ember_ml.ops import REGISTRY
from ember_ml.ops.kernel import body, sample_call
from ember_ml.parity.compare import Row, row
from ember_ml.tensor.common import dtypes as dt


def compare_kernels(backend, device: str) -> list[Row]:
    """A row per kernel, dtype and output for one device of an engine; none if it launches no kernels there.

    Inputs are the samples of the spec's forms, in the first dtype of all, in others of the first. A form that does not compile or launch gives
    one failed row with the error in place of a number.
    """
    launchers, where, rows = backend.launchers(device), f"{backend.name}:{device}", []
    for op in REGISTRY.values():
        if op.kernel is None or op.kernel.name not in launchers:
            continue
        for dtype in op.kernel.dtypes:
            for form in op.kernel.forms if dtype == op.kernel.dtypes[0] else op.kernel.forms[:1]:
                try:
                    rows += _rows(op, launchers[op.kernel.name], backend, device, dtype, form, where)
                except Exception as e:  # compilers and drivers raise what they like; the other kernels are still compared
                    first = (str(e).strip().splitlines() or [""])[0]
                    rows.append({"case": op.kernel.name, "engine": where, "dtype": dtype, "quantity": _named("run", form),
                                 "error": f"{type(e).__name__}: {first}", "tolerance": TOLERANCE[dtype], "pass": False})
    return rows


def _named(what: str, form: Form) -> str:
    return ", ".join(filter(None, (what, str(form))))


def _rows(op, launcher, backend, device, dtype, form, where) -> list[Row]:
    numpy, kinds = engines.get("numpy"), [dt.dtype(kind) for kind in op.kernel.kinds(dtype)]
    given, static = sample_call(op, numpy, None, dtype, op.kernel.sample(form))
    wide = [numpy.astype(x, dt.float64) if x is not None and kind.kind == "float" else x for x, kind in zip(given, kinds)]
    got = launcher(*(None if x is None else backend.from_numpy(x, kind, device) for x, kind in zip(given, kinds)), **static)
    expected = body(op, numpy, wide, static)
    pairs = zip(*(x if isinstance(x, tuple) else (x,) for x in (got, expected)))
    return [row(op.kernel.name, where, _named(f"output {i}", form), np.asarray(backend.to_numpy(a), np.float64), b, TOLERANCE[dtype], dtype)
            for i, (a, b) in enumerate(pairs) if a is not None]
