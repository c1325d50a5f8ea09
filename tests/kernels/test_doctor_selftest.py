"""`ember doctor --selftest` where kernels can run: right ones pass with their errors, wrong and broken ones fail the command."""

import importlib
import json
import math
from functools import partial

import pytest

from ember_ml import backend as engines
from ember_ml.cli import doctor
from ember_ml.cli.output import Output
from ember_ml.kernels import DTYPES, selfcheck
from ember_ml.ops import REGISTRY
from ember_ml.parity import compare_kernels
from ember_ml.parity import kernels as parity_kernels
from tests.kernels.conftest import on_the_stand_in

KERNELS = {op.kernel.name: op.kernel for op in REGISTRY.values() if op.kernel is not None}


@pytest.fixture(params=["mlx", "cupy", "torch"])
def engine(request, resolved_anew, monkeypatch):
    """(engine, device, its launchers by name): MLX and CuPy on their stand-ins, torch's CPU in the part of a GPU."""
    monkeypatch.setattr(selfcheck, "_outcomes", {})
    for name in engines.KNOWN:                             # remembered from here on, and tests hide engines and put others in their place
        engines.installed(name)
    machine = request.getfixturevalue("metal" if request.param == "mlx" else "cuda")
    if request.param == "cupy":
        monkeypatch.setitem(engines._loaded, "cupy", importlib.import_module("ember_ml.backend.cupy").backend)
    if request.param == "torch":
        from ember_ml.backend.torch import cuda as torch_cuda  # not by those who only collect the tests
        table = {name: partial(torch_cuda._launch, kernel) for name, kernel in machine.kernels.KERNELS.items()}
        on_the_stand_in(monkeypatch)
        monkeypatch.setattr(type(engines.get("torch")), "launchers", lambda self, device: table)
    found = engines.get(request.param)
    device = found.devices()[0]
    return found, device, found.launchers(device)


def test_right_kernels_pass_in_every_dtype(engine):
    found, device, launchers = engine
    rows = compare_kernels(found, device)
    assert {r["case"] for r in rows} == KERNELS.keys() & launchers.keys()
    for name in launchers.keys() & KERNELS.keys():
        assert {r["dtype"] for r in rows if r["case"] == name} == set(KERNELS[name].dtypes)
    wrong = [r for r in rows if not r["pass"]]
    assert not wrong
    assert all(r["engine"] == f"{found.name}:{device}" and 0 <= r["error"] <= r["tolerance"] for r in rows)


@pytest.mark.parametrize("broken, words", [(lambda launcher, *args: 1 / 0, "ZeroDivisionError"),
                                           (lambda launcher, *args: launcher(*args) * math.nan, None)], ids=["raises", "is off"])
def test_a_wrong_kernel_fails_the_command(engine, broken, words, monkeypatch, tmp_path, capsys):
    found, device, launchers = engine
    right = launchers["moe_combine"]
    monkeypatch.setitem(launchers, "moe_combine", lambda *args: broken(right, *args))
    monkeypatch.setattr(engines, "names", lambda: ("numpy", found.name))
    for module in (parity_kernels, doctor):                # the others would pass, and take their time
        monkeypatch.setattr(module, "REGISTRY", {name: op for name, op in REGISTRY.items() if op.kernel and op.kernel.stem == "moe"})
    monkeypatch.setattr(doctor.machine, "gflops", lambda device: 1.0)   # tests/cli/test_machine.py measures
    with pytest.warns(selfcheck.KernelWarning, match="moe_combine .* is not used"):
        assert doctor.run(True, tmp_path / "selftest.json", Output()) == 1
    report = json.loads((tmp_path / "selftest.json").read_text(), parse_constant=pytest.fail)
    failed = [r for r in report["selftest"] if not r["pass"]]
    assert {r["case"] for r in failed} == {"moe_combine"} and len(failed) == len(DTYPES)
    assert words is None or all(words in r["error"] for r in failed)
    states = report["devices"][f"{found.name}:{device}"]["kernels"]
    assert states["moe_combine_rows"]["path"] == "failed" and states["moe_combine_grad"]["path"] == "kernel"
    assert "FAILED" in capsys.readouterr().out
