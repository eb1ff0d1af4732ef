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
from torch.optim import optimizer as optimizer_hooks

from ipyvram.patches import Patches
from ipyvram.probes.backward import watch_engine
from ipyvram.probes.buckets import bucket_bytes
from ipyvram.probes.clock import Clock
from ipyvram.probes.graph import SHOWN, sequence_number
from ipyvram.probes.orphans import Orphans
from ipyvram.probes.owners import Owners
from ipyvram.probes.sequences import samples_of
from ipyvram.probes.tensors import tensors_in
from ipyvram.probes.unpacked import UNPACKED
from ipyvram.recording import Mark

MAX_MARKS = 200_000


def _nothing(begin: bool) -> None:
    pass


class Phases:
    """Marks of the traced steps, and the count of all steps.

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
        self._on_step, self._on_forward, self._on_phase = on_step, on_forward, on_phase
        self.marks: list[Mark] = []
        self.orphans = Orphans()
        self.evaluating = ""  #: the root module of the last forward, when it was in eval mode and autograd recorded
        self.buckets: set[int] = set()  #: sizes in bytes, see `bucket_bytes`
        self.time_first: set[int] = set()  #: samples that layers were given, see `samples_of`
        self.steps = 0
        self.optimizers: list[str] = []
        self.implementation = ""  #: of the first optimizer: ``foreach``, ``fused`` or ``for-loop``
        self._leader: weakref.ref[torch.optim.Optimizer] | None = None
        self._stepping: weakref.ref[torch.optim.Optimizer] | None = None
        self._depth = threading.local()
        self._in_backward = 0
        self._stepped = False  # a step that was not told yet
        self._since = 0  # sequence number of the autograd graph when the root module was called
        self._read: list[tuple[int, int]] = []  # between which numbers graphs were read, when a root module returned
        self._settled = False  # whether a backward came after the last forward
        self._paths: dict[int, str] = {}
        self._handles: list[Any] = []
        self._first_step: Any = None  # hook that waits for an optimizer to count the steps of
        self._optimizers: dict[int, tuple[weakref.ref[torch.optim.Optimizer], Any]] = {}  # with their own hooks
        self._patches = Patches()

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin a traced stretch; after `stop_tracing` it may be followed by another."""
        self._paths.clear()
        self._depth = threading.local()
        self._read, self._settled = [(0, sequence_number())], False  # what was there before is not this stretch's
        self._hide_from_compiler()
        self._handles = [
            global_hooks.register_module_forward_pre_hook(self._before_forward),
            global_hooks.register_module_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
        ]
        if self._first_step is None:
            self._first_step = optimizer_hooks.register_optimizer_step_pre_hook(self._before_step)
        watch_engine(self._patches, self._begin_backward)
        if not SHOWN:
            UNPACKED.watch(self._patches)

    def _hide_from_compiler(self) -> None:
        """A compiled module warns its user about global hooks; ours are not the user's, and do nothing in compiled code."""
        any_hook = getattr(global_hooks, "_has_any_global_hook", None)
        if any_hook is not None and not any_hook():
            self._patches.set(global_hooks, "_has_any_global_hook", lambda: False)

    def stop_tracing(self) -> None:
        """Take every hook away but one: the counter of steps, on the optimizer that counts them."""
        for handle in self._handles:
            handle.remove()
            # torch forgets this table of its own when a global hook is removed
            getattr(global_hooks, "_global_forward_hooks_with_kwargs", {}).pop(handle.id, None)
        self._handles = []
        self._patches.undo()
        self._drop_optimizers(but_leader=True)
        if self._leads_somebody():
            self._drop_first_step()
        stepping = None if self._stepping is None else self._stepping()
        self._stepping = None
        if stepping is not None:  # an error cut its step short: what state it has made is there
            self._guard("optimizer", lambda: self._owners.optimizer(stepping))

    def stop(self) -> None:
        """Take the counter of steps away too."""
        self._leader = None
        self._drop_optimizers(but_leader=False)
        self._drop_first_step()
        self.stop_tracing()

    def _drop_first_step(self) -> None:
        if self._first_step is not None:
            self._first_step.remove()
            self._first_step = None

    def _drop_optimizers(self, but_leader: bool) -> None:
        for key, (reference, handle) in list(self._optimizers.items()):
            if not (but_leader and self._leads(reference())):
                handle.remove()
                del self._optimizers[key]

    @property
    def read(self) -> list[tuple[int, int]]:
        """Where no backward came after the last forward: see `Owners.kept_graphs`; nothing where one did."""
        return [] if self._settled else self._read

    @property
    def tracing(self) -> bool:
        return bool(self._handles)

    def _mark(self, kind: str, begin: bool, name: str = "", raised: bool = False) -> None:
        if len(self.marks) < MAX_MARKS:
            try:
                grad = torch.is_grad_enabled()
                self.marks.append(Mark(self._clock(), kind, begin, self.steps + 1, name, grad, raised))
            except Exception as error:  # most marks are made in hooks, where it would be the program's
                self._guard("phases are incomplete", _raiser(error))

    # -- forward -----------------------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if torch.compiler.is_compiling():  # the compiler reads on here: this keeps all of ours out of what it makes
            return
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        self.time_first.update(samples_of(module, args))
        if depth:
            self._mark("module", True, self._paths.get(id(module), type(module).__name__))
        else:
            self._guard("forward", lambda: self._begin_root(module, args))

    def _begin_root(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        label = self._paths.get(id(module), type(module).__name__)
        if not self._in_backward:  # what a checkpoint recomputes is no batch
            self._settled = False
            self._on_forward(module, args)
            label = self._owners.label_of(module)
            if self._paths.get(id(module)) != label:
                self._paths |= {id(m): path for path, m in module.named_modules() if path}
                self._paths[id(module)] = label
            self._owners.module(module, label)
            self._owners.inputs(module, args, {})
            self.evaluating = label if torch.is_grad_enabled() and not module.training else ""
            self._since = sequence_number()
            self._on_phase(True)
        self._mark("forward", True, label)

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        if torch.compiler.is_compiling():
            return
        raised = len(rest) < 2  # torch leaves the keyword arguments out then
        kwargs, output = ({}, None) if raised else rest
        depth = self._depth.value = max(0, getattr(self._depth, "value", 1) - 1)
        if depth:
            self._mark("module", False, self._paths.get(id(module), type(module).__name__))
        else:
            self._guard("forward", lambda: self._end_root(module, kwargs, output, raised))

    def _end_root(self, module: nn.Module, kwargs: dict[str, Any], output: Any, raised: bool) -> None:
        label = self._paths.get(id(module), type(module).__name__)
        self._mark("forward", False, label, raised)
        if self._in_backward:
            return
        self._on_phase(False)
        self._owners.module(module, label)  # a lazy module has its parameters now
        self.buckets.update(bucket_bytes(module))
        self._owners.inputs(module, (), kwargs)
        self._owners.outputs(output, f"output of {label}")
        if torch.is_grad_enabled():
            self._owners.graphs.read((t for t in tensors_in(output) if t.grad_fn is not None), since=self._since)
            self._read.append((self._since, sequence_number()))

    # -- backward ----------------------------------------------------------------------------------------------------

    def _begin_backward(self, roots: Any) -> Callable[[], None]:
        leaves: list[Tensor] = []
        self._guard("backward", lambda: self._on_forward(None, ()))
        if not self.tracing:
            return lambda: None

        def begin() -> None:
            self._owners.namespace(deep=False)
            if self._in_backward == 1:  # not the graph that a reentrant checkpoint recomputed
                self._owners.outputs([r for r in roots if isinstance(r, Tensor)], "loss")
            leaves.extend(self._owners.graphs.read(roots, backward=True))
            self.orphans.backward(leaves)
            self._on_phase(True)

        self._in_backward += 1
        self._settled = True
        self._guard("backward", begin)
        self._mark("backward", True)

        def end() -> None:
            self._on_phase(False)
            self._mark("backward", False)
            self._in_backward -= 1
            self._guard("backward", lambda: self._owners.gradients(leaves))
            self._guard("backward", self._owners.graphs.released)
            self._tell_step()

        return end

    # -- optimizer ---------------------------------------------------------------------------------------------------

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        known = self._optimizers.get(id(optimizer))
        if known is None or known[0]() is not optimizer:
            self._guard("optimizer", lambda: self._follow(optimizer))
        if not self.tracing:
            return

        def claims() -> None:
            self._stepping = weakref.ref(optimizer)
            self.implementation = self.implementation or _implementation(optimizer)
            self.orphans.stepped(optimizer)
            if not self._owners.follows(optimizer):
                self._owners.optimizer(optimizer)
            self._owners.gradients(p for group in optimizer.param_groups for p in group["params"])
            self._on_phase(True)

        self._guard("optimizer", claims)
        self._mark("optimizer", True, type(optimizer).__name__)

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        # Its own hook, and not a global one: that could not be taken away while torch walks through them.
        handle = optimizer.register_step_post_hook(self._after_step)
        self._optimizers[id(optimizer)] = weakref.ref(optimizer), handle

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._stepping = None
        self._on_phase(False)
        if not self._leads_somebody():
            self._lead(optimizer)
        if self.tracing:
            self._mark("optimizer", False, type(optimizer).__name__)
            self._guard("optimizer", lambda: self._owners.optimizer(optimizer))
        if self._leads(optimizer):
            self.steps += 1
            self._stepped = True
            self._tell_step()

    def _tell_step(self) -> None:
        """A step within a backward (an optimizer in the hook of each parameter) is told when that is over: a trace ends whole."""
        if self._stepped and not self._in_backward:
            self._stepped = False
            self._guard("optimizer", lambda: self._on_step(self.steps))

    def _lead(self, optimizer: torch.optim.Optimizer) -> None:
        """With several optimizers, the first one counts the steps; the next one when that is gone (made anew each epoch)."""
        self._leader = weakref.ref(optimizer, self._wait_for_another)
        if not self.optimizers:
            self.optimizers.append(type(optimizer).__name__)
        if not self.tracing:
            self._drop_first_step()
        for key in [key for key, (reference, _) in self._optimizers.items() if reference() is None]:
            del self._optimizers[key]

    def _wait_for_another(self, gone: Any) -> None:
        # A collection can end here while torch walks through the hooks: only where there are none is that no matter.
        others = getattr(optimizer_hooks, "_global_optimizer_pre_hooks", None)
        if gone is self._leader and self._first_step is None and others is not None and not others:
            self._first_step = optimizer_hooks.register_optimizer_step_pre_hook(self._before_step)

    def _leads_somebody(self) -> bool:
        return self._leader is not None and self._leader() is not None

    def _leads(self, optimizer: torch.optim.Optimizer | None) -> bool:
        return optimizer is not None and self._leader is not None and self._leader() is optimizer


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
