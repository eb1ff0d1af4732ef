"""What is observed once, when a cell has ended: the probes of the run come in, `Observation`s and the out-of-memory go out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ipyvram.devices import cuda_possible, environment
from ipyvram.probes import around, keeping, offers
from ipyvram.probes.nvml import Cards
from ipyvram.probes.orphans import Orphans
from ipyvram.probes.phases import Phases
from ipyvram.recording import ErrorInfo, Observation, OomEvent

if TYPE_CHECKING:
    from ipyvram.guarding import Guard


def observe(
    guard: Guard,
    namespace: Mapping[str, Any] | None,
    error: BaseException | None,
    orphans: Orphans,
    cards: Cards | None,
    devices: Iterable[str],
) -> tuple[Observation, ...]:
    """Every observation that could be made; a look that fails costs only what it would have seen.

    Parameters
    ----------
    namespace : mapping or None
        The notebook's variables. Without them nobody can say what is kept by accident, and nothing is.
    """
    found: list[Observation] = []
    if namespace is not None:
        guard("what keeps memory alive is unknown", lambda: found.extend(keeping.observe(namespace, error)))
        if _is_out_of_memory(error):
            guard("what models offer is unknown", lambda: found.extend(offers.checkpointing(namespace)))
    guard("optimizers were not checked", lambda: found.extend(orphans.observations(namespace or {})))
    guard("pinned memory is unknown", lambda: found.extend(around.pinned_host()))
    if cards is not None:
        for device in devices:
            guard("other processes are unknown", lambda d=device: _processes(found, cards, d))  # type: ignore[misc]
    return tuple(found)


def surroundings(guard: Guard, phases: Phases, cards: list[str], used_cuda: bool) -> dict[str, str]:
    """Versions and settings, and what the phases tell of the program; ``cards`` are the names of those that are here."""
    found: dict[str, str] = {}
    guard("the environment could not be read", lambda: found.update(environment()))
    told = {
        "optimizer": phases.count.optimizer,
        "optimizer_implementation": phases.implementation,
        "gradient_bucket_bytes": ",".join(map(str, sorted(phases.buckets))),
        "time_first_samples": ",".join(map(str, sorted(phases.time_first))),
        "evaluating": phases.evaluating,
        "autocast_without_gradients": "yes" if phases.autocast else "",
    }
    found |= {name: value for name, value in told.items() if value}
    if cuda_possible() and not used_cuda:
        found["idle_gpu"] = next(iter(cards), "a GPU")
    elif cards and not torch.version.cuda:
        guard.note(f"{cards[0]} is here, but this build of torch cannot use it: install one with CUDA")
    return found


def _processes(found: list[Observation], cards: Cards, device: str) -> None:
    found.extend(around.processes(cards.processes(device), device))


def out_of_memory(
    error: BaseException | None, event: OomEvent | None, namespace: Mapping[str, Any] | None
) -> OomEvent | None:
    """The event that ended the cell, with what its traceback keeps alive; None when the cell ended otherwise."""
    if event is None or not _is_out_of_memory(error):
        return None
    if error is None:
        return event
    event = replace(event, phase=_phase(error), making_state=_makes_state(error), evaluating=_evaluating(error))
    if namespace is None:
        return event
    pinned = keeping.pinned_by(error, namespace, event.device)
    return replace(event, pinned_bytes=sum(pinned.values()), pinned=pinned)


#: Part of a file's path and the functions in it → what it was doing; the innermost that fits tells. Others, such as
#: ``Module.to`` and ``load_state_dict``, are none of the three.
_PLACES = {
    ("torch/optim/", ("step",)): "optimizer",
    ("torch/autograd/", ("backward", "grad", "_engine_run_backward")): "backward",
    ("torch/nn/modules/", ("_call_impl", "_wrapped_call_impl", "forward")): "forward",
}


def _phase(error: BaseException) -> str:
    """What the program was doing, by the frames of the traceback: also after the traced steps."""
    found = ""
    for path, function in _frames(error):
        places = (phase for (place, names), phase in _PLACES.items() if place in path and function in names)
        found = next(places, found)
    return found


def _makes_state(error: BaseException) -> bool:
    """Whether an optimizer was making the state of its parameters, which its first step does."""
    return any("torch/optim/" in path and function == "_init_group" for path, function in _frames(error))


def _evaluating(error: BaseException) -> str:
    """The class of the outermost module in the traceback, if it was in eval mode: also after the traced steps."""
    step = error.__traceback__
    while step is not None:
        code = step.tb_frame.f_code
        if code.co_name == "_call_impl" and "torch/nn/modules/" in code.co_filename.replace("\\", "/"):
            module = step.tb_frame.f_locals.get("self")
            return type(module).__name__ if isinstance(module, torch.nn.Module) and not module.training else ""
        step = step.tb_next
    return ""


def _frames(error: BaseException) -> Iterator[tuple[str, str]]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame.f_code.co_filename.replace("\\", "/"), step.tb_frame.f_code.co_name
        step = step.tb_next


def error_info(error: BaseException) -> ErrorInfo:
    """An error's type and the first line of its message; nothing of it is kept."""
    kind = type(error).__name__
    try:
        message = str(error).split("\n")[0][:500]
    except Exception:  # a class of the user's that cannot say what it is
        message = ""
    memory = isinstance(error, torch.OutOfMemoryError) or "out of memory" in message.lower()
    return ErrorInfo(kind, message, memory, isinstance(error, KeyboardInterrupt))


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Also when the program raised another error from it."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
