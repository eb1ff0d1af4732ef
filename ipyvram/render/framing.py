"""What stands around every form in HTML: a body of markup comes in, a fragment goes out that keeps to itself.

A style sheet and a script, where there are any, are part of the fragment: nothing is loaded, and what they say is said of
this fragment alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from ipyvram.render.markup import style

#: Wider it is not easier to read; narrower it is as wide as the page.
MAX_WIDTH = 880


def framed(body: str, *, sheets: Sequence[str] = (), scripts: Sequence[str] = ()) -> str:
    """``body`` in a box with our font; with it files of ``render/assets``, where ``ROOT`` stands for the box's id."""
    root = "ipyvram-" + hashlib.sha256(body.encode()).hexdigest()[:10]
    look = style(
        "font:13px/1.5 system-ui,-apple-system,sans-serif", "color:inherit", f"max-width:{MAX_WIDTH}px", "padding:6px 0"
    )
    name = f' id="{root}"' if sheets or scripts else ""
    css = "".join(f"<style>{asset(file).replace('ROOT', root)}</style>" for file in sheets)
    js = "".join(f"<script>{asset(file).replace('ROOT', root)}</script>" for file in scripts)
    # a label with dollars is not a formula
    return f'<div{name} class="ipyvram tex2jax_ignore mathjax_ignore"{look}>{css}{body}{js}</div>'


@cache
def asset(name: str) -> str:
    """A file of ``render/assets``, without its comment lines and indentation."""
    text = files("ipyvram.render").joinpath("assets", name).read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(("//", "/*")))
