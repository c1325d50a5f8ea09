"""The ways for long rows of the engines' convolutions, forced upon short ones."""

import pytest

#: module of an engine's blocks, and what makes them small and shares them out
_SMALL = {"numpy": ("ember_ml.backend.numpy.right_angle", {"ROWS": 1, "ALONE": 0, "EACH": 1, "cores": lambda: 3}),
          "torch": ("ember_ml.backend.torch.fftconv", {"ROWS": 1, "PLANNED": 1})}


def force_small_blocks(monkeypatch, engine, points):
    """A few rows a block, on three threads on NumPy, in whose blocks MLX on a CPU convolves any number of numbers then, too."""
    where, small = _SMALL["torch" if engine.startswith("torch") else "numpy"]
    module = pytest.importorskip(where)
    for name, value in {"BLOCK": points, **small}.items():
        monkeypatch.setattr(module, name, value)
    if engine == "mlx":
        monkeypatch.setattr(pytest.importorskip("ember_mlx.fftconv"), "WORTH", {"fftconv_rows": 0, "convolve_rows": 0, "convolve_grad": 0})
