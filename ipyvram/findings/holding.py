"""Findings about memory that lives on beside the account: tracebacks, ``Out``, earlier models, kept graphs.

Observations read here:

=====================  =================================================================================================
kind                   meaning
=====================  =================================================================================================
``traceback``          ``bytes`` only reachable from the frames of an earlier error; ``name`` is its type
``out``                ``bytes`` that IPython's output cache holds and no variable does; ``name`` lists ``Out[3], _``
``old_model``          an earlier value of variable ``name`` is alive; ``holder`` keeps it; ``bytes`` with its gradients
``orphan_optimizer``   optimizer ``name`` stepped on ``count`` parameters of ``bytes`` that no live model has
``untrained``          ``count`` parameters, of model ``name`` where it is known, have gradients of ``bytes`` that no optimizer uses
``graphs``             ``count`` autograd graphs hang on tensors in variable ``name`` and keep ``bytes`` alive;
                       ``holder`` is ``at least`` where hooks (checkpoints) keep more than can be seen
=====================  =================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterator

from ipyvram.findings.worth import Rule, code, observed, release, worth
from ipyvram.report import Report
from ipyvram.report_rows import Finding
from ipyvram.units import format_bytes

#: One kept loss is what `loss` after the loop is; a container that keeps two or more grows with the loop.
MIN_GRAPHS = 2


def _traceback(report: Report) -> Iterator[Finding]:
    for o in observed(report, "traceback"):
        if report.oom is not None and o.bytes <= report.oom.pinned_bytes:
            continue  # this very error's: the out-of-memory report says so
        if worth(o.bytes, report):
            kind = f" ({o.name})" if o.name else ""
            text = (
                f"{format_bytes(o.bytes)} are held by the traceback of an error{kind}: "
                "%vram free --traceback releases them (%debug of that error then no longer works)."
            )
            yield Finding("traceback", text, o.bytes)


def _out(report: Report) -> Iterator[Finding]:
    for o in observed(report, "out"):
        if worth(o.bytes, report):
            verb = "hold" if "," in o.name else "holds"
            text = (
                f"{code(o.name)} {verb} {format_bytes(o.bytes)} that no variable holds: del of a variable will not free "
                "them, %vram free --out does; a ; at the end of a line keeps its value out of Out."
            )
            yield Finding("out", text, o.bytes)


def _old_model(report: Report) -> Iterator[Finding]:
    for o in observed(report, "old_model"):
        if worth(o.bytes, report):
            previous = f"The previous {code(o.name)} ({format_bytes(o.bytes)}) is still alive"
            if o.holder:
                text = f"{previous}, held by {code(o.holder)}: {release(o.holder)} before making {code(o.name)} anew."
            else:
                text = f"{previous}, and no variable holds it: gc.collect() frees what is in a reference cycle."
            yield Finding("old_model", text, o.bytes)


def _orphan_optimizer(report: Report) -> Iterator[Finding]:
    for o in observed(report, "orphan_optimizer"):  # a bug at any size: no threshold
        text = (
            f"{code(o.name)} updates {o.count} parameters ({format_bytes(o.bytes)}) of no live model: the model was made "
            "anew after it. Its steps change nothing that is used; make the optimizer after the model."
        )
        yield Finding("orphan_optimizer", text, o.bytes)


def _untrained(report: Report) -> Iterator[Finding]:
    for o in observed(report, "untrained"):
        if worth(o.bytes, report):
            of = f" of {code(o.name)}" if o.name else ""
            text = (
                f"Backward makes gradients ({format_bytes(o.bytes)}) for {o.count} parameters{of} that no optimizer updates: "
                "requires_grad_(False) on them saves these, and what is kept to compute them."
            )
            yield Finding("untrained", text.replace("1 parameters", "1 parameter") if o.count == 1 else text, o.bytes)


def _graphs(report: Report) -> Iterator[Finding]:
    for o in observed(report, "graphs"):
        if o.count >= MIN_GRAPHS and worth(o.bytes, report):
            least = f"{o.holder} " if o.holder else ""
            text = (
                f"{code(o.name)} keeps {o.count} autograd graphs alive, {least}{format_bytes(o.bytes)}: "
                "append .detach(), or .item() of a loss, instead."
            )
            yield Finding("graphs", text, o.bytes)


RULES: tuple[Rule, ...] = (_traceback, _out, _old_model, _orphan_optimizer, _untrained, _graphs)
