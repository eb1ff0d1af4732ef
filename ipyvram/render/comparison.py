"""A comparison as a MIME bundle: text, HTML and versioned JSON of the same thing."""

from __future__ import annotations

from typing import Any

from ipyvram.comparison import Comparison
from ipyvram.render.comparison_html import html
from ipyvram.render.comparison_text import text
from ipyvram.render.terminal import looks

MIME_TYPE = "application/vnd.ipyvram.comparison.v1+json"


def bundle(comparison: Comparison) -> dict[str, Any]:
    """MIME type → data, for ``publish_display_data`` and ``_repr_mimebundle_``."""
    return {"text/plain": text(comparison, **looks()), "text/html": html(comparison), MIME_TYPE: comparison.to_dict()}
