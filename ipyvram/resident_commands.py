"""``%vram``, ``%vram who`` and ``%vram free``: the rest of the line and the notebook's namespace come in; what to show goes out."""

from __future__ import annotations

from typing import Any

from ipyvram.units import format_bytes


def now(rest: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """The bundle of ``%vram``: what is in memory by category, and the largest holders."""
    return _look(namespace, everyone=False)


def who(rest: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """The bundle of ``%vram who``: every holder, and what releases it."""
    if rest:
        raise ValueError(f"%vram who takes nothing more, not {rest!r}")
    return _look(namespace, everyone=True)


def _look(namespace: dict[str, Any], everyone: bool) -> dict[str, Any]:
    from ipyvram.probes.residents import look
    from ipyvram.render.resident import bundle

    return bundle(look(namespace), everyone=everyone)


def free(rest: str, namespace: dict[str, Any]) -> None:
    """``%vram free FLAGS``: release what the flags name, and print what that freed.

    Raises
    ------
    ValueError
        No flag, or one that does not exist.
    """
    from ipyvram.probes import freeing

    flags = rest.split()
    known = ", ".join(f"{flag} ({what})" for flag, (what, _) in freeing.RELEASES.items())
    unknown = [flag for flag in flags if flag not in freeing.RELEASES]
    if unknown:
        raise ValueError(f"%vram free {unknown[0]}: there are {known}; a variable is released by del")
    if not flags:
        raise ValueError(f"%vram free releases only what it is told to: {known}; %vram who tells who holds what")
    for one in freeing.free(flags, namespace):
        print(f"{one.what}: freed {format_bytes(one.tensor_bytes)} of tensors{_of_cache(one.cache_bytes)}")


def free_flags() -> list[str]:
    """What ``%vram free`` may be told to release."""
    from ipyvram.probes.freeing import RELEASES

    return list(RELEASES)


def _of_cache(freed_bytes: int) -> str:
    """What became of the allocator's cache: what tensors leave goes there first."""
    if freed_bytes < 0:
        return f"; {format_bytes(-freed_bytes)} of that are now torch's cache (%vram free --cache gives it back)"
    return f", {format_bytes(freed_bytes)} of cache" if freed_bytes else ""
