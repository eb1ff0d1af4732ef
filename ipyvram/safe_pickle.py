"""A pickle of plain values, read without running anything that is in it.

Snapshots of the CUDA allocator are pickles, and pickles from the internet are programs. Every opcode is looked at before
anything is loaded: only those that build dicts, lists, tuples, strings and numbers are let through, and none that makes
the reader take more memory than the file is large.
"""

from __future__ import annotations

import gzip
import io
import pickle
import re
import zlib
from pathlib import Path
from typing import Any, NoReturn

#: Largest file, unpacked, that is read: a snapshot of this size has tens of millions of events.
MAX_BYTES = 2 << 30

_CHUNK = 1 << 24
_U1, _U4, _U8, _LINE, _INDEX, _INDEX4, _INDEX_LINE = -1, -2, -3, -4, -5, -6, -7
_PLAIN: dict[bytes, int] = {
    b"(": 0, b".": 0, b"0": 0, b"1": 0, b"2": 0, b"N": 0, b"]": 0, b"}": 0, b")": 0, b"a": 0, b"e": 0, b"l": 0,
    b"d": 0, b"s": 0, b"t": 0, b"u": 0, b"\x85": 0, b"\x86": 0, b"\x87": 0, b"\x88": 0, b"\x89": 0, b"\x8f": 0,
    b"\x90": 0, b"\x91": 0, b"\x94": 0,
    b"J": 4, b"K": 1, b"M": 2, b"G": 8, b"h": 1, b"j": 4, b"\x80": 1, b"\x95": 8,
    b"I": _LINE, b"L": _LINE, b"F": _LINE, b"S": _LINE, b"V": _LINE, b"g": _LINE,
    b"U": _U1, b"C": _U1, b"\x8c": _U1, b"\x8a": _U1, b"T": _U4, b"B": _U4, b"X": _U4, b"\x8b": _U4,
    b"\x8d": _U8, b"\x8e": _U8, b"\x96": _U8,
    b"q": 1, b"r": _INDEX4, b"p": _INDEX_LINE,
}  # fmt: skip
_TABLE: list[int | None] = [_PLAIN.get(bytes([code])) for code in range(256)]
_STOP = 0x2E


def _run_of_fixed() -> re.Pattern[bytes]:
    """As many opcodes with arguments of fixed width as follow each other: most of a file, passed over in one go."""
    by_width: dict[int, bytes] = {}
    for opcode, width in _PLAIN.items():
        if width >= 0 and opcode[0] != _STOP:
            by_width[width] = by_width.get(width, b"") + re.escape(opcode)
    alternatives = [b"[" + codes + b"]" + b"[\\s\\S]{%d}" % width for width, codes in sorted(by_width.items())]
    return re.compile(b"(?:" + b"|".join(alternatives) + b")*+")


_FIXED = _run_of_fixed()


def load(path: str | Path) -> Any:
    """The value in a pickle file, gzipped or not.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It is too large, damaged, no pickle, or would run code.
    """
    name = Path(path).name
    data = _read(Path(path), name)
    _check(data, name)
    try:
        return _Nothing(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    except MemoryError as error:
        raise ValueError(f"{name} needs more memory than there is") from error


class _Nothing(pickle.Unpickler):
    """Finds no class: the second lock behind `_check`."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it asks for an object outside the file")


def _read(path: Path, name: str) -> bytes:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        source: Any = gzip.GzipFile(fileobj=file) if packed else file
        parts, total = [], 0
        try:
            while part := source.read(_CHUNK):
                parts.append(part)
                total += len(part)
                if total > MAX_BYTES:
                    raise ValueError(
                        f"{name} is larger than {MAX_BYTES >> 30} GiB unpacked: record with a smaller max_entries, or "
                        "with stacks='python'"
                    )
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{name} is a damaged gzip file: {error}") from error
    return b"".join(parts)


def _check(data: bytes, name: str) -> None:
    """Walk over the opcodes without obeying them."""
    at, size, table, run = 0, len(data), _TABLE, _FIXED.match
    while True:
        fixed = run(data, at) if at < size else None
        at = fixed.end() if fixed else at
        if at >= size:
            raise ValueError(f"{name} ends in the middle: it is cut off, or no pickle")
        code = data[at]
        width = table[code]
        if width is None:
            raise ValueError(_refusal(code, at, name))
        at += 1
        if code == _STOP:
            return
        if width >= 0:  # its argument is cut off
            at += width
        elif width == _U1:
            at += 1 + (data[at] if at < size else 0)
        elif width == _U4:
            at += 4 + int.from_bytes(data[at : at + 4], "little")
        elif width == _U8:
            at += 8 + int.from_bytes(data[at : at + 8], "little")
        else:
            at = _check_index(data, at, width, name)


def _check_index(data: bytes, at: int, width: int, name: str) -> int:
    """Text arguments, and places in the reader's memo: it makes room for all places up to the one that is named."""
    if width == _INDEX4:
        index, after = int.from_bytes(data[at : at + 4], "little"), at + 4
    else:
        after = data.find(b"\n", at) + 1
        if not after or after - at > 1 << 20:
            raise ValueError(f"{name} ends in the middle: it is cut off, or no pickle")
        digits = data[at : after - 1]
        index = int(digits) if width == _INDEX_LINE and digits.isdigit() and len(digits) < 12 else 0
        if width == _INDEX_LINE and not index and digits != b"0":
            raise ValueError(f"{name} is damaged at byte {at}")
    if index > len(data):
        raise ValueError(f"{name} is refused: it would take far more memory than its size (byte {at})")
    return after


_RUNS_CODE = set(b"cibo R\x81\x92\x93\x82\x83\x84PQ".replace(b" ", b""))


def _refusal(code: int, at: int, name: str) -> str:
    if code in _RUNS_CODE:
        return (
            f"{name} is refused: it would run code or make objects when it is loaded (byte {at}). A file of "
            "torch.cuda.memory._dump_snapshot holds only dicts, lists, strings and numbers"
        )
    return f"{name} is no pickle, or damaged at byte {at}: write one with torch.cuda.memory._dump_snapshot"
