"""Ops inside `em.compile`, values and gradients, against the same calls run at once: the first row of each op.

Many in one function, since each compilation costs more than what is compiled.
"""

import numpy as np
import pytest

import ember_ml as em
from ember_ml.ops import REGISTRY
from ember_ml.parity.cases import CASES
from ember_ml.parity.ops import EPS, TOLERANCE, cotangent
from tests.conftest import require_engine

FIRST = [c for i, c in enumerate(CASES) if c.name not in {d.name for d in CASES[:i]}]
PARTS = 8
_TWICE = "its own gradient computes it again, and MLX 0.32 loses a split that a compiled function holds twice"
_VALUES = "goes through NumPy, and says so"
#: what an engine cannot compile, and why
LACKS = {"mlx": {"linear_scan_grad": _TWICE, "selective_scan_rows": _TWICE, "nonzero_places": _VALUES, "unique_parts": _VALUES,
                 "searchsorted_rows": _VALUES}}


def value_and_gradients(case, *args):
    """The result, and where there are some the gradients of the weighted sum."""
    if not case.grads or not all(case.inputs[i].size for i in case.grads):
        return [case.call(*args)]
    c = cotangent(case, case.dtypes[0])
    c = em.tensor(c.astype("complex64" if c.dtype.kind == "c" else "float32"))

    def loss(*args):
        y = case.call(*args)
        return ((y * c.conj()).real().sum() if y.dtype.kind == "complex" else (y * c).sum()), y
    (_, y), grads = em.value_and_grad(loss, case.grads, has_aux=True)(*args)
    return [y, *grads]


def check(cases):
    given = [[em.tensor(a) for a in case.arrays(case.dtypes[0])] for case in cases]

    def fn(given):
        return [value_and_gradients(case, *args) for case, args in zip(cases, given)]

    for compiled, eager, case in zip(em.compile(fn)(given), fn(given), cases, strict=True):
        for got, want in zip(compiled, eager, strict=True):
            got, want = got.numpy(), want.numpy()
            assert got.shape == want.shape and got.dtype == want.dtype, case.id
            allowed = EPS.get(got.dtype.name, 0.0) * TOLERANCE.get(got.dtype.name, 0.0) * np.abs(want).max(initial=0)
            assert np.abs(got - want).max(initial=0) <= allowed if allowed else np.array_equal(got, want), case.id


def test_torch_s_graph(monkeypatch):
    """The graph that torch.compile is given, run as it is: functions of torch's own and of ours, of which all else is made."""
    require_engine("torch")
    import torch

    monkeypatch.setattr(torch, "compile", lambda graph, **kw: graph)
    with em.using("torch:cpu") as backend:
        check([c for c in FIRST if c.name in REGISTRY and REGISTRY[c.name].path(backend, "cpu") == "native"])


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("engine", ["torch:cpu", "mlx"])
def test_generated_code(part, engine):
    """With the code that the engine makes of it; on a CPU each takes a C++ compiler some seconds."""
    require_engine(engine.partition(":")[0])
    with em.using(engine):
        check([c for c in FIRST[part::PARTS] if c.name not in LACKS.get(engine, {})])
