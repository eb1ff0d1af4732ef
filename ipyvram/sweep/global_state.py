"""The process's own state (random numbers, torch's flags, hooks, environment, figures) as one value that can be put back.

Each part is read and written on its own: one that this version of torch does not have, or does not let be read, is left
out.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.nn.modules import module as module_hooks
from torch.optim import optimizer as optimizer_hooks

Restore = Callable[[], None]


class GlobalState:
    """What the process was set to when it was made."""

    def __init__(self) -> None:
        self._restores: list[Restore] = []
        for part in (_random, _flags, _hooks, _surroundings):
            self._restores.extend(part())

    def restore(self) -> None:
        """Set it so again. A part that fails leaves no other part out.

        Raises
        ------
        RuntimeError
            The first failure is its cause.
        """
        failures: list[Exception] = []
        for restore in self._restores:
            try:
                restore()
            except Exception as error:
                failures.append(error)
        if failures:
            raise RuntimeError("a global setting could not be restored") from failures[0]


def _attempt(read: Callable[[], Any], write: Callable[[Any], Any]) -> Iterator[Restore]:
    """One setting, if it can be read."""
    try:
        value = read()
    except (AttributeError, RuntimeError, NotImplementedError):
        return
    yield lambda: write(value) and None


def _switch(read: Callable[[], Any], write: Callable[[Any], Any]) -> Iterator[Restore]:
    """One setting that is only written when it has changed: some writes warn, or import torch's compiler."""
    yield from _attempt(read, lambda value: write(value) if read() != value else None)


def _attribute(owner: Any, name: str) -> Iterator[Restore]:
    yield from _switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _random() -> Iterator[Restore]:
    yield from _attempt(random.getstate, random.setstate)
    yield from _attempt(lambda: np.random.get_state(), np.random.set_state)
    yield from _attempt(torch.get_rng_state, torch.set_rng_state)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        yield from _attempt(torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all)
    elif torch.cuda.is_available():  # a trial may start CUDA: then as if it were still to be started
        seed = torch.initial_seed()
        yield lambda: torch.cuda.manual_seed_all(seed) if torch.cuda.is_initialized() else None
    if torch.backends.mps.is_available():
        yield from _attempt(torch.mps.get_rng_state, torch.mps.set_rng_state)


def _flags() -> Iterator[Restore]:
    # Before allow_tf32, which cannot be read while the two disagree.
    yield from _switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision)
    for name in ("enabled", "benchmark", "deterministic", "benchmark_limit", "allow_tf32"):
        yield from _attribute(torch.backends.cudnn, name)
    matmul = torch.backends.cuda.matmul
    for name in (
        "allow_tf32",
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
    ):
        yield from _attribute(matmul, name)
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        read = getattr(torch.backends.cuda, f"{kind}_sdp_enabled", None)
        write = getattr(torch.backends.cuda, f"enable_{kind}_sdp", None)
        if read is not None and write is not None:
            yield from _switch(read, write)
    yield from _switch(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms)
    yield from _switch(torch.get_default_dtype, torch.set_default_dtype)
    yield from _switch(torch.is_grad_enabled, torch.set_grad_enabled)
    yield from _switch(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly)
    yield from _switch(torch.get_num_threads, torch.set_num_threads)


def _hooks() -> Iterator[Restore]:
    """Hooks on all modules and optimizers: a cell that adds one would add it with each trial."""
    for owner, prefixes in ((module_hooks, ("_global_",)), (optimizer_hooks, ("_global_optimizer_",))):
        for name, table in vars(owner).items():
            if name.startswith(prefixes) and isinstance(table, dict):
                yield _table(table)


def _table(table: dict[Any, Any]) -> Restore:
    saved = dict(table)

    def restore() -> None:
        if list(table.items()) != list(saved.items()):
            table.clear()
            table.update(saved)

    return restore


def _surroundings() -> Iterator[Restore]:
    yield _table(os.environ)  # type: ignore[arg-type]
    yield from _attempt(os.getcwd, lambda path: os.chdir(path) if os.getcwd() != path else None)
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = set(pyplot.get_fignums()) if pyplot is not None else set()

    def close_new_figures() -> None:
        pyplot = sys.modules.get("matplotlib.pyplot")
        if pyplot is not None:
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)

    yield close_new_figures
