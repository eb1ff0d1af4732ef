"""When forward, backward and optimizer step begin and end, from a handful of hooks; tells `owners` what to claim then.

No full-backward hooks, no `saved_tensors_hooks`, nothing on a tensor: each of these changes programs. Backward is seen
through the place where torch itself can attach logging to a whole graph, so no frame of ours is in a traceback.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from ipyvram.patches import Patches
from ipyvram.probes.backward import watch_engine
from ipyvram.probes.buckets import bucket_bytes
from ipyvram.probes.clock import Clock
from ipyvram.probes.graph import SHOWN, sequence_number
from ipyvram.probes.orphans import Orphans
from ipyvram.probes.owners import Owners
from ipyvram.probes.sequences import samples_of
from ipyvram.probes.step_count import StepCount
from ipyvram.probes.tensors import tensors_in
from ipyvram.probes.uncompiled import uncompiled
from ipyvram.probes.unpacked import UNPACKED
from ipyvram.recording import Mark

MAX_MARKS = 200_000


def _nothing(begin: bool) -> None:
    pass


def hide_hooks(patches: Patches) -> None:
    """A compiled module warns its user about global hooks: ours are not the user's, and do nothing in compiled code."""
    any_hook = getattr(global_hooks, "_has_any_global_hook", None)
    if any_hook is not None and not any_hook():
        patches.set(global_hooks, "_has_any_global_hook", lambda: False)


class Phases:
    """Marks of the traced steps, and in `count` how many steps there are.

    Parameters
    ----------
    on_step : callable
        Called with the number of finished optimizer steps, after each.
    on_forward : callable
        Called with each root module before its forward, and with None before each backward: the place to notice the device
        in use and the bounds.
    on_phase : callable, optional
        Called with True when a root module's forward, a backward or an optimizer's step begins, with False when it ends.
    """

    def __init__(
        self,
        clock: Clock,
        owners: Owners,
        on_step: Callable[[int], None],
        on_forward: Callable[[nn.Module | None, tuple[Any, ...]], None],
        guard: Callable[[str, Callable[[], None]], None],
        on_phase: Callable[[bool], None] = _nothing,
    ) -> None:
        self._clock, self._owners, self._guard = clock, owners, guard
        self._on_forward, self._on_phase = on_forward, on_phase
        self.marks: list[Mark] = []
        self.orphans = Orphans()
        self.evaluating = ""  #: the root module of the last forward, when it was in eval mode and autograd recorded
        self.autocast = False  #: whether a forward without gradients ran under it
        self.buckets: set[int] = set()  #: sizes in bytes, see `bucket_bytes`
        self.time_first: set[int] = set()  #: samples that layers were given, see `samples_of`
        self.implementation = ""  #: of the first optimizer: ``foreach``, ``fused`` or ``for-loop``
        self.threads: set[int] = set()  #: on which models ran
        self.count = StepCount(clock, self.marks, guard, on_step, self._on_update, self._on_compiled)
        self._updating: weakref.ref[torch.optim.Optimizer] | None = None
        self._depth = threading.local()
        self._since = 0  # sequence number of the autograd graph when the root module was called
        self._read: list[tuple[int, int]] = []  # between which numbers graphs were read, when a root module returned
        self._settled = False  # whether a backward came after the last forward
        self._paths: dict[int, str] = {}  # within their model, by id of the module
        self._roots: dict[int, str] = {}  # with their model, see `Owners.place_of`
        self._handles: list[Any] = []
        self._patches = Patches()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a traced stretch; after `stop_tracing` it may be followed by another."""
        self._paths.clear()
        self._roots.clear()
        self._depth = threading.local()
        self._read, self._settled = [(0, sequence_number())], False  # what was there before is not this stretch's
        hide_hooks(self._patches)
        self._handles = [
            global_hooks.register_module_forward_pre_hook(self._before_forward),
            global_hooks.register_module_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]
        self.count.trace()
        watch_engine(self._patches, self._begin_backward)
        if not SHOWN:
            UNPACKED.watch(self._patches)

    def stop_tracing(self) -> None:
        """Take every hook away but the counter of steps."""
        for handle in self._handles:
            handle.remove()
            # torch forgets this table of its own when a global hook is removed
            getattr(global_hooks, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)
        self._handles = []
        self._patches.undo()
        updating = None if self._updating is None else self._updating()
        self._updating = None
        if updating is not None:  # an error cut its step short: what state it has made is there
            self._guard("optimizer", lambda: self._owners.members.optimizer(updating))
        self.count.stop_tracing()

    def stop(self) -> None:
        """Take the counter of steps away too."""
        try:
            self.stop_tracing()
        finally:
            self.count.stop()

    @property
    def read(self) -> list[tuple[int, int]]:
        """Where no backward came after the last forward: see `GraphClaims.kept`; nothing where one did."""
        return [] if self._settled else self._read

    def _mark(self, kind: str, begin: bool, name: str = "", raised: bool = False) -> None:
        if len(self.marks) < MAX_MARKS:
            try:
                grad = torch.is_grad_enabled()
                self.marks.append(Mark(self._clock(), kind, begin, self.count.steps + 1, name, grad, raised))
            except Exception as error:  # most marks are made in hooks, where it would be the program's
                self._guard("phases are incomplete", _raiser(error))

    # -- forward -----------------------------------------------------------------------------------------------------

    @uncompiled
    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        self.time_first.update(samples_of(module, args))
        if depth:
            self._mark("module", True, self._paths.get(id(module), type(module).__name__))
        else:
            self._guard("forward", lambda: self._begin_root(module, args))

    def join(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A stretch has begun when this root module was about to run: torch has looked for hooks already."""
        self._before_forward(module, args)

    def _begin_root(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.count.in_backward:  # what a checkpoint recomputes is no batch
            self._settled = False
            self.threads.add(threading.get_ident())
            self._on_forward(module, args)
            place = self._owners.root(module)
            if self._roots.get(id(module)) != str(place):
                self._roots[id(module)] = str(place)
                self._paths |= {id(m): f"{place.path}.{path}".strip(".") for path, m in module.named_modules()}
            self._owners.inputs(module, args, {})
            self.evaluating = str(place) if torch.is_grad_enabled() and not module.training else ""
            self.autocast |= not torch.is_grad_enabled() and any(map(torch.is_autocast_enabled, ("cuda", "cpu", "mps")))
            self._since = sequence_number()
            self._on_phase(True)
        self._mark("forward", True, self._root_name(module))

    def _root_name(self, module: nn.Module) -> str:
        """What recomputes in a backward is a part of a model, whichever."""
        names = (self._paths, self._roots) if self.count.in_backward else (self._roots, self._paths)
        return names[0].get(id(module)) or names[1].get(id(module)) or type(module).__name__

    @uncompiled
    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        raised = len(rest) < 2  # torch leaves the keyword arguments out then
        kwargs, output = ({}, None) if raised else rest
        depth = self._depth.value = max(0, getattr(self._depth, "value", 1) - 1)
        if depth:
            self._mark("module", False, self._paths.get(id(module), type(module).__name__))
        else:
            self._guard("forward", lambda: self._end_root(module, kwargs, output, raised))

    def _end_root(self, module: nn.Module, kwargs: dict[str, Any], output: Any, raised: bool) -> None:
        label = self._root_name(module)
        if not self.count.in_backward:  # before the mark: what follows it is the next forward's
            self._guard("forward", lambda: self._owners.inputs(module, (), kwargs))
        self._mark("forward", False, label, raised)
        if self.count.in_backward:
            return
        self._on_phase(False)
        self._owners.root(module)  # a lazy one has its parameters now
        self.buckets.update(bucket_bytes(module))
        self._owners.outputs(output, f"output of {label}")
        if torch.is_grad_enabled():
            self._owners.graphs.read((t for t in tensors_in(output) if t.grad_fn is not None), since=self._since)
            self._read.append((self._since, sequence_number()))

    # -- backward ----------------------------------------------------------------------------------------------------

    def _begin_backward(self, roots: Any) -> Callable[[], None]:
        leaves: list[Tensor] = []
        self._guard("backward", lambda: self._on_forward(None, ()))
        if not self.count.tracing:
            return lambda: None

        def begin() -> None:
            self._owners.variables.claim(deep=False)
            self._owners.variables.containers_in_functions()
            if self.count.in_backward == 1:  # not the graph that a reentrant checkpoint recomputed
                for root in (r for r in roots if isinstance(r, Tensor)):
                    self._owners.outputs(root, "loss")
            leaves.extend(self._owners.graphs.read(roots, backward=True))
            self.orphans.backward(leaves)
            self._on_phase(True)

        self._settled = True
        self.threads.add(threading.get_ident())
        self.count.begin_backward()
        self._guard("backward", begin)
        self._mark("backward", True)

        def end() -> None:
            self._on_phase(False)
            self._mark("backward", False)
            self._guard("backward", lambda: self._owners.members.gradients(leaves))
            self._guard("backward", self._owners.graphs.released)
            self.count.end_backward(leaves)

        return end

    # -- optimizer ---------------------------------------------------------------------------------------------------

    def _on_update(self, optimizer: torch.optim.Optimizer, begin: bool) -> None:
        name = type(optimizer).__name__
        if begin:
            self._guard("optimizer", lambda: self._begin_update(optimizer))
            self._mark("optimizer", True, name)
        else:
            self._updating = None
            self._on_phase(False)
            self._mark("optimizer", False, name)
            self._guard("optimizer", lambda: self._owners.members.optimizer(optimizer))

    def _begin_update(self, optimizer: torch.optim.Optimizer) -> None:
        self._updating = weakref.ref(optimizer)
        self.implementation = self.implementation or _implementation(optimizer)
        self.orphans.stepped(optimizer)
        if not self._owners.members.follows(optimizer):
            self._owners.members.optimizer(optimizer)
        self._owners.members.gradients(p for group in optimizer.param_groups for p in group["params"])
        self._on_phase(True)

    def _on_compiled(self, optimizer: torch.optim.Optimizer) -> None:
        self.orphans.stepped(optimizer)
        self._owners.members.compiled(optimizer)


def _implementation(optimizer: torch.optim.Optimizer) -> str:
    """How an optimizer goes through its parameters: torch's own default is foreach where all are on CUDA."""
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    if group.get("fused"):
        return "fused"
    if group.get("foreach") is not None or "foreach" not in group:
        return "foreach" if group.get("foreach") else "for-loop"
    return "foreach" if all(p.device.type == "cuda" for p in group["params"]) else "for-loop"


def _raiser(error: Exception) -> Callable[[], None]:
    def again() -> None:
        raise error

    return again
