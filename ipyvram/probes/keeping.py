"""What kept memory alive when a cell ended, as `Observation`s for `findings.holding`: the namespace comes in.

Quick where there is nothing: the namespace is only walked through when an error, an output or an earlier model holds something.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from ipyvram.findings.worth import MIN_BYTES
from ipyvram.probes import roots
from ipyvram.probes.graph import GraphWalk
from ipyvram.probes.reach import Storage, Walk, storage_of
from ipyvram.recording import Observation

_CONTAINERS = (list, tuple, dict, set)

#: Variable → the parameters of each model that it held at the end of a measured cell, oldest first.
_models: dict[str, list[tuple[weakref.ref[nn.Module], list[weakref.ref[Tensor]]]]] = {}


def observe(namespace: Mapping[str, Any], error: BaseException | None = None) -> list[Observation]:
    """All observations.

    Parameters
    ----------
    error : BaseException or None
        How the cell ended; `sys.last_value` may still be that of an earlier one.
    """
    found = _kept_graphs(namespace)
    own = [] if error is None else [(type(error).__name__, error)]
    by_error = _reached([*own, *roots.all_errors(namespace)], namespace)
    by_out = _reached(roots.outputs(namespace), namespace)
    earlier = earlier_models(namespace)
    if any(_large(group) for group in (by_error, by_out)) or earlier:
        found += _exclusive(namespace, by_error, by_out, earlier)
    remember(namespace)
    return found


def remember(namespace: Mapping[str, Any]) -> None:
    """Note which models the variables hold now, to know them when they have been replaced."""
    for name, value in roots.variables(namespace):
        if issubclass(type(value), nn.Module):
            known = _models.setdefault(name, [])
            if not known or known[-1][0]() is not value:
                known.append((weakref.ref(value), [weakref.ref(p) for p in _parameters_of(value)]))
                del known[:-4]


Group = dict[Storage, str]  # storage → the root that reaches it


def _reached(named: Iterable[tuple[str, Any]], namespace: Mapping[str, Any]) -> Group:
    walk, group = Walk((namespace,)), Group()
    for name, value in named:
        group |= dict.fromkeys(walk.root(value, name), name)
        group |= dict.fromkeys(_graph_storages(walk, name), name)
    return group


def _graph_storages(walk: Walk, name: str) -> list[Storage]:
    """What the graphs of the tensors reached so far keep alive beyond them."""
    graph, found = GraphWalk(), []
    for _, tensor in walk.graphs:
        for _, held in graph.below(tensor):
            storage = storage_of(held)
            if storage is not None and storage not in walk.storages:
                walk.storages[storage] = name
                found.append(storage)
    walk.graphs.clear()
    return found


def _large(group: Group) -> bool:
    return sum(storage.nbytes for storage in group) >= MIN_BYTES


def _exclusive(
    namespace: Mapping[str, Any], by_error: Group, by_out: Group, earlier: dict[str, list[Tensor]]
) -> list[Observation]:
    """What errors, outputs and earlier models hold that the user's variables do not."""
    walk = Walk((namespace,))
    holders: dict[Storage, str] = {}
    for name, value in roots.variables(namespace):
        holders |= dict.fromkeys(walk.root(value, name), name)
        holders |= dict.fromkeys(_graph_storages(walk, name), name)
    found = []
    for kind, group in (("traceback", by_error), ("out", by_out)):
        mine = {s: name for s, name in group.items() if s not in holders and (kind != "out" or s not in by_error)}
        for device in {s.device for s in mine}:
            names = dict.fromkeys(name for s, name in mine.items() if s.device == device and name)
            label = _out_label(namespace, names) if kind == "out" else next(iter(names), "")
            count = sum(s.nbytes for s in mine if s.device == device)
            found.append(Observation(kind, count, label, count=len(names), device=device))
    others = dict.fromkeys(by_error, "the last traceback") | by_out
    return found + _old_models(namespace, earlier, holders, others)


def _out_label(namespace: Mapping[str, Any], names: Iterable[str]) -> str:
    cache = namespace.get("_oh", {})
    labels = []
    for name in names:
        index = name.removeprefix("Out[").removesuffix("]")
        value = cache.get(int(index)) if index.isdigit() else None
        labels.append(name if value is None else roots.out_names(namespace, name, value))
    return ", ".join(labels[:3]) + (f" and {len(labels) - 3} more" if len(labels) > 3 else "")


# -- earlier models ------------------------------------------------------------------------------------------------------


def earlier_models(namespace: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """Variable → live parameters of models that it held before and holds no more."""
    models = [value for _, value in roots.variables(namespace) if issubclass(type(value), nn.Module)]
    current = {id(model) for model in models}
    used = {id(p) for model in models for p in _parameters_of(model)}
    found: dict[str, list[Tensor]] = {}
    for name, versions in _models.items():
        for module, parameters in versions:
            alive = [p for p in (ref() for ref in parameters) if p is not None and id(p) not in used]
            if alive and id(module()) not in current:
                found.setdefault(name, []).extend(alive)
    return found


def _parameters_of(model: nn.Module) -> list[nn.Parameter]:
    try:
        return list(model.parameters())
    except Exception:  # a user's module may raise from anything
        return []


def _old_models(
    namespace: Mapping[str, Any], earlier: dict[str, list[Tensor]], holders: Group, others: Group
) -> list[Observation]:
    found = []
    for name, parameters in earlier.items():
        storages = {s: None for p in parameters for t in (p, p.grad) if t is not None and (s := storage_of(t))}
        holder = next((holders[s] for s in storages if s in holders), None)
        if holder is not None and isinstance(namespace.get(holder), (*_CONTAINERS, nn.Module)):
            continue  # kept on purpose: a list of models, a wrapper
        holder = holder or next((others[s] for s in storages if s in others), "")
        for device in {s.device for s in storages}:
            count = sum(s.nbytes for s in storages if s.device == device)
            found.append(Observation("old_model", count, name, holder, len(parameters), device))
    return found


# -- graphs --------------------------------------------------------------------------------------------------------------


def _kept_graphs(namespace: Mapping[str, Any]) -> list[Observation]:
    """Graphs that hang on tensors in variables, and what they keep alive that is no variable's own."""
    graph, found = GraphWalk(), []
    own: dict[Storage, str] | None = None
    for name, value in _containers(namespace):
        rooted = [t for t in _tensors(value) if t.grad_fn is not None]
        if rooted and own is None:
            own = _own_storages(namespace)
        held: set[Storage] = set()
        for tensor in rooted:
            storages = (storage_of(saved) for _, saved in graph.below(tensor))
            held |= {s for s in storages if s is not None and s not in (own or {})}
        for device in {s.device for s in held}:
            count = sum(s.nbytes for s in held if s.device == device)
            more = "" if graph.complete and not graph.packed else "at least"
            found.append(Observation("graphs", count, name, more, len(rooted), device))
    return found


def _containers(namespace: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Variables that are containers, and containers that objects in variables have: a metric's list of predictions."""
    for name, value in roots.variables(namespace):
        if isinstance(value, _CONTAINERS):
            yield name, value
        elif not issubclass(type(value), (Tensor, type, ModuleType)):
            members = getattr(value, "__dict__", None)
            parts = list(members.items()) if type(members) is dict else []
            yield from ((f"{name}.{key}", part) for key, part in parts if isinstance(part, _CONTAINERS))


def _tensors(value: Any) -> list[Tensor]:
    """Tensors directly in a container, or one level below."""
    items = list(value.values()) if isinstance(value, dict) else list(value)[:10_000]
    nested = [inner for item in items[:1000] if isinstance(item, (list, tuple)) for inner in item[:1000]]
    return [item for item in (*items, *nested) if issubclass(type(item), Tensor)]


def _own_storages(namespace: Mapping[str, Any]) -> dict[Storage, str]:
    """Everything that variables lead to, but through graphs."""
    walk = Walk((namespace,))
    for name, value in roots.variables(namespace):
        walk.root(value, name)
    return walk.storages


def pinned_by(error: BaseException, namespace: Mapping[str, Any], device: str) -> dict[str, int]:
    """Category → bytes on a device that the frames of an error hold and no variable does."""
    own = Walk((namespace,))
    for name, value in roots.variables(namespace):
        own.root(value, name)
        _graph_storages(own, name)
    walk, found = Walk((namespace,)), dict[str, int]()
    reached = {s: walk.categories[s] for s in walk.root(error, "")}
    for storage, category in (reached | dict.fromkeys(_graph_storages(walk, ""), "activations")).items():
        if storage.device == device and storage not in own.storages:
            found[category] = found.get(category, 0) + storage.nbytes
    return found
