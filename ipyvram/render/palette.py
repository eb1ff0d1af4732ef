"""Colours and letters of the categories: no input; looked up by every renderer.

The hues have a middle lightness, so that they read on white and on black (contrast of at least 3 : 1 on both), and stay
apart for the three kinds of colour blindness: any two, and neighbours in a stack twice as far. They were found by a
search for the largest such distance; `tests/test_render_palette.py` computes it.
"""

from __future__ import annotations

from ipyvram.report import LABELS

COLOURS = {
    "parameters": "#1e94fa",
    "gradients": "#316d60",
    "optimizer_state": "#7e9a24",
    "inputs": "#8c583f",
    "activations": "#fa561e",
    "temporaries": "#c638d4",
    "buffers": "#8326fa",
    "outputs": "#da3cb7",
    "workspaces": "#c1816b",
    "other": "#9b8a9e",
}

#: The rest of the card is grey on purpose: it is not the cell's to change. Alpha lets the page shine through.
CARD_COLOURS = {
    "cache": "rgba(128,128,128,0.85)",
    "context": "rgba(128,128,128,0.6)",
    "other_processes": "rgba(128,128,128,0.4)",
    "free": "rgba(128,128,128,0.14)",
}

ALL_COLOURS = COLOURS | CARD_COLOURS

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
