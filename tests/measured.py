"""A program, measured as `ipyvram.measure` would, with the variables that a notebook would hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ipyvram.analysis import analyse
from ipyvram.options import Options
from ipyvram.recording import Recording
from ipyvram.report import Report
from ipyvram.run import Run


def recorded(program: Callable[[], Any], namespace: dict[str, Any] | None = None, **options: Any) -> Recording:
    """Run ``program`` under every probe; what it returns is dropped before the probes stop."""
    run = Run(Options(**options), namespace=namespace if namespace is not None else {})
    run.start()
    try:
        program()
    finally:
        recording = run.stop()
    return recording


def measured(program: Callable[[], Any], namespace: dict[str, Any] | None = None, **options: Any) -> Report:
    """The report of ``program``."""
    return analyse(recorded(program, namespace, **options))
