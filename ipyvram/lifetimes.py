"""What was live at any moment, largest first, from few rows: a ledger and its attribution come in, a choice of spans goes out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ipyvram.attribution import Attribution
from ipyvram.ledger import Ledger
from ipyvram.recording import CATEGORIES

MOMENTS = 80  # instants at which the largest are looked for
LARGEST = 8  # how many of them at each
MAX_SPANS = 160


class Span(NamedTuple):
    """A row of the ledger while it is in one category: live at the instants ``begin <= k < end``."""

    row: int
    category: str
    begin: int
    end: int


def largest_spans(ledger: Ledger, attribution: Attribution, instants: NDArray[np.int64]) -> list[Span]:
    """The spans that are among the `LARGEST` live at one of `MOMENTS` moments, largest first, at most `MAX_SPANS`.

    Parameters
    ----------
    instants : array of int64
        Where to look; the moments are spread over these.
    """
    s = attribution.spans
    sizes = ledger.bytes[s.row]
    chosen: set[int] = set()
    for k in instants[np.unique(np.linspace(0, len(instants) - 1, MOMENTS).astype(int))] if len(instants) else ():
        live = np.flatnonzero((s.begin <= k) & (s.end > k) & (sizes > 0))
        chosen.update(live[np.argsort(-sizes[live], kind="stable")[:LARGEST]].tolist())
    order = sorted(chosen, key=lambda i: (-int(sizes[i]), i))[:MAX_SPANS]
    return [Span(int(s.row[i]), CATEGORIES[s.category[i]], int(s.begin[i]), int(s.end[i])) for i in order]
