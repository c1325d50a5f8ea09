"""torch's own checkpoint files, read without running what is in them."""

from __future__ import annotations

import os

import torch

from ember_ml.errors import WeightsError

#: keys under which trainers keep the state dict of a model
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Tensors by name of a .pt, .pth, .bin or .ckpt file, on the CPU.

    Raises WeightsError for a file that is damaged, that would run code, or that holds no state dict.
    """
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # a damaged or hostile file makes the loader raise almost anything
        reason = (str(e).strip() or repr(e)).splitlines()[0]
        raise WeightsError(f"{path}: is damaged, or holds more than tensors and numbers, which is refused, since reading it could run "
                           f"code of its writer: {type(e).__name__}: {reason}") from None
    for key in WRAPPERS:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not found or not all(isinstance(k, str) for k in found):
        raise WeightsError(f"{path}: expected a state dict, tensors by name; got {type(found).__name__}")
    tensors = {name: t for name, t in found.items() if isinstance(t, torch.Tensor)}
    if not tensors:
        raise WeightsError(f"{path}: holds no tensors; its keys are {', '.join(list(found)[:4])}, ...")
    return tensors
