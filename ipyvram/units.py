"""Bytes, durations and shares as text: numbers come in, short strings for people go out."""

from __future__ import annotations

import re

KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40

_SUFFIX = {
    "": 1, "b": 1, "byte": 1, "bytes": 1,
    "k": KIB, "kb": 10**3, "kib": KIB,
    "m": MIB, "mb": 10**6, "mib": MIB,
    "g": GIB, "gb": 10**9, "gib": GIB,
    "t": TIB, "tb": 10**12, "tib": TIB,
}  # fmt: skip


def format_bytes(count: float) -> str:
    """Bytes with a binary unit and about three significant digits: ``3.22 GiB``, ``97 MiB``, ``512 B``.

    Parameters
    ----------
    count : float
        Bytes; a negative count keeps its sign.
    """
    sign, size = ("-" if count < 0 else ""), abs(count)
    if size < KIB:
        return f"{sign}{size:.0f} B"
    unit, name = next(((u, n) for u, n in ((KIB, "KiB"), (MIB, "MiB"), (GIB, "GiB")) if size / u < 999.5), (TIB, "TiB"))
    value = size / unit
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{sign}{value:.{digits}f} {name}"


def format_duration(seconds: float) -> str:
    """Seconds as text: ``38 ms``, ``2.1 s``, ``4 min 07 s``, ``3 h 12 min``."""
    if seconds < 0.9995:
        millis = seconds * 1e3
        return f"{millis:.0f} ms" if millis >= 9.95 or millis == 0 else f"{millis:.1f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def format_share(part: float, whole: float) -> str:
    """``part / whole`` as a percentage; tiny shares read ``<1 %`` and an empty whole reads ``–``."""
    if whole <= 0:
        return "–"
    share = part / whole
    if 0 < share < 0.005:
        return "<1 %"
    return f"{share:.0%}".replace("%", " %")


def parse_bytes(text: str) -> int:
    """A size as a person writes it (``24GiB``, ``24G``, ``512 MiB``, ``16e9``) in bytes.

    ``K``, ``M``, ``G``, ``T`` alone are binary, as in the CUDA tools; ``GB`` is decimal, ``GiB`` binary.

    Raises
    ------
    ValueError
        The text is not a positive size.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _SUFFIX:
        raise ValueError(f"{text!r} is not a size: write it as 24GiB, 800MiB or a number of bytes")
    size = int(float(match[1]) * _SUFFIX[match[2]])
    if size <= 0:
        raise ValueError(f"{text!r} is not a size: it must be more than 0 bytes")
    return size
