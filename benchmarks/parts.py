"""Where the time of the traced steps goes: the cell bare, under a dispatch mode that does nothing, and under each part of ours.

``python -m benchmarks.parts CELL STEPS ROUNDS`` prints JSON. Shares are exclusive: what a part calls of another part counts there.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.cells import CELLS, Cell, make
from benchmarks.pair import once
from benchmarks.tools import NOTHING, TOOLS, Tool
from benchmarks.words import words


class Empty(TorchDispatchMode):
    """Calls the operator, and nothing else: the least that any tracer in Python costs."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True


def _call(self: Empty, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    return func(*args, **kwargs) if kwargs else func(*args)


# Assigned, not defined: as in `ipyvram.probes.dispatch`.
Empty.__torch_dispatch__ = _call  # type: ignore[method-assign,assignment]


def _under_empty(cell: Cell) -> tuple[Cell, Callable[[], object]]:
    mode = Empty()  # type: ignore[no-untyped-call]
    mode.__enter__()  # type: ignore[no-untyped-call]
    return cell, lambda: mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]


EMPTY = Tool(_under_empty, False)


class Shares:
    """Exclusive seconds and calls of some methods while `timed` is on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner: list[float] = []

    @contextmanager
    def timed(self, kind: type, name: str, part: str) -> Iterator[None]:
        """Count what ``kind.name`` takes as ``part``."""
        original = getattr(kind, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            begin = time.thread_time()
            self._inner.append(0.0)
            try:
                return original(*args, **kwargs)
            finally:
                took = time.thread_time() - begin
                self.seconds[part] += took - self._inner.pop()
                self.calls[part] += 1
                if self._inner:
                    self._inner[-1] += took

        setattr(kind, name, measured)
        try:
            yield
        finally:
            setattr(kind, name, original)


def _parts() -> tuple[tuple[type, str, str], ...]:
    from ipyvram.arming import Arming
    from ipyvram.probes.graph_claims import GraphClaims
    from ipyvram.probes.live_storages import LiveStorages
    from ipyvram.probes.member_claims import MemberClaims
    from ipyvram.probes.owners import Owners
    from ipyvram.probes.phases import Phases
    from ipyvram.probes.stacks import StackReader
    from ipyvram.probes.step_count import StepCount
    from ipyvram.probes.storages import StorageTrace
    from ipyvram.probes.variable_claims import VariableClaims
    from ipyvram.run import Run

    claims = {
        Owners: ("inputs", "outputs", "root"),
        MemberClaims: ("optimizer", "gradients", "module"),
        VariableClaims: ("claim", "containers_in_functions"),
    }
    hooks = {
        Phases: ("_before_forward", "_after_forward", "_begin_backward"),
        StepCount: ("_before_step", "_after_step"),
    }
    return (
        (StorageTrace, "record", "events: operators"),
        (LiveStorages, "freed", "events: ends of storages"),
        (StackReader, "__call__", "events: the user's stack"),
        (GraphClaims, "read", "claims: what the graph saved"),
        (GraphClaims, "released", "claims: all others"),
        *((kind, name, "claims: all others") for kind, names in claims.items() for name in names),
        *((kind, name, "marks") for kind, names in hooks.items() for name in names),
        (Run, "start", "arming"),
        (Run, "_start_sampler", "arming"),
        (Arming, "_on_step", "steps"),
    )


def parts(name: str, steps: int, rounds: int) -> dict[str, Any]:
    """Medians of CPU seconds of ``rounds`` rounds (bare, empty mode, ours); then ours again with each part timed.

    Returns
    -------
    dict
        ``bare_s``; ``empty`` and ``ipyvram``, the ratios to it; ``parts``: part → ``ms`` (mean of a cell) and ``calls``.
    """
    torch.set_num_threads(1)
    cell = make(name, steps)
    tools = {"bare": NOTHING, "empty": EMPTY, "ipyvram": TOOLS["ipyvram"]}
    for tool in tools.values():
        once(cell, tool)
    found = [{key: once(cell, tool)["cell_cpu_s"] for key, tool in tools.items()} for _ in range(rounds)]
    result: dict[str, Any] = {"bare_s": median(row["bare"] for row in found)}
    result |= {key: median(row[key] / row["bare"] for row in found) for key in ("empty", "ipyvram")}
    shares = Shares()
    with ExitStack() as stack:
        for part in _parts():
            stack.enter_context(shares.timed(*part))
        for _ in range(rounds):
            once(cell, tools["ipyvram"])
    result["parts"] = {
        part: {"ms": 1e3 * seconds / rounds, "calls": shares.calls[part] / rounds}
        for part, seconds in sorted(shares.seconds.items(), key=lambda item: -item[1])
    }
    return result


if __name__ == "__main__":
    name, steps, rounds = words(__doc__, cell=CELLS, steps=int, rounds=int)
    try:
        print(json.dumps(parts(name, steps, rounds)))
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}))
