"""Batch sizes as a person writes them (``batch_size=8,16,32``, ``8:128:*2``, ``8..128``) come in, whole numbers go out."""

from __future__ import annotations

import keyword
import re

#: More trials than anybody waits for; a range with more is a slip.
MAX_SIZES = 64
LARGEST_SIZE = 10**9

_RIGHT = "write sizes as 8,16,32, as 8..128 (doubling), as 8:128:*2 or as 8:128:+8"


def parse_batch(text: str) -> tuple[str, tuple[int, ...]]:
    """``NAME=SIZES`` as the name and its sizes.

    Raises
    ------
    ValueError
        The name is none that Python could bind, or the sizes cannot be read.
    """
    name, equals, sizes = text.partition("=")
    if not equals:
        raise ValueError("write the variable and its sizes, such as batch_size=8,16,32")
    return parse_name(name), parse_sizes(sizes)


def parse_name(text: str) -> str:
    """A variable's name.

    Raises
    ------
    ValueError
        It is none.
    """
    name = text.strip()
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} cannot be a variable: write the name that holds the batch size, such as batch_size")
    return name


def parse_sizes(text: str) -> tuple[int, ...]:
    """Sizes in ascending order, each once.

    Raises
    ------
    ValueError
        A part cannot be read, a size is not 1 or more, or there are fewer than 2 or more than `MAX_SIZES`.
    """
    found = {size for part in text.split(",") for size in _part(part.strip())}
    return check_sizes(found)


def check_sizes(sizes: set[int]) -> tuple[int, ...]:
    """The sizes in ascending order; ValueError as for `parse_sizes`."""
    if len(sizes) > MAX_SIZES:
        raise ValueError(f"these are {len(sizes)} sizes, more than {MAX_SIZES}: take a larger step")
    for size in sizes:
        if not 1 <= size <= LARGEST_SIZE:
            raise ValueError(f"{size} is not a batch size: write whole numbers from 1")
    if len(sizes) < 2:
        raise ValueError("one size cannot be compared: write two or more, such as 8,16,32")
    return tuple(sorted(sizes))


def _part(text: str) -> list[int]:
    if re.fullmatch(r"-?[0-9]{1,12}", text):
        return [int(text)]
    match = re.fullmatch(r"([0-9]{1,12})\s*(?:\.\.|:)\s*([0-9]{1,12})(?:\s*:\s*([*+]?)\s*([0-9]{1,12}))?", text)
    if match is None:
        raise ValueError(f"{text!r} is not a batch size: {_RIGHT}" if text else _RIGHT)
    first, last = int(match[1]), int(match[2])
    factor = 2 if match[4] is None else int(match[4]) if match[3] == "*" else 1
    step = int(match[4]) if match[4] is not None and match[3] != "*" else 0
    if first < 1 or last < first:
        raise ValueError(f"{text} runs from {first} to {last}: write the smaller size first, from 1")
    if factor == 0 or (factor == 1 and step == 0):
        raise ValueError(f"{text} never gets further than {first}: {_RIGHT}")
    sizes: list[int] = []
    while first <= last and len(sizes) <= MAX_SIZES:
        sizes.append(first)
        first = first * factor + step
    return sizes
