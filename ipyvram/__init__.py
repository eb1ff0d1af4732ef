"""See where every byte of memory went, under the notebook cell that used it.

``%load_ext ipyvram``, then ``%%vram`` over a cell; in a script, ``with ipyvram.measure("label") as m: train()`` and
``m.report``. Importing this imports neither torch nor IPython: names are looked up when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from ipyvram.analysis import analyse
    from ipyvram.comparison import Comparison
    from ipyvram.difference import compare, compare_steps
    from ipyvram.estimating import estimate
    from ipyvram.measuring import measure, retrace
    from ipyvram.notebooks import read_notebook, read_notebooks
    from ipyvram.ranks import gather
    from ipyvram.report import Report
    from ipyvram.snapshot import read_snapshot
    from ipyvram.sweep.comparing import compare_batches

    last: Report | None

__version__ = "0.1.0"

__all__ = [
    "Comparison",
    "Report",
    "__version__",
    "analyse",
    "compare",
    "compare_batches",
    "compare_steps",
    "estimate",
    "gather",
    "history",
    "last",
    "load_ipython_extension",
    "measure",
    "read_notebook",
    "read_notebooks",
    "read_snapshot",
    "retrace",
    "unload_ipython_extension",
]

_HOMES = {
    "Comparison": "comparison",
    "Report": "report",
    "analyse": "analysis",
    "compare_batches": "sweep.comparing",
    "compare": "difference",
    "compare_steps": "difference",
    "estimate": "estimating",
    "gather": "ranks",
    "measure": "measuring",
    "read_notebook": "notebooks",
    "read_notebooks": "notebooks",
    "read_snapshot": "snapshot",
    "retrace": "measuring",
}


def __getattr__(name: str) -> Any:
    if name == "last":  # the newest report of this session, or None; never cached
        return import_module("ipyvram.journal").last()
    if name in _HOMES:
        value = getattr(import_module(f"ipyvram.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'ipyvram' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def history() -> pd.DataFrame:
    """One row for each report of this session, oldest first: label, device, peak, steps, duration, error."""
    from ipyvram import journal

    return journal.history()


def load_ipython_extension(ip: Any) -> None:
    """``%load_ext ipyvram``: from now on ``%%vram`` measures a cell."""
    from ipyvram import magic

    magic.load(ip)


def unload_ipython_extension(ip: Any) -> None:
    """``%unload_ext ipyvram``: everything that was registered is gone again."""
    from ipyvram import magic

    magic.unload()
