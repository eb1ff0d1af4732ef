"""Which tensors only a reference cycle keeps alive: tensors come in, those that `gc.collect` would free go out; nothing is collected."""

from __future__ import annotations

import gc
import sys
import types
from typing import Any

from torch import Tensor

#: Objects and rounds of the search; a cycle of the user's is small.
MAX_OBJECTS = 3_000
MAX_ROUNDS = 8
#: Objects whose referrers are looked for in one round: the whole heap is compared with each.
MAX_FRONTIER = 200
_ROOTED = (types.FrameType, types.ModuleType, type, types.FunctionType)


def in_cycles(tensors: list[Tensor]) -> set[int]:
    """ids of the tensors that nothing outside of a cycle refers to, but the list that is passed.

    The collector's own way, on the few objects that lead to these tensors: an object is reachable when it has more
    references than the others of the set account for, or when a reachable one refers to it.
    """
    found: dict[int, Any] = {id(t): t for t in tensors}
    frontier: list[Any] = list(found.values())
    own = {id(found), id(tensors)}
    for _ in range(MAX_ROUNDS):
        own.add(id(frontier))
        referrers = gc.get_referrers(*frontier) if frontier else []
        own.add(id(referrers))
        fresh = [r for r in referrers if id(r) not in found and id(r) not in own and not isinstance(r, _ROOTED)]
        own.add(id(fresh))
        found.update({id(r): r for r in fresh})
        frontier = fresh
        if not fresh or len(fresh) > MAX_FRONTIER or len(found) > MAX_OBJECTS:
            break  # what was not looked at keeps its references and counts as reachable
    del referrers, fresh, frontier
    return _unreachable(found, [id(t) for t in tensors])


def _unreachable(found: dict[int, Any], wanted: list[int]) -> set[int]:
    inside = dict.fromkeys(found, 0)
    below: dict[int, list[int]] = {}
    for key in list(found):
        below[key] = [id(r) for r in gc.get_referents(found[key]) if id(r) in inside]
        for child in below[key]:
            inside[child] += 1
    in_list = set(wanted)
    todo = []
    for key in list(found):
        # One reference is that of `found`, one the argument of getrefcount, one the caller's list.
        held = sys.getrefcount(found[key]) - 2 - (key in in_list)
        if held > inside[key]:
            todo.append(key)
    reachable = set(todo)
    while todo:
        for child in below[todo.pop()]:
            if child not in reachable:
                reachable.add(child)
                todo.append(child)
    return in_list - reachable
