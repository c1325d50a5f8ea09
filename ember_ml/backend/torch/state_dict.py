"""torch's own checkpoint files, read without running what is in them."""

from __future__ import annotations

import os

import torch

from ember_ml.errors import WeightsError, show
from ember_ml.tensor.common import dtypes as dt

#: what files may hold of tensors that share their memory, in bytes of the file
SHARED = 8
_DTYPES = frozenset(getattr(torch, d.name) for d in dt.ALL)

#: keys under which trainers keep the state dict of a model
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def read_state_dict(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Tensors by name of a .pt, .pth, .bin or .ckpt file, on the CPU.

    Raises WeightsError for a file that is damaged, that would run code, that holds no state dict, or tensors without numbers of their own.
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
    room = SHARED * os.path.getsize(path)
    for name, t in tensors.items():
        if t.layout is not torch.strided or t.is_quantized or t.is_nested or t.device.type != "cpu" or t.dtype not in _DTYPES:
            raise WeightsError(f"{path}: tensor {show(name)}: expected a dense tensor of numbers, got {t.dtype}, {t.layout}, on {t.device}; convert it, "
                               "and save the file again")
        size = t.numel() * t.element_size()
        room -= size
        if room < 0 or size > t.untyped_storage().nbytes():  # a stride of 0 makes terabytes of one number
            raise WeightsError(f"{path}: tensor {show(name)}: expected as many numbers in the file as its shape {list(t.shape)} has, got "
                               f"{t.untyped_storage().nbytes():,} bytes; save its .contiguous()")
    return tensors
