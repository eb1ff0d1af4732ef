"""Activations with the modules that made them come in; around which blocks checkpoints would save most, and how much, goes out. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from ipyvram.report_rows import TensorRow

#: More blocks than this are layers: nobody wraps each.
MAX_BLOCKS = 64


def best_blocks(activations: Iterable[TensorRow]) -> tuple[int, list[str]]:
    """Bytes saved at the depth of module paths where it is most, and the blocks there; nothing where it never saves.

    Parameters
    ----------
    activations : iterable of TensorRow
        With modules, in the order in which they were allocated.
    """
    rows = list(activations)
    best, names = 0, list[str]()
    for depth in range(1, 1 + max((row.module.count(".") for row in rows), default=0)):
        # A module without parts keeps what a checkpoint around it would keep too.
        whole = {_cut(row.module, depth) for row in rows if row.module.count(".") >= depth}
        blocks: dict[str, list[TensorRow]] = {}
        for row in rows:
            if (name := _cut(row.module, depth)) in whole:
                blocks.setdefault(name, []).append(row)
        if 2 <= len(blocks) <= MAX_BLOCKS and (saves := _saved(blocks)) > best:
            best, names = saves, list(blocks)
    return best, names


def _cut(path: str, depth: int) -> str:
    """The first parts of a module's path."""
    return ".".join(path.split(".")[:depth])


def _saved(blocks: dict[str, list[TensorRow]]) -> int:
    """A block keeps its output, the next one's input. The inside of one block at a time is there again when gradients come
    back through it: of a layer's result, of what it was given, and of a way around it."""
    sizes = [sum(t.bytes for t in members) for members in blocks.values()]
    again = max(size + 3 * max(t.bytes for t in members) for size, members in zip(sizes, blocks.values(), strict=True))
    return sum(sizes) - sum(members[-1].bytes for members in blocks.values()) - again
