"""Colours and letters of the categories: no input; looked up by every renderer.

The hues have a middle lightness, so that they read on white and on the dark of JupyterLab and VS Code (contrast of at least
3 : 1), and stay apart for the three kinds of colour blindness: any two, and neighbours in a stack nearly twice as far. They
were found by a search for the largest such distance; `tests/test_render_palette.py` computes it.
"""

from __future__ import annotations

from ipyvram.report_rows import LABELS

COLOURS = {
    "parameters": "#0b94fd",
    "gradients": "#357661",
    "optimizer_state": "#7a9918",
    "inputs": "#a1583c",
    "activations": "#ff4b06",
    "temporaries": "#bd4fcb",
    "buffers": "#754cf3",
    "outputs": "#d841ae",
    "workspaces": "#c67f63",
    "other": "#9a8992",
}

#: The rest of the card is grey on purpose: it is not the cell's to change. What is taken reads on light and dark as the
#: categories do; through what is free the page shines.
CARD_COLOURS = {
    "cache": "#949494",
    "context": "#7d7d7d",
    "other_processes": "#696969",
    "free": "rgba(128,128,128,0.14)",
}

ALL_COLOURS = COLOURS | CARD_COLOURS

#: A line of the charts; and the bar beside an error.
LIMIT_COLOUR, TROUBLE_COLOUR = "#d841ae", "#d2477f"

#: How an SVG that is shown as an image looks: no grey reads well enough on white and on near-black, so it has paper of its
#: own and ink for it, light or dark as the page says by its ``color-scheme``, or else the browser. For browsers that do not
#: know ``light-dark()`` it is light.
PAPER = (
    "color-scheme:light dark;background:#fff;background:light-dark(#fff,#111);color:#444;color:light-dark(#444,#ccc)"
)

#: Categories of tensors, in the order of display.
CATEGORIES = tuple(c for c in LABELS if c not in CARD_COLOURS)

#: The same from the ground up in the timeline: what is steady lies below what comes and goes.
STACK = (
    "parameters", "optimizer_state", "workspaces", "buffers", "other",
    "inputs", "outputs", "gradients", "activations", "temporaries",
)  # fmt: skip

#: What stands for a category where there is no colour: the bar and the chart of the text form.
LETTERS = dict(zip(CATEGORIES, "PGOBATUSWX", strict=True))
CARD_LETTERS = {"cache": "▓", "context": "▒", "other_processes": "░", "free": "·"}
CARD_LETTERS_ASCII = {"cache": "=", "context": "+", "other_processes": "-", "free": "."}
