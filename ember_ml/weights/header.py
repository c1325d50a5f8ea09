"""The header of a safetensors file: building it, and reading it without trusting a byte of it.

Format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, the header as JSON, the data of
all tensors without gaps. The header maps names to {"dtype", "shape", "data_offsets"}, and "__metadata__" to strings.
"""

from __future__ import annotations

import json
import math
from typing import NamedTuple

from ember_ml.errors import WeightsError, show
from ember_ml.tensor import DType
from ember_ml.tensor.common import dtypes as dt

MAX_HEADER = 100_000_000  # bytes; the limit of every reader of the format
MAX_NDIM = 64             # NumPy's own
METADATA = "__metadata__"

#: The format's name -> dtype. F64 is read where the engine has it, and never written: MLX cannot read it.
DTYPES = {"BOOL": dt.bool_, "U8": dt.uint8, "U16": dt.uint16, "U32": dt.uint32, "U64": dt.uint64, "I8": dt.int8,
          "I16": dt.int16, "I32": dt.int32, "I64": dt.int64, "F16": dt.float16, "BF16": dt.bfloat16,
          "F32": dt.float32, "F64": dt.float64, "C64": dt.complex64}
CODES = {d: code for code, d in DTYPES.items() if d is not dt.float64}


class Entry(NamedTuple):
    """One tensor of a file: its dtype, its shape, and its bytes [begin, end) within the data."""

    dtype: DType
    shape: tuple[int, ...]
    begin: int
    end: int


def layout(tensors: dict[str, tuple[DType, tuple[int, ...]]]) -> dict[str, Entry]:
    """Where each tensor goes, in the order in which they are written.

    From wide to narrow dtypes: each tensor then begins at a multiple of its item size, as readers that map the file
    want it.
    """
    entries, end = {}, 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: -item[1][0].itemsize):
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        entries[name] = Entry(dtype, shape, begin, end)
    return entries


def build(entries: dict[str, Entry], metadata: dict[str, str]) -> bytes:
    """All that comes before the data, a multiple of 8 bytes.

    Raises WeightsError for text that is no Unicode, and for more of it than the format allows.
    """
    rows = {name: {"dtype": CODES[e.dtype], "shape": e.shape, "data_offsets": (e.begin, e.end)}
            for name, e in entries.items()}
    try:
        header = json.dumps({METADATA: metadata} | rows, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise WeightsError(f"save: expected names and metadata in Unicode, got {show(e.object[e.start:e.end])}; "
                           "replace what is no character") from None
    header += b" " * (-len(header) % 8)
    if len(header) > MAX_HEADER:
        raise WeightsError(f"save: names, config and metadata take {len(header)} bytes, the format allows {MAX_HEADER}")
    return len(header).to_bytes(8, "little") + header


def read(data, path: str) -> tuple[dict[str, Entry], dict[str, str], int]:
    """(entries by name, metadata, where the data starts) of a whole file, bytes or mapped.

    Nothing is taken for true that the size of the file contradicts. Raises WeightsError with the path and the tensor.
    """
    if len(data) < 8:
        raise WeightsError(f"{path}: is truncated, or no safetensors file: it has {len(data)} bytes")
    length, rest = int.from_bytes(data[:8], "little"), len(data) - 8
    if length > MAX_HEADER:
        raise WeightsError(f"{path}: is no safetensors file: its first 8 bytes stand for a header of {length} bytes, "
                           f"at most {MAX_HEADER} are allowed")
    if length > rest:
        raise WeightsError(f"{path}: is truncated, or no safetensors file: its header has {length} bytes, "
                           f"{rest} are there")
    header = parse(data[8:8 + length], path, "header")
    metadata = header.pop(METADATA, None)
    metadata = {} if metadata is None else metadata      # MLX writes null where it has none
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightsError(f"{path}: expected metadata that maps names to strings, got {show(metadata)}")
    size = rest - length
    entries = {name: _entry(info, size, f"{path}: tensor {show(name)}") for name, info in header.items()}
    _check_cover(entries, size, path)
    return entries, metadata, 8 + length


def _entry(info, size: int, where: str) -> Entry:
    if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{where}: expected dtype, shape and data_offsets, got {show(info)}")
    code, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise WeightsError(f"{where}: expected a dtype of {', '.join(DTYPES)}; got {show(code)}")
    itemsize = DTYPES[code].itemsize
    # Counted before they are multiplied: a product of many long numbers takes forever. Zeros count as ones, because the
    # strides of an empty tensor must fit 63 bits, too.
    if not _counts(shape, MAX_NDIM) or itemsize * math.prod(n or 1 for n in shape) >= 2 ** 63:
        raise WeightsError(f"{where}: expected a shape of at most {MAX_NDIM} lengths and 2^63 bytes, got {show(shape)}")
    if not _counts(offsets, 2) or len(offsets) < 2 or offsets[0] > offsets[1]:
        raise WeightsError(f"{where}: expected data_offsets [begin, end], got {show(offsets)}")
    begin, end = offsets
    if end > size:
        raise WeightsError(f"{where}: ends at byte {end} of the data, but there are {size}; the file is truncated")
    if itemsize * math.prod(shape) != end - begin:
        raise WeightsError(f"{where}: {code} of shape {show(shape)} takes {itemsize * math.prod(shape)} bytes, "
                           f"its data_offsets {offsets} hold {end - begin}")
    return Entry(DTYPES[code], tuple(shape), begin, end)


def _counts(value, most: int) -> bool:
    """Whether it is a list of at most so many integers from 0 on, of 63 bits."""
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n < 2 ** 63 for n in value)


def _check_cover(entries: dict[str, Entry], size: int, path: str) -> None:
    """The tensors must fill the data one after the other: bytes of two tensors, or of none, are damage or an attack."""
    position, before = 0, "the header"
    for name, e in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if e.begin != position:
            fault = "overlaps" if e.begin < position else "leaves a gap after"
            raise WeightsError(f"{path}: tensor {show(name)}: {fault} {before}: expected it to begin at byte "
                               f"{position} of the data, got {e.begin}")
        position, before = e.end, f"tensor {show(name)}"
    if position != size:
        raise WeightsError(f"{path}: {size - position} bytes after {before} belong to no tensor; the file is damaged")


def parse(text: str | bytes, path: str, what: str, levels: int | None = None) -> dict:
    """A JSON object, with no key twice, nested at most `levels` deep. Raises WeightsError."""
    try:
        text = text if isinstance(text, str) else str(text, "utf-8")
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_refuse)
        deep = levels is not None and _depth(value) > levels
    except (ValueError, RecursionError) as e:
        raise WeightsError(f"{path}: expected the {what} to be JSON: {e}") from None
    if not isinstance(value, dict) or deep:
        raise WeightsError(f"{path}: expected the {what} to be a JSON object"
                           f"{f' of at most {levels} levels' if levels else ''}, got {show(value)}")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict:
    found: dict = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{show(key)} stands there twice")
        found[key] = value
    return found


def _refuse(constant: str):
    raise ValueError(f"{constant} is no JSON")


def _depth(value) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
