"""What earlier cells left on the card and the measured one does not use: the account of an instant comes in, who holds how much goes out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ipyvram.attribution import Attribution
from ipyvram.ledger import Ledger
from ipyvram.recording import Claim
from ipyvram.report_rows import TensorRow

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


def gradients_of(ledger: Ledger, attribution: Attribution, instant: int, used: set[str]) -> dict[str, int]:
    """Model → bytes of its gradients at an instant; of those that were there before, only of models that the cell uses."""
    found: dict[str, int] = {}
    for row, category in in_order(ledger, attribution, instant):
        if category == "gradients":
            model = next((c.module for c in attribution.claims.get(row, ()) if c.category == "gradients"), "")
            if ledger.born[row] or model in used:
                found[model] = found.get(model, 0) + int(ledger.bytes[row])
    return found


def used_in(source: str, ran: Iterable[str]) -> set[str]:
    """Names in the text of the measured cell, and root modules whose forward ran in it."""
    return {*_NAME.findall(source), *ran}


def unused(earlier: Iterable[Earlier], used: set[str]) -> tuple[Unused, ...]:
    """Variables that are not among the ``used`` and that its models were not given, largest first."""
    found: dict[tuple[str, str], int] = {}
    for one in earlier:
        holder, what = _holder(one)
        if holder and holder not in used and not any(c.category in _USES for c in one.claims):
            found[holder, what] = found.get((holder, what), 0) + one.row.bytes
    rows = (Unused(holder, what, count) for (holder, what), count in found.items())
    return tuple(sorted(rows, key=lambda u: (-u.bytes, u.holder)))


def trains_in(source: str) -> bool:
    """Whether a cell's text goes on to train: it names a backward or an optimizer."""
    return bool({"backward", "optim", "optimizer", "zero_grad"} & {*_NAME.findall(source)})


def _holder(one: Earlier) -> tuple[str, str]:
    """The variable that leads to it; empty where none does."""
    if one.row.category in _OF_MODELS:
        label = next((c.module for c in one.claims if c.category in _OF_MODELS and c.module), "")
        return _variable(label), "model"
    if one.row.graph_of:
        return _variable(one.row.graph_of), "graph"
    return "" if one.row.in_error else _variable(one.row.name), "data"


def _variable(path: str) -> str:
    """``batches`` of ``batches[2]``; nothing of what IPython keeps."""
    found = _NAME.match(path)
    return "" if found is None or " " in path or path.startswith(("_", "Out[")) else found[0]
