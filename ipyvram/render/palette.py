"""Colours and letters of the categories: no input; looked up by every renderer.

The hues have a middle lightness, so that they read on white and on black (contrast of at least 3 : 1 on both), and
neighbours in the stack stay apart for the three kinds of colour blindness; `tests/test_render_palette.py` computes it.
"""

from __future__ import annotations

from ipyvram.report import LABELS

COLOURS = {
    "parameters": "#2f7fd0",
    "gradients": "#1797a3",
    "optimizer_state": "#6d8f1f",
    "inputs": "#b9820b",
    "activations": "#e0503f",
    "temporaries": "#a653c8",
    "buffers": "#7f6fe8",
    "outputs": "#d2477f",
    "workspaces": "#9a7b5e",
    "other": "#7d838c",
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

#: What stands for a category where there is no colour: the bar and the chart of the text form.
LETTERS = dict(zip(CATEGORIES, "PGOBATUSWX", strict=True))
CARD_LETTERS = {"cache": "▓", "context": "▒", "other_processes": "░", "free": "·"}
CARD_LETTERS_ASCII = {"cache": "=", "context": "+", "other_processes": "-", "free": "."}
