"""What a compiled kernel file (ELF, DWARF 4) says of itself: where its sections lie, and which source line an instruction is of."""

import struct
from bisect import bisect_right
from functools import cache
from pathlib import Path

WRITABLE, ALLOCATED = 1, 2


@cache
def sections(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """name -> (address, bytes, offset in the file, flags)"""
    data = path.read_bytes()
    at, = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    rows = [struct.unpack_from("<IIQQQQ", data, at + size * i) for i in range(count)]   # name, type, flags, address, offset, bytes
    text = rows[names][4]
    return {data[text + name:data.index(b"\0", text + name)].decode(): (address, length, offset, flags)
            for name, _, flags, address, offset, length in rows}


def position(path: Path, address: int) -> tuple[str, int]:
    """(file, line) of the instruction at this address, ("", 0) if it is of no source."""
    rows = _lines(path)
    found = bisect_right(rows, address, key=lambda row: row[0]) - 1
    return rows[found][1:] if found >= 0 else ("", 0)


@cache
def _lines(path: Path) -> list[tuple[int, str, int]]:
    """(first address, file, line), in the order of addresses."""
    _, length, offset, _ = sections(path)[".debug_line"]
    data, rows, at = path.read_bytes()[offset:offset + length], [], 0
    while at < length:
        at = _unit(data, at, rows)
    return sorted(rows, key=lambda row: row[0])


def _unit(data: bytes, at: int, rows: list) -> int:
    """Runs the line program of one unit (DWARF 4, section 6.2); where the next one begins."""
    end, = struct.unpack_from("<I", data, at)
    end += at + 4
    version, header, shortest, _, _, base, span, first = struct.unpack_from("<HIBBBbBB", data, at + 4)
    if version != 4:
        raise ValueError(f"expected line numbers of DWARF 4, got {version}")
    program, counts, at = at + 10 + header, data[at + 16:at + 15 + first], at + 15 + first   # counts: of each opcode's numbers
    while data[at]:                                        # folders
        at = data.index(b"\0", at) + 1
    at, files = at + 1, [""]
    while data[at]:
        close = data.index(b"\0", at)
        files.append(data[at:close].decode())
        at = close + 1
        for _ in range(3):                                 # folder, time, size
            _, at = _number(data, at)
    at, address, file, line = program, 0, 1, 1

    def row():
        if line:                                           # 0: of no source; counts as the line before
            rows.append((address, files[file], line))

    while at < end:
        op, at = data[at], at + 1
        if op >= first:
            address += (op - first) // span * shortest
            line += base + (op - first) % span
            row()
        elif op == 0:
            length, at = _number(data, at)
            if data[at] == 1:                              # the end of a sequence
                address, file, line = 0, 1, 1
            elif data[at] == 2:
                address, = struct.unpack_from("<Q", data, at + 1)
            at += length
        elif op == 1:
            row()
        elif op == 8:
            address += (255 - first) // span * shortest
        elif op == 9:
            address, at = address + struct.unpack_from("<H", data, at)[0], at + 2
        else:
            number = 0
            for _ in range(counts[op - 1]):
                number, at = _number(data, at, signed=op == 3)
            address += number * shortest if op == 2 else 0
            line += number if op == 3 else 0
            file = number if op == 4 else file
    return end


def _number(data: bytes, at: int, signed: bool = False) -> tuple[int, int]:
    """A LEB128 number and where it ends."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value - (1 << shift if signed and byte & 0x40 else 0), at
