"""The simulated card's operators: every operator on ``meta`` runs here, and what it allocates goes to `DeviceMemory`.

Operators on host tensors pass through; before one writes into a host tensor that was there before the cell, its bytes
are set aside (`HostTensors`), so that they can be put back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nested._internal.nested_tensor import NestedTensor
from torch.utils._python_dispatch import TorchDispatchMode

from ipyvram.simulated import (  # noqa: F401 - two add rules to `within`
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


class _Plan(NamedTuple):
    """What an operator's schema tells: positions and names of the arguments it writes into."""

    written: tuple[tuple[int, str], ...]
    inplace: bool


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
        self._memory, self._ways, self._host, self._note, self._check = memory, ways, host, note, check
        self._kernels, self._descent = kernels, descent
        self._matrices: dict[int, tuple[Tensor, Tensor]] = {}  # sparse ones of the host, and theirs on the card
        self._plans: dict[Operator, _Plan] = {}
        self._number: torch.UntypedStorage | None = None  # of the newest `_SCALAR` that nothing has used
        self._folding = folding.Folding(memory.is_newest)

    def __torch_dispatch__(self, func: Operator, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            if self.over:
                return func(*args, **kwargs)
            if (
                NestedTensor in types
            ):  # they ask for memory on the device that they were told, from where no mode hears them
                raise CannotEstimate("jagged tensors cannot be on the simulated card, so this cell has no estimate")
            return self._run(func, args, kwargs)

    def _run(self, func: Operator, args: Any, kwargs: dict[str, Any]) -> Any:
        plan = self._plans.get(func)
        if plan is None:
            plan = self._plans[func] = _plan(func)
        on_card, hosts = False, []
        for tensor in tensors_of(args, kwargs):
            if tensor.device.type == "meta":
                on_card = True
            else:
                hosts.append(tensor)
        device = kwargs.get("device")
        if not on_card and (device is None or torch.device(device).type != "meta"):
            if plan.written:
                self._host.before_write(_written(plan, args, kwargs))
            if kwargs.get("pin_memory"):
                kwargs = {**kwargs, "pin_memory": False}  # the host has no driver to pin it with
            result = func(*args, **kwargs)
            if self._descent is not None and hosts:
                # The host may say which of the card's values are wanted.
                self._descent.made(hosts[:1] if func in _INDEXED else hosts, results_of(result))
            return result
        self._check()
        if torch.is_inference_mode_enabled() and func not in placeholders.TABLE:
            kernel = self._kernels.get(func) or taken_apart(func)
            if kernel is not None:
                with self:
                    return kernel(*args, **kwargs)
        if func is _SCALAR:
            number = func(*args, **kwargs)
            self._number = number.untyped_storage()
            values.follow(func, (), args, kwargs, number)
            return number  # counted where an operator other than a copy uses it
        engine = torch._C._current_graph_task_id() != -1
        inside = self._folding.in_place(func, args) if engine else None
        special = placeholders.TABLE.get(inside or func)
        if special is not None:
            result = special(self, inside or func, args, kwargs)
            if result is not NotImplemented:
                return self._account(inside or func, args, kwargs, result)
        if on_card and hosts and func._schema.name not in _COUNTING:
            args, kwargs = self._gather(func, args, kwargs)
        if inside is not None:
            inside(*args, **kwargs)
            return self._account(inside, args, kwargs, args[0])
        composed = composition(func)
        try:
            if composed is not None:
                with self:
                    return composed(*args, **kwargs)
            result = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            largest = placeholders.OF_OTHERS.get(func._schema.name)
            if largest is not None:
                return self._account(func, args, kwargs, largest(self, func, args, kwargs))
            if isinstance(error, NotImplementedError) or any(words in str(error) for words in _WITHOUT_VALUES):
                raise CannotEstimate(_refusal(func)) from error
            raise
        return self._account(func, args, kwargs, result)

    # -- what an operator used and made ------------------------------------------------------------------------------

    def _account(self, func: Operator, args: Any, kwargs: dict[str, Any], result: Any) -> Any:
        for tensor in tensors_of(args, kwargs):
            if tensor.device.type == "meta":
                self.see(func, tensor)
        order = within.RULES.get(func)
        if order is not None:
            order(self._ways, args, kwargs, result, functools.partial(self.see, func))
        for tensor in results_of(result):
            if tensor.device.type == "meta":
                self.see(func, tensor)
        self._ways.after(func, args, kwargs, result)
        plan = self._plans.get(func) or _plan(func)
        values.follow(func, tuple(_written(plan, args, kwargs)), args, kwargs, result)
        return result

    def see(self, func: Operator, tensor: Tensor) -> None:
        """Count the storage of a tensor, or those that a sparse one is made of."""
        for part in _parts(tensor):
            try:
                storage = part.untyped_storage()
            except (NotImplementedError, RuntimeError):
                self._note(f"{func._schema.name}: a tensor without a plain storage was not counted")
                continue
            if self._number is not None and storage._cdata == self._number._cdata:
                if func is _COPY or func.is_view:
                    continue
                self._number = None
            self._memory.see(storage, func._schema.name.replace("::", "."), part)

    def note(self, text: str) -> None:
        self._note(text)

    def known(self, tensor: Tensor) -> Tensor | None:
        """What the cell, or the size of a result, is told of a tensor's values, where they are known: not to be written into."""
        value = values.of(tensor)
        if value is None:
            return None
        if value.guessed:
            self._note(values.BALANCED)
        return value.tensor

    def _gather(self, func: Operator, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Host tensors that meet tensors on the card in one operator, as tensors on the card."""
        sums = func._schema.name in _SUMMING and (args[3] if len(args) > 3 else kwargs.get("accumulate", False))

        def moved(value: Any) -> Any:
            if isinstance(value, Tensor) and value.device.type != "meta":
                if value.layout is torch.sparse_coo:
                    return self.sparse(func, value)
                copy = torch.empty_like(value, device="meta")
                values.sent(copy, value)
                if value.dim() == 0:
                    return copy  # a kernel argument, not memory
                if sums:
                    self._memory.ignore(copy.untyped_storage())  # what is made of it on the host is moved
                else:
                    self.see(func, copy)
                if "index" not in func._schema.name:  # only indexing may mix devices
                    shape = "×".join(map(str, value.shape))
                    self._note(
                        f"a host tensor ({shape}) met tensors on the card in {func._schema.name.split('::')[-1]} and was "
                        "moved there; on a real card it has to be moved by the cell"
                    )
                return copy
            if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
                return type(value)(moved(v) for v in value) if not hasattr(value, "_fields") else value
            return value

        return tuple(moved(a) for a in args), {k: moved(v) for k, v in kwargs.items()}

    def sparse(self, func: Operator, matrix: Tensor) -> Tensor:
        """A sparse matrix on the card: of one of the host's the same each time, as an earlier cell could make it nowhere else."""
        if matrix.device.type == "meta":
            return matrix
        known = self._matrices.get(id(matrix))
        if known is None or known[0] is not matrix:
            known = self._matrices[id(matrix)] = matrix, sparse.like(matrix)
        self.see(func, known[1])
        return known[1]


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout is torch.sparse_csr:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return (tensor,)


def tensors_of(args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """Tensors among an operator's arguments, in order; its lists are flat."""
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item
    for value in kwargs.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            for item in value:
                if isinstance(item, Tensor):
                    yield item


def results_of(result: Any) -> Iterator[Tensor]:
    """Tensors among an operator's results."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, (list, tuple)):
        for item in result:
            yield from results_of(item)


def _plan(func: Operator) -> _Plan:
    arguments = func._schema.arguments
    written = tuple((i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)
    return _Plan(written, bool(written))


def _written(plan: _Plan, args: Any, kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for position, name in plan.written:
        value = args[position] if position < len(args) else kwargs.get(name)
        yield from results_of(value)


def _refusal(func: Operator) -> str:
    name = func._schema.name
    if name.startswith("aten::"):
        return f"the operator {name} cannot run without a device, so this cell has no estimate"
    return (
        f"the operator {name} comes from an extension that does not say what its results look like (it has no meta "
        "kernel), so this cell has no estimate; register one with torch.library.register_fake, or measure the cell"
    )
