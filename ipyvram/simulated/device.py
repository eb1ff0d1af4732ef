"""The simulated card's operators: every operator on ``meta`` runs here, and what it allocates goes to `DeviceMemory`.

Operators on host tensors pass through; before one writes into a host tensor that was there before the cell, its bytes
are set aside (`HostTensors`), so that they can be put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ipyvram.probes.tensors import plain_tensors, storage_of
from ipyvram.simulated import (  # noqa: F401 - some only add rules to `within`
    convolutions,
    folding,
    layouts,
    normalization,
    placeholders,
    sorting,
    sparse,
    values,
    within,
)
from ipyvram.simulated.arguments import argument, tensors_in, written
from ipyvram.simulated.descent import Descent
from ipyvram.simulated.host import HostTensors
from ipyvram.simulated.memory import DeviceMemory
from ipyvram.simulated.pieces import composition, taken_apart
from ipyvram.simulated.refusal import CannotEstimate
from ipyvram.simulated.ways import Ways

Operator = Any  # torch._ops.OpOverload


#: ``x[i] = 2.0`` makes a number on the host if ``x`` is on the card (THPVariable_setitem), and else a tensor beside ``x``.
_INDEXED = frozenset({torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default})
_SCALAR, _COPY = torch.ops.aten.scalar_tensor.default, torch.ops.aten.copy_.default
#: To add up, they make one index of all, those on the host there (IndexingUtils.cpp `makeLinearIndex`).
_SUMMING = ("aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index_put")
#: Their second argument is numbers on the host, wherever the first is.
_COUNTING = ("aten::_pack_padded_sequence", "aten::_pad_packed_sequence")
#: Of errors of operators that need the numbers to tell what they return.
_WITHOUT_VALUES = ("cannot be called on meta tensors", "data-dependent shape")


class OnCard(TorchDispatchMode):
    """The dispatch mode.

    Parameters
    ----------
    memory : DeviceMemory
    ways : Ways
        What CUDA allocates besides results.
    host : HostTensors
    note : callable
        Takes one line for the report.
    check : callable
        Called once for each operator on the card; may raise to end the cell.
    kernels : dict
        `CudaKernels.by_operator`.
    descent : Descent, optional
        Told of operators on the host.

    Attributes
    ----------
    over : bool
        See `Front`.
    """

    over = False

    def __init__(
        self,
        memory: DeviceMemory,
        ways: Ways,
        host: HostTensors,
        note: Callable[[str], None],
        check: Callable[[], None],
        kernels: dict[Operator, Callable[..., Any]],
        descent: Descent | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ways, self.host, self.note = ways, host, note
        self._memory, self._check, self._kernels, self._descent = memory, check, kernels, descent
        self._matrices: dict[int, tuple[Tensor, Tensor]] = {}  # sparse ones of the host, and theirs on the card
        self._number: torch.UntypedStorage | None = None  # of the newest `_SCALAR` that nothing has used
        self._folding = folding.Folding(memory.is_newest)

    def __torch_dispatch__(self, func: Operator, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            if self.over:
                return func(*args, **kwargs)
            if NestedTensor in types:  # it asks the device that it was told for memory, from where no mode hears it
                raise CannotEstimate("jagged tensors cannot be on the simulated card, so this cell has no estimate")
            on_card, hosts = _sides(args, kwargs)
            device = kwargs.get("device")
            if not on_card and (device is None or torch.device(device).type != "meta"):
                return self._on_host(func, args, kwargs, hosts)
            self._check()
            return self._on_card(func, args, kwargs, hosts if on_card else [])

    def _on_host(self, func: Operator, args: Any, kwargs: dict[str, Any], hosts: list[Tensor]) -> Any:
        self.host.before_write(written(func, args, kwargs))
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}  # the host has no driver to pin it with
        result = func(*args, **kwargs)
        if self._descent is not None and hosts:
            # The host may say which of the card's values are wanted.
            self._descent.made(hosts[:1] if func in _INDEXED else hosts, tensors_in((result,)))
        return result

    def _on_card(self, func: Operator, args: Any, kwargs: dict[str, Any], hosts: list[Tensor]) -> Any:
        """Run it; ``hosts`` are those of its tensors that are not on the card, though others are."""
        if torch.is_inference_mode_enabled() and func not in placeholders.TABLE:
            kernel = self._kernels.get(func) or taken_apart(func)
            if kernel is not None:
                with self:
                    return kernel(*args, **kwargs)
        if func is _SCALAR:
            return self._number_for(func, args, kwargs)
        func = self._folding.in_place(func, args) or func
        special = placeholders.TABLE.get(func)
        if hosts and special in placeholders.ALL_ON_CARD:
            (args, kwargs), hosts = self._gather(func, args, kwargs), []
        result = NotImplemented if special is None else special(self, func, args, kwargs)
        if result is not NotImplemented:
            return self._account(func, args, kwargs, result)
        if hosts and func._schema.name not in _COUNTING:
            args, kwargs = self._gather(func, args, kwargs)
        composed = composition(func)
        try:
            if composed is not None:
                with self:
                    return composed(*args, **kwargs)  # its pieces come here one by one
            result = func(*args, **kwargs)
        except RuntimeError as error:
            largest = placeholders.OF_OTHERS.get(func._schema.name)
            if largest is not None:
                return self._account(func, args, kwargs, largest(self, func, args, kwargs))
            if isinstance(error, NotImplementedError) or any(words in str(error) for words in _WITHOUT_VALUES):
                raise CannotEstimate(_refusal(func)) from error
            raise
        return self._account(func, args, kwargs, result)

    def _number_for(self, func: Operator, args: Any, kwargs: dict[str, Any]) -> Tensor:
        """A number as a tensor: counted where an operator other than a copy uses it."""
        number: Tensor = func(*args, **kwargs)
        self._number = number.untyped_storage()
        values.follow(func, (), args, kwargs, number)
        return number

    # -- what an operator used and made ------------------------------------------------------------------------------

    def _account(self, func: Operator, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        def count(*counted: Any) -> None:
            for tensor in tensors_in(counted):
                if tensor.device.type == "meta":
                    self.see(func, tensor)

        count(*args, *(value for value in kwargs.values() if value is not result))  # an ``out`` grows later
        order = within.RULES.get(func)
        if order is not None:
            order(self.ways, args, kwargs, result, count)
        count(result)
        self.ways.after(func, args, kwargs, result)
        values.follow(func, tuple(written(func, args, kwargs)), args, kwargs, result)
        return result

    def see(self, func: Operator, tensor: Tensor) -> None:
        """Count the storage of a tensor, or those that a sparse one is made of."""
        for part in (tensor,) if tensor.layout is torch.strided else plain_tensors(tensor):
            storage = storage_of(part)
            if storage is None:
                self.note(f"{func._schema.name}: a tensor without a plain storage was not counted")
                continue
            if self._number is not None and storage._cdata == self._number._cdata:
                if func is _COPY or func.is_view:
                    continue
                self._number = None
            self._memory.see(storage, func._schema.name.replace("::", "."), part)

    def known(self, tensor: Tensor) -> Tensor | None:
        """What the cell, or the size of a result, is told of a tensor's values, where they are known: not to be written into."""
        value = values.of(tensor)
        if value is None:
            return None
        if value.guessed:
            self.note(values.BALANCED)
        return value.tensor

    def _gather(self, func: Operator, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Host tensors that meet tensors on the card in one operator, as tensors on the card."""
        sums = func._schema.name in _SUMMING and argument(args, kwargs, 3, "accumulate", False)

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value if value.device.type == "meta" else self._moved(func, value, sums)
            if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
                return type(value)(moved(v) for v in value) if not hasattr(value, "_fields") else value
            return value

        return tuple(moved(a) for a in args), {k: moved(v) for k, v in kwargs.items()}

    def _moved(self, func: Operator, tensor: Tensor, sums: bool) -> Tensor:
        if tensor.layout is torch.sparse_coo:
            return self.sparse(func, tensor)
        copy = torch.empty_like(tensor, device="meta")
        values.sent(copy, tensor)
        if tensor.dim() == 0:
            return copy  # a kernel argument, not memory
        if sums:
            self._memory.ignore(copy.untyped_storage())  # what is made of it on the host is moved
        else:
            self.see(func, copy)
        if not _mixes(func, tensor):
            self.host.left.setdefault(tuple(tensor.shape), func._schema.name.split("::")[-1])
        return copy

    def sparse(self, func: Operator, matrix: Tensor) -> Tensor:
        """A sparse matrix on the card: of one of the host's the same each time, as an earlier cell could make it nowhere else."""
        if matrix.device.type == "meta":
            return matrix
        known = self._matrices.get(id(matrix))
        if known is None or known[0] is not matrix:
            known = self._matrices[id(matrix)] = matrix, sparse.like(matrix)
        self.see(func, known[1])
        return known[1]


def _sides(args: Any, kwargs: dict[str, Any]) -> tuple[bool, list[Tensor]]:
    """Whether anything is on the card, and what is on the host."""
    on_card, hosts = False, []
    for tensor in tensors_in((*args, *kwargs.values())):
        if tensor.device.type == "meta":
            on_card = True
        else:
            hosts.append(tensor)
    return on_card, hosts


def _mixes(func: Operator, value: Tensor) -> bool:
    """Whether the operator may have this on the host beside tensors on the card: an index, or lengths that `ctc_loss` divides by."""
    return "index" in func._schema.name or (func._schema.name == "aten::div" and not value.is_floating_point())


def _refusal(func: Operator) -> str:
    name = func._schema.name
    if name.startswith("aten::"):
        return f"the operator {name} cannot run without a device, so this cell has no estimate"
    return (
        f"the operator {name} comes from an extension that does not say what its results look like (it has no meta "
        "kernel), so this cell has no estimate; register one with torch.library.register_fake, or measure the cell"
    )
