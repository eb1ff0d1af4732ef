"""Parts of torch that a cell calls and that would need a GPU, write files or take long: as they are while estimating."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import init
from torch.optim import swa_utils
from torch.utils import _foreach_utils as foreach
from torch.utils import checkpoint as checkpoints
from torch.utils.data import DataLoader
from torch.utils.data import dataloader as dataloaders

from ipyvram.cards import Card
from ipyvram.patches import Patches
from ipyvram.simulated import encoders, recurrent
from ipyvram.simulated.front import META, place, seen

_FILLS = ("uniform_", "normal_", "trunc_normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
          "kaiming_normal_", "orthogonal_", "sparse_")  # fmt: skip
#: Modules that begin so are torch's, or ours.
_TORCHS = ("torch.", "torchvision", "functorch", "ipyvram", "__main__")
_LARGE = 1 << 16  # elements from which filling a host weight costs time worth saving


def install(patches: Patches, card: Card, note: Callable[[str], None]) -> None:
    """Put the replacements in place.

    Parameters
    ----------
    card : Card
    note : callable
        Takes one line for the report.
    """
    _loading(patches)
    _files(patches, note)
    _compiling(patches, note)
    _checkpointing(patches)
    _lists(patches)
    for name in _FILLS:
        patches.set(init, name, _only_small(getattr(init, name)))
    patches.set(torch.nn.DataParallel, "forward", lambda self, *a, **k: self.module(*a, **k))  # there is one card
    patches.set(torch.nn.RNNBase, "flatten_parameters", recurrent.flatten)
    patches.set(torch.distributions.Distribution, "_validate_args", False)  # there are no values to check
    scaler = torch.amp.GradScaler
    patches.set(scaler, "_maybe_opt_step", lambda self, optimizer, state, *a, **k: optimizer.step(*a, **k))
    patches.set(torch, "Generator", _generator(torch.Generator))
    encoders.install(patches, card)
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    patches.later(lambda: torch.__future__.set_swap_module_params_on_conversion(swapped))
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter stays itself when it moves, as on a GPU
    # torch's own refuses where somebody refers to the tensor weakly, which is harmless as the object stays.
    patches.set(torch.utils, "swap_tensors", torch._C._swap_tensor_impl)


def _lists(patches: Patches) -> None:
    """Tensors on ``meta`` have kernels for whole lists of tensors, as those on a GPU have: C++ tells where a list is."""
    known = foreach._get_foreach_kernels_supported_devices
    for module in (foreach, swa_utils):
        patches.set(module, "_get_foreach_kernels_supported_devices", lambda: [*known(), "meta"])


def _loading(patches: Patches) -> None:
    """Loaders load in this process: worker processes take longer to start than the steps that are estimated."""

    def iterate(loader: Any) -> Any:
        if loader.num_workers == 0:
            return dataloaders._SingleProcessDataLoaderIter(loader)
        single = copy.copy(loader)
        vars(single).update(num_workers=0, timeout=0, persistent_workers=False, prefetch_factor=None, _iterator=None)
        return dataloaders._SingleProcessDataLoaderIter(single)

    patches.set(DataLoader, "_get_iterator", iterate)
    patches.set(DataLoader, "__iter__", iterate)


def _files(patches: Patches, note: Callable[[str], None]) -> None:
    load = torch.load

    def save(*args: Any, **kwargs: Any) -> None:
        note("`torch.save` wrote nothing: there is nothing on the card to save")

    def load_placed(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        if map_location is None or isinstance(map_location, dict):
            map_location = {"cuda": "meta", **{f"cuda:{i}": "meta" for i in range(8)}}
        elif not callable(map_location):
            map_location = place(map_location)
        return load(f, map_location, *args, **kwargs)

    patches.set(torch, "save", save)
    patches.set(torch, "load", load_placed)


def _compiling(patches: Patches, note: Callable[[str], None]) -> None:
    def compile_nothing(model: Any = None, **kwargs: Any) -> Any:
        note("`torch.compile` was left out: the estimate is of the program as it runs without it")
        return (lambda function: function) if model is None else model

    patches.set(torch, "compile", compile_nothing)
    patches.set(torch.nn.Module, "compile", lambda self, *a, **k: compile_nothing(self) and None)
    stance = getattr(torch.compiler, "set_stance", None)
    if stance is not None and "torch._dynamo" in sys.modules:
        context = stance("force_eager")
        context.__enter__()
        patches.later(lambda: context.__exit__(None, None, None))


def _checkpointing(patches: Patches) -> None:
    """A checkpoint compares what is saved the first time, when the front is off, with the second time, when it is on."""

    def same_on_the_card(x: torch.Tensor) -> dict[str, Any]:
        return {"shape": x.shape, "dtype": x.dtype, "device": seen(x.device)}

    checks = getattr(checkpoints, "_allowed_determinism_checks_to_fns", None)
    if checks is not None:
        patches.set(checks, "default", same_on_the_card)


def _only_small(fill: Callable[..., Any]) -> Callable[..., Any]:
    def filled(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and tensor.numel() > _LARGE:
            return tensor  # a weight on its way to the card: what it holds does not matter there
        return fill(tensor, *args, **kwargs)

    return filled


def _generator(kind: Any) -> Any:
    class Generator(kind):  # type: ignore[misc]
        """A generator of the card is one of the host that nothing on the card draws from."""

        def __new__(cls, device: Any = "cpu") -> Any:
            return kind("cpu") if place(device) == META else kind(device)

    return Generator


def devices(patches: Patches, namespace: dict[str, Any]) -> bool:
    """Variables of earlier cells that chose the host because there is no GPU choose the card: ``device = "cpu"``.

    So do globals of modules that know torch and are none of torch's (``config.DEVICE``, what a library chose when it was imported).
    Only names that say ``dev`` (``device``, ``DEV``) and not that they mean the host count; they are put back.

    Returns
    -------
    bool
        Whether the notebook has such a variable.
    """
    own: list[dict[str, Any]] = [namespace]
    own += [
        vars(v) for v in list(namespace.values()) if isinstance(getattr(v, "__dict__", None), dict) and _is_plain(v)
    ]
    chosen = [_choose(patches, owner) for owner in own]
    for name, module in list(sys.modules.items()):
        if _chooses(name, module):
            _choose(patches, vars(module))
    return any(chosen)


def _choose(patches: Patches, owner: dict[str, Any]) -> bool:
    """The card in the variables of one that chose the host; whether there were any."""
    found = False
    for name, value in list(owner.items()):
        lower = name.lower() if isinstance(name, str) else ""
        if "dev" in lower and "cpu" not in lower and "host" not in lower and _is_host(value):
            patches.set(owner, name, torch.device("cuda") if isinstance(value, torch.device) else "cuda")
            found = True
    return found


def _chooses(name: str, module: Any) -> bool:
    """Whether a module may have chosen a device."""
    known = getattr(module, "__dict__", None)
    return type(known) is dict and "torch" in known and not name.startswith(_TORCHS)


def _is_plain(value: Any) -> bool:
    return not isinstance(value, type(copy)) and not isinstance(value, type)


def _is_host(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type in ("cpu", "mps")
    return isinstance(value, str) and value in ("cpu", "mps")
