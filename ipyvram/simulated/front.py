"""The front of the simulated card: what the cell's own calls see and say about devices, through a `TorchFunctionMode`.

Tensors on ``meta`` answer that they are on ``cuda:0``; ``device="cuda"``, ``.to("cuda")`` and ``.cuda()`` mean ``meta``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import graph as autograd_graph
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from ipyvram.patches import Patches
from ipyvram.simulated import values
from ipyvram.simulated.placeholders import host_copy
from ipyvram.simulated.typed import card_dtype

CARD = torch.device("cuda", 0)
META = torch.device("meta")

#: Data that torch reads value by value.
_PLAIN = (list, tuple, range, bool, int, float, complex)

Handler = Callable[["Front", Any, Any, dict[str, Any]], Any]
_HANDLERS: dict[Any, Handler] = {}


def place(device: Any) -> Any:
    """Where a device named by the cell is here: accelerators are the card, the host stays the host."""
    if device is None or (isinstance(device, torch.device) and device.type in ("cpu", "meta")):
        return device
    if isinstance(device, int):
        return META
    if isinstance(device, str):
        return device if device.split(":")[0] in ("cpu", "meta") else META
    return META


def seen(device: torch.device) -> torch.device:
    """The other way round: what the cell is told."""
    return CARD if device.type == "meta" else device


class Front(TorchFunctionMode):
    """The function mode.

    Parameters
    ----------
    before : callable
        Called with each function and what it is given.

    Attributes
    ----------
    over : bool
        The estimate has ended, and a thread that still runs is to find everything as it is.
    """

    over = False

    def __init__(self, before: Callable[[Any, Any, dict[str, Any]], None]) -> None:
        super().__init__()
        self._before = before

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.over:
            return func(*args, **kwargs)
        self._before(func, args, kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(self, func, args, kwargs)
        if kwargs:
            if kwargs.get("device") is not None:
                kwargs = {**kwargs, "device": place(kwargs["device"])}
            if kwargs.get("generator") is not None and _is_on_card(args, kwargs):
                kwargs = {k: v for k, v in kwargs.items() if k != "generator"}
        return func(*args, **kwargs)


def _is_on_card(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a random operator draws on the card: its generator is the card's, which no value here depends on."""
    device = kwargs.get("device")
    if device is not None:
        return torch.device(device).type == "meta"
    return any(isinstance(a, Tensor) and a.device.type == "meta" for a in args)


def _for(*funcs: Any) -> Callable[[Handler], Handler]:
    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(funcs, handler))
        return handler

    return register


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


# -- what a tensor says of itself ------------------------------------------------------------------------------------------


@_for(_getter("device"))
def _device(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> torch.device:
    return seen(func(*args))


@_for(_getter("is_cuda"))
def _is_cuda(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    return bool(args[0].device.type == "meta")


@_for(_getter("is_meta"))
def _is_meta(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    return False


@_for(Tensor.get_device)
def _get_device(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> int:
    return 0 if args[0].device.type == "meta" else -1


@_for(Tensor.type)
def _type(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    if len(args) > 1 or kwargs:
        wanted = args[1] if len(args) > 1 else kwargs.get("dtype")
        dtype = card_dtype(wanted)
        if dtype is not None:
            return args[0].to(META, dtype)
        return func(*args, **kwargs)
    name = str(func(*args))
    return name.replace("torch.meta.", "torch.cuda.").replace("torch.Meta", "torch.cuda.")


@_for(Tensor.is_pinned)
def _is_pinned(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    return False


@_for(Tensor.pin_memory)
def _pin_memory(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    return args[0]  # type: ignore[no-any-return]


@_for(Tensor.record_stream)
def _record_stream(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Streams have no effect on what is allocated here."""


@_for(Tensor.__repr__, Tensor.__str__)
def _repr(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> str:
    tensor = args[0]
    if tensor.device.type != "meta":
        return str(func(*args, **kwargs))
    if tensor.numel() > 1000:
        return f"tensor(..., device='{CARD}', size={tuple(tensor.shape)}, dtype={tensor.dtype})"
    tail = f", grad_fn=<{tensor.grad_fn.name()}>)" if tensor.grad_fn is not None else ")"
    return repr(host_copy(tensor))[:-1] + f", device='{CARD}'" + tail


@_for(Tensor.__format__)
def _format(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> str:
    tensor = args[0]
    if tensor.device.type == "meta" and tensor.dim() == 0:
        return format(tensor.item(), args[1])
    return (
        format(_repr(front, Tensor.__repr__, args[:1], {}), args[1]) if tensor.is_meta else str(func(*args, **kwargs))
    )


@_for(Tensor.new)
def _new(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """``gradient.new(indices, values, size)`` of sparse optimizers: torch has no old-style name for meta's sparse tensors."""
    if len(args) == 4 and args[0].layout is torch.sparse_coo and args[1].device.type == "meta":
        return torch.ops.aten._sparse_coo_tensor_unsafe(*args[1:])  # type: ignore[no-any-return]
    return func(*args, **kwargs)  # type: ignore[no-any-return]


@_for(Tensor.numpy, Tensor.__array__)
def _numpy(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The card's own words, which name the way out: torch would speak of ``meta``."""
    if args[0].device.type == "meta" and not kwargs.get("force"):
        raise TypeError(
            f"can't convert {CARD} device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )
    return func(*args, **kwargs)


# -- where a tensor goes ---------------------------------------------------------------------------------------------------


@_for(Tensor.to)
def _to(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    rest = tuple(
        place(a) if isinstance(a, (str, int, torch.device)) and not isinstance(a, bool) else a for a in args[1:2]
    )
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": place(kwargs["device"])}
    return func(args[0], *rest, *args[2:], **kwargs)  # type: ignore[no-any-return]


@_for(torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
def _from_data(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """A list, or a number, becomes a tensor on ``meta`` without an operator: what it would ask for is asked for here."""
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": place(kwargs["device"])}
    made: Tensor = func(*args, **kwargs)
    if made.device.type != "meta" or not isinstance(args[-1] if args else None, _PLAIN):
        return made
    empty = torch.empty(made.shape, dtype=made.dtype, device=META, requires_grad=made.requires_grad)
    values.sent(empty, func(*args, **{**kwargs, "device": "cpu"}))
    return empty


@_for(torch._C._nn._parse_to)
def _parse_to(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """``Module.to(0)``: without an accelerator torch does not know what a number means."""
    if args and isinstance(args[0], int) and not isinstance(args[0], bool):
        args = (CARD, *args[1:])
    return func(*args, **kwargs)


@_for(Tensor.detach, Tensor.requires_grad_)
def _of_a_lazy_model(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """``Module.to`` makes a parameter of each anew; one that has no memory yet stays itself."""
    return args[0] if nn.parameter.is_lazy(args[0]) else func(*args, **kwargs)


@_for(Tensor.cuda)
def _cuda(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    return args[0].to(META)  # type: ignore[no-any-return]


# -- answers that programs check: what stands in for a number is finite ------------------------------------------------------

_TRUE = "_ipyvram_true"


@_for(torch.isfinite, Tensor.isfinite)
def _isfinite(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    result: Tensor = func(*args, **kwargs)
    if result.device.type == "meta":
        setattr(result, _TRUE, True)
    return result


@_for(torch.all, Tensor.all, torch.any, Tensor.any)
def _all_of(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Tensor:
    result: Tensor = func(*args, **kwargs)
    if getattr(args[0], _TRUE, False):
        setattr(result, _TRUE, True)
    return result


@_for(Tensor.__bool__, Tensor.item)
def _truth(front: Front, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    return True if getattr(args[0], _TRUE, False) else func(*args, **kwargs)


# -- backward: the cell's code inside it sees the card as well ---------------------------------------------------------------


def keep_on_in_the_engine(patches: Patches, front: Callable[[], Front], left: dict[tuple[int, ...], str]) -> None:
    """The mode is off while a function that it has seen runs; the engine runs code of the cell, so there it is on again.

    Gradients that the cell gives for what is on the card are put there; ``left`` takes their shapes, see `HostTensors.left`.
    """
    original = autograd_graph._engine_run_backward

    def placed(output: Any, gradient: Any) -> Any:
        if not isinstance(gradient, Tensor) or gradient.device.type != "cpu" or output.device.type != "meta":
            return gradient
        left.setdefault(tuple(gradient.shape), "backward")
        return gradient.to(META)

    def _engine_run_backward(outputs: Any, gradients: Any, *args: Any, **kwargs: Any) -> Any:
        with torch._C.DisableTorchFunction():  # else a tensor says what the cell is told of it
            gradients = tuple(map(placed, outputs, gradients))
        if any(isinstance(mode, Front) for mode in _get_current_function_mode_stack()):
            return original(outputs, gradients, *args, **kwargs)
        with front():
            return original(outputs, gradients, *args, **kwargs)

    patches.set(autograd_graph, "_engine_run_backward", _engine_run_backward)
    patches.set(torch.autograd, "_engine_run_backward", _engine_run_backward)
