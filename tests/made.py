"""Hand-made reports and notebooks for the tests of what is said about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ipyvram.recording import CATEGORIES
from ipyvram.report import Report

MIB = 2**20
REPORT_TYPE = "application/vnd.ipyvram.report.v1+json"


def account(**bytes_: int) -> dict[str, int]:
    """A full account: the categories named, zero elsewhere."""
    assert set(bytes_) <= set(CATEGORIES)
    return dict.fromkeys(CATEGORIES, 0) | bytes_


def report(peak: dict[str, int] | None = None, **fields: Any) -> Report:
    """A report whose sums close: 100 MiB of parameters unless told."""
    peak = account(parameters=100 * MIB) if peak is None else account(**peak)
    defaults: dict[str, Any] = {"start": account(), "end": account(), "duration_s": 1.5, "started_at": 1.7e9}
    return Report(peak_bytes=sum(peak.values()), peak=peak, **defaults | fields)


def output(data: Any, kind: str = REPORT_TYPE, text: str = "a report") -> dict[str, Any]:
    """A notebook output that carries ``data``."""
    return {"output_type": "display_data", "metadata": {}, "data": {"text/plain": text, kind: data}}


def cell(*outputs: dict[str, Any], source: str = "", count: int | None = None) -> dict[str, Any]:
    """A code cell."""
    return {
        "cell_type": "code",
        "id": f"c{abs(hash(source)) % 10**6}",
        "metadata": {},
        "execution_count": count,
        "source": source,
        "outputs": list(outputs),
    }


def notebook(path: Path, *cells: dict[str, Any]) -> Path:
    """Write a notebook of these cells."""
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells)}))
    return path
