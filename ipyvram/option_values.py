"""Values of options: what a person writes comes in, the value goes out; a `ValueError` says what would be right.

Each function reads one kind of value; the table in `options` names them.
"""

from __future__ import annotations

import math
import re

from ipyvram.units import MIB, parse_bytes


def text(value: str) -> str:
    """Text that is not blank."""
    if not value.strip():
        raise ValueError("write some text after it")
    return value.strip()


def limit(value: str) -> tuple[float | None, int | None]:
    """A share in (0, 1], or bytes: the other of the two is None."""
    right = "write a share of the card such as 80% or 0.8, or a size such as 8GiB"
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*%\s*", value)
    share = float(match[1]) / 100 if match else None
    if match is None and re.fullmatch(r"\s*[0-9]*\.?[0-9]+\s*", value):
        share = float(value) if float(value) < MIB else None  # a bare 8589934592 can only be bytes
    if share is not None:
        if not 0 < share <= 1:
            raise ValueError(right)
        return share, None
    try:
        return None, parse_bytes(value)
    except ValueError:
        raise ValueError(right) from None


def budget(value: str) -> int:
    """Bytes."""
    try:
        return parse_bytes(value)
    except ValueError:
        raise ValueError("write the bytes that tensors may take, such as 512MiB") from None


def milliseconds(value: str) -> float:
    """Milliseconds, in seconds."""
    right = "write milliseconds from 1 to 60000, such as 50"
    try:
        millis = float(value.strip().removesuffix("ms"))
    except ValueError:
        raise ValueError(right) from None
    if not (math.isfinite(millis) and 1 <= millis <= 60_000):
        raise ValueError(right)
    return millis / 1e3


def steps(value: str) -> int:
    """A number of optimizer steps."""
    if not re.fullmatch(r"[0-9]{1,6}", value.strip()) or int(value) < 1:
        raise ValueError("write a whole number of optimizer steps, 1 or more")
    return int(value)


def whole(value: str) -> int:
    """A whole number of at least 1."""
    if not re.fullmatch(r"[0-9]{1,9}", value.strip()) or int(value) < 1:
        raise ValueError("write a whole number, 1 or more")
    return int(value)


def rule(value: str) -> str:
    """How the largest batch is looked for."""
    if value not in ("fit", "tutorial"):
        raise ValueError(
            "write fit (predict, run, correct) or tutorial (start at 16, add 16 until the limit is crossed)"
        )
    return value


def switch(value: str) -> bool:
    """A switch, which is there or not."""
    if value != "True":
        raise ValueError("it is given without a value")
    return True


def device(value: str) -> str:
    """A device in torch's words; whether it exists is asked elsewhere."""
    if not re.fullmatch(r"[a-z]+(:[0-9]{1,4})?", value.strip()):
        raise ValueError("write a device as torch does: cpu, cuda, cuda:1 or mps")
    return value.strip()
