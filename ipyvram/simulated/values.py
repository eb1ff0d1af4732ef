"""What is known of values on the card: operators on whole numbers, masks and counts in, the same worked out on the host.

Nothing is computed on the card, but some of what is there is known all the same: whole numbers and masks that the host sent
(labels, lengths, padding), what operators make without any numbers (``arange``, ``zeros``), and what follows from these. A
storage on ``meta`` that is known carries a copy of its bytes on the host, so views of it need no rule. An operator whose every
argument is known is run on these; one that writes something else makes its target unknown.

Where a program chooses by numbers that nobody knows (``topk``, ``argmax``, a sort, a draw), each entry is taken to be chosen
equally often. What follows from such a guess is marked as guessed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ipyvram.simulated import choices
from ipyvram.simulated.arguments import tensors_in

BALANCED = (
    "what `topk`, `argmax`, a sort or a draw chooses depends on values: every entry was taken to be chosen equally often "
    "(for experts, balanced routing)"
)
#: Elements of what is followed, and of what is followed of fractions: masks by sums and the like, not weights and activations.
MAX_ELEMENTS, MAX_FRACTIONS = 1 << 24, 1 << 20
#: Elements of fractions that come from the host: numbers such as a threshold.
MAX_NUMBERS = 16

_ATTRIBUTE = "_ipyvram_known"
_MOST = "_ipyvram_most"  # of what is not known: how many of its elements are not zero, at most
#: Operators that look at the shape of their first argument, not at its values.
_OF_SHAPES = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})
#: Whatever was there, afterwards it is known.
_FILLING = frozenset({"fill_", "zero_", "copy_"})
#: They make memory without values, or are many at once (optimizers).
_WITHOUT_VALUES = ("empty", "new_empty", "resize", "set_", "_foreach_", "_fused_", "_amp_", "record_stream")


class _Known(NamedTuple):
    """The bytes of a storage, and whether a guess is among what they follow from."""

    storage: torch.UntypedStorage
    guessed: bool


class Value(NamedTuple):
    """What a tensor on the card holds; not to be written into."""

    tensor: Tensor
    guessed: bool


class _Unknown(Exception):
    pass


def of(tensor: Tensor) -> Value | None:
    """What is known of a tensor, None where that is nothing."""
    if tensor.device.type != "meta":
        followed = tensor.device.type == "cpu" and _from_the_host(tensor)
        return Value(tensor, False) if followed else None
    if tensor.layout is not torch.strided or tensor.is_conj() or tensor.is_neg():
        return None
    storage = tensor.untyped_storage()
    known: _Known | None = getattr(storage, _ATTRIBUTE, None)
    if known is None or known.storage.nbytes() != storage.nbytes():
        return None
    return Value(_seen(known.storage, tensor), known.guessed)


def selected(mask: Tensor) -> int | None:
    """How many places a mask selects, None where that is not known."""
    known = of(mask)
    return None if known is None else int(known.tensor.count_nonzero())


def keep(tensor: Tensor, value: Tensor, guessed: bool = False) -> None:
    """``tensor``, made on the card just now, holds ``value``."""
    if tensor.layout is not torch.strided or tensor.shape != value.shape or not _is_followed(tensor):
        return
    storage = tensor.untyped_storage()
    copy = torch.UntypedStorage(storage.nbytes(), device="cpu")
    _seen(copy, tensor).copy_(value.detach())
    setattr(storage, _ATTRIBUTE, _Known(copy, guessed))


def sent(tensor: Tensor, value: Tensor) -> None:
    """``tensor`` on the card is a copy of ``value`` on the host, as far as such values are followed."""
    if _from_the_host(value):
        keep(tensor, value)


def moved(storage: torch.UntypedStorage, tensor: Tensor) -> None:
    """``storage`` on the card holds what that of ``tensor`` held."""
    source = tensor.untyped_storage()
    if tensor.device.type == "cpu" and _from_the_host(tensor) and source.nbytes() <= MAX_ELEMENTS * 8:
        setattr(storage, _ATTRIBUTE, _Known(source.clone(), False))


def most(tensor: Tensor) -> int | None:
    """How many elements of a tensor are not zero, at most; None where that may be all."""
    value = of(tensor)
    if value is not None:
        return int(value.tensor.count_nonzero())
    if tensor.layout is not torch.strided:
        return None
    found: int | None = getattr(tensor.untyped_storage(), _MOST, None)
    return found


def forget(tensor: Tensor) -> None:
    """Something unknown is written into a tensor."""
    if tensor.layout is torch.strided:
        storage = tensor.untyped_storage()
        for name in (_ATTRIBUTE, _MOST):
            if getattr(storage, name, None) is not None:
                setattr(storage, name, None)


def follow(func: Any, written: tuple[Tensor, ...], args: Any, kwargs: dict[str, Any], result: Any) -> None:
    """An operator ran on the card: what is known of its results, and still known of what it wrote into.

    Parameters
    ----------
    func : OpOverload
    written : tuple of Tensor
        Those of the arguments that it writes into.
    args, kwargs
        As it was called.
    result
        As it returned.
    """
    kind = _kind(func)
    if kind.ignored or any(t.device.type != "meta" for t in written):
        return  # the latter: copied to the host, where values are real
    first = args[0] if args else None
    if kind.plain and not written and isinstance(first, Tensor) and of(first) is None:
        return  # as of nearly all
    made = list(tensors_in((result,)))
    if not (written or made):
        return
    try:
        _work_out(func, kind, written, args, kwargs, result)
    except Exception:  # not all is known, or an operator on the host dislikes what it is given
        few = kind.counting(args, most) if kind.counting is not None else None
        for tensor in written:
            forget(tensor)
        if few is not None:
            setattr((written or made)[0].untyped_storage(), _MOST, few)
        chosen = kind.choosing(made, args, kwargs) if kind.choosing is not None and not written else None
        if chosen is not None:
            keep(*chosen, guessed=True)


class _Kind(NamedTuple):
    """What an operator's name tells: ``ignored`` makes views, ``free`` takes a first argument whose values do not matter."""

    ignored: bool
    valueless: bool
    free: bool
    filling: bool
    choosing: choices.Choosing | None
    counting: choices.Counting | None

    @property
    def plain(self) -> bool:
        return not self.free and self.choosing is None and self.counting is None


@functools.cache
def _kind(func: Any) -> _Kind:
    name = func._schema.name.removeprefix("aten::")
    valueless = name.startswith(_WITHOUT_VALUES) or torch.Tag.nondeterministic_seeded in func.tags
    filling = name in _FILLING
    return _Kind(
        func.is_view,
        valueless,
        filling or name in _OF_SHAPES,
        filling,
        choices.CHOOSING.get(name),
        choices.COUNTING.get(name),
    )


def _work_out(
    func: Any, kind: _Kind, written: tuple[Tensor, ...], args: Any, kwargs: dict[str, Any], result: Any
) -> None:
    """Run it on the host, into what is known of its arguments.

    Raises
    ------
    _Unknown
        What it takes is not known.
    """
    if kind.valueless or not all(map(_is_followed, tensors_in((result,)))):
        raise _Unknown
    inputs = _Inputs(args[0] if kind.free else None, kind.filling)
    on_host, named = inputs.of(args), {k: _placed(k, inputs.of(v)) for k, v in kwargs.items()}
    value = func(*on_host, **named)
    if inputs.guessed:
        for tensor in written:
            storage = tensor.untyped_storage()
            setattr(storage, _ATTRIBUTE, getattr(storage, _ATTRIBUTE)._replace(guessed=True))
    given, taken = _storages((*written, *args)), _storages(on_host)
    for tensor, known in zip(_several(result), _several(value), strict=True):
        if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in given:
            _take(tensor, known, inputs.guessed, taken)


def _several(result: Any) -> Any:
    return result if isinstance(result, (list, tuple)) else (result,)


def _storages(values: Iterable[Any]) -> set[int]:
    return {tensor.untyped_storage()._cdata for tensor in tensors_in(values)}


def _take(tensor: Tensor, value: Tensor, guessed: bool, others: set[int]) -> None:
    """As `keep`; memory that is laid out alike and is nobody else's is not copied."""
    storage, source = tensor.untyped_storage(), value.untyped_storage()
    like = (tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype, storage.nbytes())
    if (
        like != (value.shape, value.stride(), value.storage_offset(), value.dtype, source.nbytes())
        or source._cdata in others
    ):
        keep(tensor, value, guessed)
    else:
        setattr(storage, _ATTRIBUTE, _Known(source, guessed))


class _Inputs:
    """Arguments of an operator as they are on the host.

    Parameters
    ----------
    free : Tensor, optional
        The argument whose values do not matter.
    target : bool
        Whether this one is written into, and not only looked at for its shape.
    """

    def __init__(self, free: Tensor | None, target: bool) -> None:
        self._free, self._target = free, target
        self.guessed = False

    def of(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, (list, tuple)):
            return [self.of(item) for item in value]
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        known = of(tensor)
        if known is None and tensor is self._free and _is_followed(tensor):
            if not self._target:
                return torch.empty(tensor.shape, dtype=tensor.dtype)
            storage = tensor.untyped_storage()
            if tensor.nbytes == storage.nbytes():
                keep(tensor, torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))
                known = of(tensor)
        if known is None:
            raise _Unknown
        self.guessed |= known.guessed
        return known.tensor


def _placed(name: str, value: Any) -> Any:
    return torch.device("cpu") if name == "device" and value is not None else value


def _seen(storage: torch.UntypedStorage, tensor: Tensor) -> Tensor:
    """The same part of ``storage`` as a tensor on the card is of its own."""
    view = torch.empty(0, dtype=tensor.dtype)
    view.set_(storage, tensor.storage_offset(), tensor.shape, tensor.stride())
    return view


def _is_followed(tensor: Tensor, most_fractions: int = MAX_FRACTIONS) -> bool:
    fractions = tensor.is_floating_point() or tensor.is_complex()
    return tensor.numel() <= (most_fractions if fractions else MAX_ELEMENTS)


def _from_the_host(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and _is_followed(tensor, MAX_NUMBERS)
