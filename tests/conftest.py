"""What every test shares: full float32 precision, one thread, and the `backend` fixture."""

import os
import sys
import zlib

import numpy as np
import pytest
from hypothesis import settings

if "mlx.core" in sys.modules:
    raise RuntimeError("tests: mlx was imported before tests/conftest.py, so MLX_ENABLE_TF32=0 would come too late")

# MLX multiplies float32 matrices at about TF32 precision on newer chips, a thousand times the error that tests allow.
# It reads the variable once, when it is imported.
os.environ["MLX_ENABLE_TF32"] = "0"
# Shapes in tests are small: a second thread costs more in waiting than it computes, and sums stay reproducible.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Plots are drawn to files, also where no display is.
os.environ["MPLBACKEND"] = "Agg"
# A developer's own default engine must not decide what is tested.
os.environ.pop("EMBER_BACKEND", None)

# The same examples in every run, and no deadline: on a shared machine the clock says nothing about the code.
settings.register_profile("ember", deadline=None, derandomize=True)
settings.load_profile("ember")

ENGINES = ("numpy", "torch", "mlx")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """A module's RNG draws the same numbers in a test whatever ran before, so that what fails in a long run fails alone, too."""
    generator = getattr(getattr(item, "module", None), "RNG", None)
    if generator is not None:
        generator.bit_generator.state = np.random.default_rng(zlib.crc32(item.name.encode())).bit_generator.state


def fail_in_ci(reason: str) -> None:
    """Skip the test for want of something; fail it in CI (environment variable CI), where it must be there."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def require_engine(name: str) -> None:
    """Skip the test where the engine is not installed; fail it in CI."""
    from ember_ml.backend import installed

    if not installed(name):
        fail_in_ci(f"engine {name!r} is not installed; `make test` installs it")


@pytest.fixture(params=ENGINES)
def backend(request):
    """Runs the test once per engine, inside `em.using(engine)`; the value is the engine's name."""
    require_engine(request.param)
    from ember_ml.backend import using

    with using(request.param):
        yield request.param
