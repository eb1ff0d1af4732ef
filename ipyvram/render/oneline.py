"""A report as one line that unfolds: a `Report` and the line come in, a MIME bundle goes out."""

from __future__ import annotations

from typing import Any

from ipyvram.render.bundle import bundle
from ipyvram.render.markup import clean, folded, style
from ipyvram.report import Report


def oneline(report: Report, line: str) -> dict[str, Any]:
    """As `render.bundle.bundle`, the whole report behind the line."""
    data = bundle(report)
    look = style("font:13px/1.5 system-ui,-apple-system,sans-serif", "color:inherit")
    folded_html = f'<div class="ipyvram"{look}>{folded(line, data["text/html"])}</div>'
    return data | {"text/plain": clean(line), "text/html": folded_html}
