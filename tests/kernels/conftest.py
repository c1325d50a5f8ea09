"""The machines that kernels are tested on: a GPU where one is, else the executor on the CPU (tests/simt)."""

import gc
import importlib
import importlib.util
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from ember_ml.kernels import KernelWarning
from ember_ml.ops import REGISTRY
from tests.conftest import require_engine
from tests.simt import unavailable
from tests.simt.build import place


HERE = Path(__file__).parent

#: set in the process that fills the cache
HELPER = "EMBER_SIMT_HELPER"
_helper = pytest.StashKey[subprocess.Popen]()


def _warm() -> Path:
    """A file in the cache of compiled kernels that says that the tests as they are now have all been run."""
    root = HERE.parents[1]
    files = [*HERE.glob("*.py"), *(root / "metal").iterdir(), *(root / "cuda").iterdir(), *(root / "ember_ml/kernels").glob("*.py")]
    return place("warm", [path.read_text() for path in sorted(files)])


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """This folder as a whole runs on several cores, if nobody says otherwise: pytest-xdist's -n."""
    workers, options = min(4, os.cpu_count()), config.option
    whole = any(Path(argument).resolve() == HERE for argument in config.args)
    if whole and workers > 1 and getattr(options, "numprocesses", 0) is None and not (hasattr(config, "workerinput") or unavailable()
                                                                                     or options.usepdb or options.collectonly):
        options.numprocesses, options.dist = workers, "worksteal"


def pytest_collection_modifyitems(config, items):
    if HELPER in os.environ:
        items.reverse()
    if hasattr(config, "workerinput"):                         # the slowest first, and together: they bring in torch and its compiler
        items.sort(key=lambda item: "torch" not in item.nodeid)
        gc.freeze()                                            # what imports have made stays
        gc.set_threshold(50_000)


def pytest_collection_finish(session):
    """While nothing is compiled yet and all tests run in one process, a second one runs those of this folder from the last to the
    first: when they meet, everything is in the cache, in half the time."""
    many = sum(item.path.parent == HERE for item in session.items) > 200
    alone = not hasattr(session.config, "workerinput") and HELPER not in os.environ
    able = many and alone and not unavailable() and importlib.util.find_spec("ziglang") and os.cpu_count() > 1
    if able and not _warm().exists():
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", str(HERE)]
        session.config.stash[_helper] = subprocess.Popen(command, env={**os.environ, HELPER: "1"}, cwd=HERE.parents[1],
                                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def pytest_sessionfinish(session, exitstatus):
    if helper := session.config.stash.get(_helper, None):
        helper.terminate()
        helper.wait()
        if exitstatus == 0:
            _warm().touch()


def _mlx_to_numpy(x):
    import mlx.core as mx
    return np.array(x.view(mx.uint16)).view(ml_dtypes.bfloat16) if x.dtype == mx.bfloat16 else np.array(x)


def _mlx_from_numpy(x):
    import mlx.core as mx
    return mx.array(x.view(np.uint16)).view(mx.bfloat16) if x.dtype == ml_dtypes.bfloat16 else mx.array(x)


@pytest.fixture(autouse=True)
def no_kernel_is_given_up():
    """An op that falls back would pass its tests by its composite; those of falling back itself wait for the warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelWarning)
        yield


@pytest.fixture
def metal(monkeypatch):
    """ember_mlx.kernels and how to get arrays in and out; on a Mac its GPU runs the kernels."""
    require_engine("mlx")
    import mlx.core as mx
    from ember_mlx import kernels

    if not mx.metal.is_available():
        if reason := unavailable():
            pytest.skip(reason)
        from tests.simt.metal import metal_kernel
        monkeypatch.setattr(mx.fast, "metal_kernel", metal_kernel)
        monkeypatch.setattr(kernels, "available", lambda: True)
    caches = [made.cache_clear for made in (kernels._kernel, kernels._template)]
    for clear in caches:
        clear()
    yield SimpleNamespace(kernels=kernels, array=_mlx_from_numpy, numpy=_mlx_to_numpy, on_gpu=mx.metal.is_available())
    for clear in caches:
        clear()


@cache
def _over_the_stand_in() -> dict:
    """The stand-ins for cupy and the CuPy engine imported over them, by name; sys.modules stays as it was."""
    from tests.simt.cuda import stand_in

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.startswith("ember_ml.backend.cupy")]:
            patch.delitem(sys.modules, name)
        modules = stand_in()
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        importlib.import_module("ember_ml.backend.cupy.kernels")
        for name in [name for name in sys.modules if name.startswith("ember_ml.backend.cupy")]:
            modules[name] = sys.modules.pop(name)
    return modules


@pytest.fixture
def resolved_anew():
    """Ops ask again which function of an engine is theirs; afterwards they have back what they knew. Each looks into one dict for ever."""
    before = [(op, dict(op.resolved)) for op in REGISTRY.values()]
    for op, _ in before:
        op.resolved.clear()
    yield
    for op, resolved in before:
        op.resolved.clear()
        op.resolved.update(resolved)


@pytest.fixture
def cuda(monkeypatch):
    """ember_ml.backend.cupy.kernels, imported over the stand-in for cupy, and how to get arrays in and out."""
    if reason := unavailable():
        pytest.skip(reason)
    modules = _over_the_stand_in()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)         # back out afterwards: no other test may meet the engine
    kernels = modules["ember_ml.backend.cupy.kernels"]
    caches = {value for name, module in modules.items() if name.startswith("ember_ml.")
              for value in vars(module).values() if hasattr(value, "cache_clear")}
    for op in REGISTRY.values():
        op.resolved.pop(modules["ember_ml.backend.cupy"].backend, None)
    yield SimpleNamespace(kernels=kernels, array=modules["cupy"].array, numpy=np.array, on_gpu=False)
    for function in caches:                                    # they hold kernels of texts that a test may have changed
        function.cache_clear()


def on_the_stand_in(monkeypatch):
    """torch's CPU tensors take the part of a GPU's: where CuPy gets addresses, the stand-in gets arrays of the same memory."""
    import torch
    from ember_ml.backend.torch import cuda as torch_cuda

    def argument(self, x):
        kind = ml_dtypes.bfloat16 if x.dtype is torch.bfloat16 else None
        native = x.view(torch.int16).numpy().view(kind) if kind else x.numpy()
        return native.view(sys.modules["cupy"].ndarray)

    monkeypatch.setattr(torch_cuda.TorchArrays, "argument", argument)
    monkeypatch.setattr(torch_cuda, "_place", lambda device: nullcontext())
    torch_cuda._kernels()


@pytest.fixture
def cuda_gpu():
    """ember_ml.backend.cupy.kernels on an NVIDIA GPU."""
    cupy = pytest.importorskip("cupy")
    kernels = importlib.import_module("ember_ml.backend.cupy.kernels")
    return SimpleNamespace(kernels=kernels, array=cupy.array, numpy=cupy.asnumpy)


@pytest.fixture
def torch_gpu():
    """torch's launchers on an NVIDIA GPU."""
    pytest.importorskip("torch")
    backend = importlib.import_module("ember_ml.backend.torch").backend
    device, launchers = backend.default_device, backend.launchers(backend.default_device)
    assert launchers, backend.no_launchers(device)
    return SimpleNamespace(kernels=SimpleNamespace(__name__=backend.launchers.__module__, KERNELS=launchers, **launchers),
                           array=lambda x: backend.from_numpy(x, None, device), numpy=backend.to_numpy)


MACHINES = ["metal", "cuda", *(["cuda_gpu", "torch_gpu"] if Path("/dev/nvidiactl").exists() else [])]


@pytest.fixture(params=MACHINES)
def machine(request):
    """Runs the test once per machine: `.kernels` is the launchers' module, `.array` and `.numpy` convert."""
    return request.getfixturevalue(request.param)
