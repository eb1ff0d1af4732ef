"""What is in memory now and who holds it: the notebook's namespace comes in, one `Resident` a device goes out.

Nothing is collected, freed or computed: the look may take a fraction of a second, and changes nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ipyvram.probes import counters, keeping, results, roots
from ipyvram.probes.copies import COPY, STATE, Container, copies_in
from ipyvram.probes.cycles import in_cycles
from ipyvram.probes.graph import GraphWalk
from ipyvram.probes.namespace import DEEP, holdings
from ipyvram.probes.reach import Storage, Walk, storage_of
from ipyvram.probes.tensors import tensors_in
from ipyvram.resident import Holding, Resident

#: Tensors without a known holder that are checked for cycles, the largest first: each costs a look at the whole heap.
MAX_LOOSE = 32

_ROLES = {COPY: "parameters", STATE: "optimizer_state"}

Entry = tuple[str, str, str, str]  # holder, kind, category, path


def look(namespace: Mapping[str, Any]) -> tuple[Resident, ...]:
    """Every device that holds tensors, accelerators first."""
    variables = _in_order(roots.variables(namespace))
    walk, entries = Walk((namespace,), _roles(namespace)), dict[Storage, Entry]()
    for name, value in variables:
        _add(walk, entries, value, name, "variable")
    _name_old_models(namespace, entries)
    for name, value in roots.outputs(namespace):
        _add(walk, entries, value, roots.out_names(namespace, name, value) if "[" in name else name, "out")
    for kind, value in roots.errors(namespace):
        _add(walk, entries, value, f"traceback of {kind or 'the last error'}", "traceback")
    for place, value in roots.threads():
        _add(walk, entries, value, f"a thread, {place}", "thread")
    _add_rest(walk, entries)
    keeping.remember(namespace)
    devices = sorted({s.device for s in entries} or {"cpu"}, key=lambda d: (d == "cpu", d))
    return tuple(_resident(device, entries, walk.complete) for device in devices)


def live_tensors() -> list[Tensor]:
    """Every tensor that the garbage collector knows."""
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if issubclass(kind, Tensor)}
    return [o for o in objects if type(o) in kinds]


def total_bytes(device: str) -> int:
    """Bytes of all storages on a device that Python or an autograd graph holds; the allocator's counter on CUDA."""
    figures = counters.read(device)
    if device.startswith("cuda") and "allocated" in figures:
        return figures["allocated"]
    graph, seen = GraphWalk(), set[Storage]()
    for tensor in live_tensors():
        held = [tensor] if tensor.grad_fn is None else [tensor, *(saved for _, saved in graph.below(tensor))]
        seen |= {s for s in map(storage_of, held) if s is not None}
    return sum(s.nbytes for s in seen if s.device == device)


def _in_order(named: Iterable[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Models first and optimizers next: a parameter is its model's, whoever else holds it."""

    def rank(item: tuple[str, Any]) -> int:
        kind = type(item[1])
        return 0 if issubclass(kind, nn.Module) else 1 if issubclass(kind, torch.optim.Optimizer) else 2

    return sorted(named, key=rank)


def _roles(namespace: Mapping[str, Any]) -> dict[int, str]:
    """What models of measured cells returned, what optimizers of the program's own keep, and what containers have one for each
    parameter of, by identity."""
    containers: list[Container] = []
    found = [value for _, value in holdings(namespace, *DEEP, containers=containers)]
    returned = {id(t): "outputs" for t in found if isinstance(t, Tensor) and t.grad_fn is None and results.is_result(t)}
    own = [value for value in found if not isinstance(value, (Tensor, nn.Module, torch.optim.Optimizer))]
    kept = (t for optimizer in own for t in tensors_in(list(vars(optimizer).values())))
    states = {id(t): "optimizer_state" for t in kept if not (t.is_leaf and t.requires_grad)}
    return returned | states | {id(tensor): _ROLES[kind] for _, tensor, kind in copies_in(found, containers)}


def _add(walk: Walk, entries: dict[Storage, Entry], value: Any, holder: str, kind: str) -> None:
    """What a root reaches, and what the graphs of the tensors it reaches keep alive."""
    for storage in walk.root(value, holder):
        category = walk.categories[storage]
        if category == "other" and kind in ("variable", "thread"):
            category = "inputs"  # as in a report: data that is there before a model runs
        entries[storage] = holder, kind, category, walk.storages[storage]
    graph = GraphWalk()
    for path, tensor in walk.graphs:
        for category, held in graph.below(tensor):
            saved = storage_of(held)
            if saved is not None and saved not in walk.storages:
                walk.storages[saved] = path
                name, kept = (f"graph of {holder}", "graph") if kind == "variable" else (holder, kind)
                entries[saved] = name, kept, category, path
    walk.graphs.clear()


def _name_old_models(namespace: Mapping[str, Any], entries: dict[Storage, Entry]) -> None:
    """Parameters of models that a variable held before are the previous model's, and not its optimizer's own."""
    for name, parameters in keeping.earlier_models(namespace).items():
        for tensor in (t for p in parameters for t in (p, p.grad) if t is not None):
            storage = storage_of(tensor)
            if (
                storage in entries
                and storage is not None
                and not isinstance(namespace.get(entries[storage][0]), nn.Module)
            ):
                holder, _, category, path = entries[storage]
                entries[storage] = f"previous {name}, held by {holder}", "old_model", category, path


def _add_rest(walk: Walk, entries: dict[Storage, Entry]) -> None:
    """Tensors that no variable, output or error leads to. One list of ours may refer to them, not two: see `in_cycles`."""
    rest = [t for t in live_tensors() if (s := storage_of(t)) is not None and s not in walk.storages]
    rest = sorted(rest, key=lambda t: -t.untyped_storage().nbytes())
    largest, rest = rest[:MAX_LOOSE], rest[MAX_LOOSE:]
    loose = in_cycles(largest) if largest else set()
    rest = [*largest, *rest]
    for tensor in rest:
        found = storage_of(tensor)
        if found is not None and found not in entries:
            category = "parameters" if tensor.is_leaf and tensor.requires_grad else "other"
            cycle = id(tensor) in loose
            entries[found] = (
                "a reference cycle" if cycle else "elsewhere",
                "cycle" if cycle else "elsewhere",
                category,
                "",
            )


def _resident(device: str, entries: dict[Storage, Entry], complete: bool) -> Resident:
    groups: dict[tuple[str, str, str], list[tuple[Storage, str]]] = {}
    for storage, (holder, kind, category, path) in entries.items():
        if storage.device == device:
            groups.setdefault((holder, kind, category), []).append((storage, path))
    rows = []
    for (holder, kind, category), members in groups.items():
        largest = max(members, key=lambda m: m[0].nbytes)[1]
        rows.append(Holding(holder, kind, category, sum(s.nbytes for s, _ in members), len(members), largest))
    figures = counters.read(device) if device.startswith("cuda") else {}
    card = torch.cuda.get_device_properties(device).total_memory if figures else None
    ordered = tuple(sorted(rows, key=lambda h: (-h.bytes, h.holder, h.category)))
    return Resident(device, ordered, figures.get("allocated"), figures.get("reserved"), card, complete)
