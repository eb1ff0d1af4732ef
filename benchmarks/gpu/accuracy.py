"""What a check of a card found about estimates, as a page: the text of ``results.json`` in, Markdown out."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.about import is_rehearsal
from ipyvram.recording import CATEGORIES
from ipyvram.units import format_bytes

#: What is aimed at: figure → largest median and largest single error.
GOALS: dict[str, tuple[float, float | None]] = {"allocated": (0.01, 0.05), "reserved": (0.02, None)}

Results = dict[str, Any]


def page(results: Results) -> str:
    """The page.

    Raises
    ------
    ValueError
        There are no estimates beside measured figures in the results.
    """
    rows = [r for r in results["rows"] if r["check"] == "estimate"]
    if not rows:
        raise ValueError("the results hold no estimates: repeat gpu_check.py --only estimates with the same folder")
    parts = (_head(results), _goals(rows), _table(results, rows), _categories(rows), _checks(results))
    return "\n".join(line for part in parts for line in (*part, ""))


def _head(results: Results) -> Iterator[str]:
    about = results["about"]
    yield "# How good estimates are"
    yield ""
    if is_rehearsal(about):
        yield "**A rehearsal on a simulated card: nothing here was measured.**"
        yield ""
    yield (
        f"Training and inference programs of `benchmarks/gpu/programs.py`, measured on {about['card']} "
        f"({format_bytes(about['card_bytes'])}; driver {about['driver'] or 'unknown'}, torch {about['torch']}, CUDA {about['cuda']}, "
        f"cuDNN {about['cudnn']}) and estimated "
        "for that card from the same code. Made by `python benchmarks/gpu_check.py`, which `benchmarks/README.md` explains."
    )


def _goals(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield "| figure | median error | goal | largest error | goal |"
    yield "|---|---:|---:|---:|---:|"
    for name, (median, most) in GOALS.items():
        errors = [abs(r["figures"][f"{name}_error"]) for r in rows]
        yield (f"| {name} | {statistics.median(errors):.2%} | {_goal(median)} | {max(errors):.2%} | {_goal(most)} |")


def _goal(value: float | None) -> str:
    return "–" if value is None else f"≤ {value:.0%}"


def _table(results: Results, rows: list[dict[str, Any]]) -> Iterator[str]:
    measured = {r["case"]: r["figures"] for r in results["rows"] if r["check"] == "measured"}
    yield "## Peaks"
    yield ""
    yield "| program | allocated | estimate | reserved | estimate | driver, most | context |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in rows:
        f, m = row["figures"], measured.get(row["case"], {})
        yield (
            f"| {row['case']} | {_bytes(sum(f['measured'].values()))} | {f['allocated_error']:+.2%} "
            f"| {_bytes(m.get('peak_reserved'))} | {f['reserved_error']:+.2%} "
            f"| {_bytes(m.get('nvml_used'))} | {_bytes(m.get('context'))} |"
        )


def _categories(rows: list[dict[str, Any]]) -> Iterator[str]:
    """By how much a category is over- or underestimated, as a share of the peak."""
    yield "## By category, in percent of the measured peak"
    yield ""
    used = [c for c in CATEGORIES if any(r["figures"][k].get(c) for r in rows for k in ("measured", "predicted"))]
    yield "| program | " + " | ".join(used) + " |"
    yield "|---" + "|---:" * len(used) + "|"
    for row in rows:
        f, peak = row["figures"], sum(row["figures"]["measured"].values()) or 1
        apart = [(f["predicted"].get(c, 0) - f["measured"].get(c, 0)) / peak for c in used]
        yield f"| {row['case']} | " + " | ".join(f"{a:+.1%}" if abs(a) >= 5e-4 else "0" for a in apart) + " |"


def _checks(results: Results) -> Iterator[str]:
    """How many checks passed, and every one that did not."""
    rows = [r for r in results["rows"] if r["ok"] is not None]
    failed = [r for r in rows if not r["ok"]]
    yield "## Checks"
    yield ""
    yield f"{len(rows) - len(failed)} of {len(rows)} checks of the measuring itself passed."
    if failed:
        yield ""
        yield "| check that failed | of | found |"
        yield "|---|---|---|"
        yield from (f"| {r['check']} | {r['case']} | {_cell(r['text'])} |" for r in failed)
    overhead = [r for r in results["rows"] if r["check"] == "overhead" and r["figures"]]
    if overhead:
        yield ""
        yield "| overhead of | measured against bare, in turns |"
        yield "|---|---|"
        yield from (f"| {r['case']} | {_cell(r['text'])} |" for r in overhead)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _bytes(count: float | None) -> str:
    return "–" if count is None else format_bytes(int(count))
