"""What CUDA works in where it sorts: an operator and its results come in, requests go out, in the order of the kernels.

Sorts are those of cub; how much `cub::DeviceRadixSort` works in follows from the number of items, their sizes, the bits that
differ and the card's generation (`dispatch_radix_sort.cuh` and `tuning_radix_sort.cuh` of NVIDIA's cccl).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ipyvram.cards import Card
from ipyvram.simulated import values
from ipyvram.simulated.arguments import argument, is_mask
from ipyvram.simulated.ways import Ways
from ipyvram.simulated.within import Made, copied, rule

_LONG = 8  # bytes of an index and of cub's offsets
_DIGITS, _BITS = 256, 8  # of one pass over the keys


def _laid_out(*sizes: int) -> int:
    """`alias_temporaries`: one request for several buffers, each aligned to 256 bytes."""
    return sum(-(-n // 256) * 256 for n in sizes) + 255


def _scaled(items: int, widest: int) -> int:
    """`RegBoundScaling`: items of a thread, named for four bytes, for values of ``widest`` bytes."""
    return max(1, min(items * 4 // widest, items * 2))


def radix_sort_bytes(card: Card, count: int, key: int, value: int, bits: int | None = None) -> int:
    """Temporary storage of `cub::DeviceRadixSort::SortPairs`.

    Parameters
    ----------
    card : Card
    count, key, value : int
        Pairs, and bytes of a key and of a value.
    bits : int, optional
        Bits of a key that are looked at, all of them unless given.
    """
    widest = max(key, value)
    if count <= 256 * _scaled(19, widest):
        return 1  # one block sorts all
    passes = -(-(bits or 8 * key) // _BITS)
    other = (count * key, count * value) if passes > 1 else (0, 0)  # a second pair of buffers
    if key < 4 and card.capability < (9, 0):  # no onesweep: a row of counters for each block that could run, at most
        blocks = 5 * card.multiprocessors * (card.threads_per_multiprocessor // 256)
        return _laid_out((blocks * 128 + 5632) * _LONG, *other)
    tile = _onesweep_tile(card.capability, key, value)
    counters = passes * _DIGITS * _LONG
    return _laid_out(counters, -(-count // tile) * _DIGITS * 4, *other, passes * 4)


def _onesweep_tile(capability: tuple[int, int], key: int, value: int) -> int:
    """Pairs that a block sorts at once (`policy_hub` of tuning_radix_sort.cuh, offsets of 64 bits)."""
    widest = max(key, value)
    if capability < (8, 0):
        return 256 * _scaled(46 if key == value == 4 else 23, widest)
    if capability < (9, 0):
        return 384 * _scaled(17 if key == 4 else 21, widest)
    if key < 4:
        return 512 * _scaled(23, widest)
    if key == 4:
        return 384 * _scaled(17 if value < 8 else 29, widest)
    return 384 * _scaled(30 if value < 8 else 24, widest)


def _tiles_bytes(tiles: int) -> int:
    """`ScanTileState`: 16 bytes for each tile and for a warp of padding, beside what keeps it in order."""
    return _laid_out(1, 16 * (tiles + 32))


def _bits_of(largest: int) -> int:
    """`get_num_bits` (cub.cuh)."""
    return max(1, largest.bit_length())


@rule("embedding_dense_backward")
def _embedding_backward(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Embedding.cu: up to 3072 indices one kernel without memory; more are sorted first, and the gradients of equal ones are
    summed in parts of ten (EmbeddingBackwardKernel.cu)."""
    gradient, indices, words = args[:3]
    n, item = indices.numel(), indices.element_size()
    held = ways.take(copied(gradient), op="embedding copy")
    if n <= 3072:
        made(result)
        ways.give(held)
        return
    held += ways.take(n * item, n * item, op="embedding sort")
    positions = ways.take(n * item, op="embedding sort")
    ways.use(radix_sort_bytes(ways.card, n, item, item, _bits_of(words)), op="embedding sort")
    ways.give(positions)
    made(result)
    held += ways.take(n * item, _LONG, op="embedding segments")
    ways.use(n * item, _tiles_bytes(-(-n // (64 * _scaled(11, item)))), op="embedding segments")
    segments = min(n, words)
    held += ways.take(segments * item, segments * item, op="embedding segments")
    ways.use(_laid_out(1, 2 * item * (-(-segments // 1920) + 32)), op="embedding segments")
    parts = n // 10 + segments
    width = gradient.shape[-1] * max(4, gradient.element_size())
    held += ways.take(_LONG, parts * item, parts * width, op="embedding partial sums")
    ways.give(held)


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def _index_put(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """`index_put_with_sort_kernel` (Indexing.cu): to add up, one index over all dimensions is sorted."""
    target, indices, value = args[:3]
    places = list(_places(indices))
    indexed = [d for d, _, _ in places]
    if not argument(args, kwargs, 3, "accumulate", False) or not indexed or not target.numel():
        return
    n = math.prod(torch.broadcast_shapes(*(shape for _, shape, _ in places)))
    made(result)
    linear: list[tuple[int, int]] = []
    listed = ways.take(*(n * mask.dim() * _LONG for mask in filter(is_mask, indices)), op="index_put mask")
    for _, _, index in places:
        here = not ways.memory.ignores(index.untyped_storage())
        wrapped = ways.take(n * _LONG if here else 0, op="index_put index")
        strided = ways.take(n * _LONG, op="index_put index")
        ways.give(wrapped)
        if linear:
            ways.give(strided)  # added to the first
        linear = linear or strided
    ways.give(listed)
    held, op = linear, "index_put sort"
    written = n * target.numel() // math.prod(target.shape[d] for d in indexed)
    if value.numel() < written or not value.is_contiguous():
        held += ways.take(written * value.element_size(), op="index_put values")
    if indexed != list(range(indexed[0], indexed[-1] + 1)):
        held += ways.take(target.nbytes, op="index_put transposed")
    held += ways.take(n * _LONG, n * _LONG, n * _LONG, op=op)
    inner = math.prod(target.shape[indexed[-1] + 1 :])
    ways.use(radix_sort_bytes(ways.card, n, _LONG, _LONG, _bits_of((target.numel() - 1) // inner)), op=op)
    ways.give(held)


def _places(indices: Any) -> Iterator[tuple[int, tuple[int, ...], Tensor]]:
    """Each dimension that is indexed, the shape of its indices, and where these come from: a mask indexes as many as it has, by
    lists of what it selects (`expandTensors`)."""
    d = 0
    for index in indices:
        if is_mask(index):
            count = values.selected(index)
            yield from ((d + i, (index.numel() if count is None else count,), index) for i in range(index.dim()))
            d += index.dim()
            continue
        if isinstance(index, Tensor):
            yield d, tuple(index.shape), index
        d += 1


@rule("sort")
def _sort(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Sort.cpp: up to 4096 along the dimension in place; more are sorted by key, and several rows once more by row."""
    source = args[0]
    dim = argument(args, kwargs, 1, "dim", -1)
    made(result[0])
    if not source.dim() or not source.numel():
        return
    length = source.shape[dim]
    made(result[1])
    if length <= 4096:
        ways.use(length * _LONG if length > 1 else 0, op="sort positions")
        return
    n, key, rows = source.numel(), source.element_size(), source.numel() // length
    turned = source.transpose(dim, -1)
    held = ways.take(copied(turned), copied(turned), n * _LONG if copied(turned) else 0, op="sort copy")
    if rows == 1 or length >= 1_000_000:
        held += ways.take(length * _LONG, op="sort")
        ways.use(radix_sort_bytes(ways.card, length, key, _LONG), op="sort")
    elif rows < 128:
        held += ways.take(n * _LONG, n * _LONG, op="sort")
        keys = ways.take(n * key, op="sort")
        ways.use(radix_sort_bytes(ways.card, n, key, _LONG), op="sort")
        ways.give(keys)
        ways.use(radix_sort_bytes(ways.card, n, _LONG, _LONG, _bits_of(rows)), op="sort")
    else:
        held += ways.take(n * _LONG, op="sort")
        ways.use(_laid_out(n * key, n * _LONG), op="sort")
    ways.give(held)


@rule("randperm")
def _randperm(ways: Ways, args: Any, kwargs: Any, result: Any, made: Made) -> None:
    """Randperm.cu: random keys, as wide as duplicates are unlikely, are sorted together with the positions."""
    n, item = result.numel(), result.element_size()
    made(result)
    if n < 2:
        return
    ways.use(item, op="randperm")
    bits = math.ceil(math.log2(n - (6 * n * n + 1) / (math.log(0.9) * 12)))
    key = 4 if bits <= 32 else 8
    held = ways.take(n * item, n * key, n * key, op="randperm sort")
    ways.use(radix_sort_bytes(ways.card, n, key, item, bits), op="randperm sort")
    ways.give(held)
