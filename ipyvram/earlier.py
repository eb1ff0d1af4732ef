"""What earlier cells left on the card and the measured one does not use: the account of an instant comes in, who holds how much goes out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ipyvram.attribution import Attribution
from ipyvram.ledger import Ledger
from ipyvram.recording import Claim
from ipyvram.report_rows import OF_ERROR, OF_GRAPH, TensorRow

_OF_MODELS = ("parameters", "buffers", "gradients", "optimizer_state")
#: Who claims so has used it in this cell; at its start nothing is claimed so.
_USES = ("inputs", "activations")
_NAME = re.compile(r"[^\W\d]\w*")


@dataclass(frozen=True, slots=True)
class Earlier:
    """An allocation that was there before the cell, and all that was claimed of it."""

    row: TensorRow
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Unused:
    """``holder`` is a variable; ``what`` it holds: ``data``, ``graph`` or ``model`` (with gradients and optimizer state)."""

    holder: str
    what: str
    bytes: int


def in_order(ledger: Ledger, attribution: Attribution, instant: int) -> list[tuple[int, str]]:
    """Row and category of everything live at an instant, in the order in which it was allocated."""
    live = attribution.category_at(instant)
    return [(row, live[row]) for row in sorted(live, key=lambda row: (int(ledger.born[row]), row))]


def there_before(
    ledger: Ledger, attribution: Attribution, instant: int, live: tuple[TensorRow, ...]
) -> tuple[Earlier, ...]:
    """The first of ``live``, which are in order: what was there when the trace began."""
    rows = [row for row, _ in in_order(ledger, attribution, instant) if not ledger.born[row]]
    return tuple(Earlier(live[i], attribution.claims.get(row, ())) for i, row in enumerate(rows))


def unused(earlier: Iterable[Earlier], source: str, ran: Iterable[str]) -> tuple[Unused, ...]:
    """Variables that neither the cell's text names nor its models were given, largest first.

    Parameters
    ----------
    source : str
        Text of the measured cell.
    ran : iterable of str
        Root modules whose forward ran in it.
    """
    named = {*_NAME.findall(source), *ran}
    found: dict[tuple[str, str], int] = {}
    for one in earlier:
        holder, what = _holder(one)
        if holder and holder not in named and not any(c.category in _USES for c in one.claims):
            found[holder, what] = found.get((holder, what), 0) + one.row.bytes
    rows = (Unused(holder, what, count) for (holder, what), count in found.items())
    return tuple(sorted(rows, key=lambda u: (-u.bytes, u.holder)))


def _holder(one: Earlier) -> tuple[str, str]:
    """The variable that leads to it; empty where none does."""
    name = one.row.name
    if one.row.category in _OF_MODELS:
        label = next((c.module for c in one.claims if c.category in _OF_MODELS and c.module), "")
        return _variable(label), "model"
    if name.startswith(OF_GRAPH):
        return _variable(name.removeprefix(OF_GRAPH)), "graph"
    return "" if name.startswith(OF_ERROR) else _variable(name), "data"


def _variable(path: str) -> str:
    """``batches`` of ``batches[2]``; nothing of what IPython keeps."""
    found = _NAME.match(path)
    return "" if found is None or " " in path or path.startswith(("_", "Out[")) else found[0]
