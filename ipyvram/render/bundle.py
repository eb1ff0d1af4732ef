"""A report as a MIME bundle: text, HTML and versioned JSON of the same thing; a front end shows the richest it can.

Never ``application/json`` or ``application/javascript``: JupyterLab ranks the one, nbconvert the other, before HTML.
"""

from __future__ import annotations

import json
from typing import Any

from ipyvram.render.html import html
from ipyvram.render.markup import clean, escape
from ipyvram.render.terminal import looks
from ipyvram.render.text import text
from ipyvram.report import Report

MIME_TYPE = "application/vnd.ipyvram.report.v1+json"

#: Largest JSON kept in a notebook: it goes into version control.
MAX_JSON_BYTES = 60_000

#: How much of a report to keep, from most to least: tensors, groups, instants.
_DETAIL = ((60, 40, 300), (40, 24, 200), (24, 14, 120), (12, 8, 60), (6, 4, 24))


def bundle(report: Report) -> dict[str, Any]:
    """MIME type → data, for ``publish_display_data`` and ``_repr_mimebundle_``."""
    return {"text/plain": text(report, **looks()), "text/html": html(report), MIME_TYPE: small_dict(report)}


def with_notes(data: dict[str, Any] | None, notes: list[str]) -> dict[str, Any]:
    """A bundle with lines below it, for where these cannot be outputs of their own; both may be missing."""
    data = {"text/plain": "", "text/html": ""} if data is None else data
    lines = "".join(f"<div>{escape(note)}</div>" for note in notes)
    plain = "\n".join([*([data["text/plain"]] if data["text/plain"] else []), *map(clean, notes)])
    return data | {"text/plain": plain, "text/html": data["text/html"] + lines}


def small_dict(report: Report) -> dict[str, Any]:
    """`Report.to_dict` in at most `MAX_JSON_BYTES`: rows merged and curves thinned as far as that needs; sums stay."""
    data: dict[str, Any] = {}
    for tensors, groups, points in _DETAIL:
        data = report.trimmed(tensors=tensors, groups=groups, points=points).to_dict()
        if len(json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()) <= MAX_JSON_BYTES:
            break
    return data
