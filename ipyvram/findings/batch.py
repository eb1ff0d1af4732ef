"""Findings about the account itself: what the batch size moves, and what else is at the peak."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ipyvram.findings.worth import MIN_SHARE, Rule, code, keeps_history, observed, worth
from ipyvram.report import Report
from ipyvram.report_rows import AFTER_TRACE, Finding, TensorRow
from ipyvram.units import format_bytes, format_share

#: A category is named as the lever when it is at least half of the peak.
LEVER_SHARE = 0.5
#: Steps of so many sizes are not batches of a loader, the last of which is smaller: episodes, graphs.
SIZES = 3
#: A program that runs its model so often before one backward does so for each state of an episode; a triplet is three.
FORWARDS = 8
#: What is reserved grows with the batch in steps, up to 21 % above the straight line in `benchmarks/batch_answers.py`.
STEPWISE = 0.25
#: Optimizer temporaries are worth removing from a tenth of the peak.
TEMPORARIES_SHARE = 0.1
#: Optimizers of torch that have a fused form.
FUSED = ("Adagrad", "Adam", "AdamW", "SGD")


def _idle_gpu(report: Report) -> Iterator[Finding]:
    idle = report.environment.get("idle_gpu")
    if report.device == "cpu" and idle and report.steps:
        made_here = all(t.phase != "before" for t in report.tensors_at_peak if t.category == "parameters")
        text = (
            f"This cell trained on the CPU while {idle} stood idle: move the model and the batch with .to('cuda')"
            f"{', or use --device cuda' if made_here else ''}."
        )
        yield Finding("idle_gpu", text)


#: How torch says that it cannot use a GPU: no driver, a build without CUDA, none visible.
_NO_GPU = ("Found no NVIDIA driver", "Torch not compiled with CUDA enabled", "No CUDA GPUs are available")


def _no_gpu(report: Report) -> Iterator[Finding]:
    if report.error and any(words in report.error for words in _NO_GPU):
        text = (
            "torch can use no GPU here. To run the cell on the CPU, choose the device with "
            "torch.cuda.is_available(); to see what it would take on a GPU, add --estimate --card T4 (or another card)."
        )
        yield Finding("no_gpu", text)


_MOVING = ("activations", "inputs", "outputs")
_FIXED = ("parameters", "gradients", "optimizer_state")


def _lever(report: Report) -> Iterator[Finding]:
    """Which quantity the batch size moves; none of what earlier cells left, nor where the peak was before the first forward."""
    first_s = min((p.start_s for p in report.phases), default=0.0)
    if not report.peak_bytes or not report.steps or (not report.peak_phase and report.peak_time_s < first_s):
        return
    moving, fixed = moving_bytes(report), sum(report.peak[c] for c in _FIXED)
    if moving >= LEVER_SHARE * report.peak_bytes and (report.batch or _forwards(report)):
        part = format_share(moving, report.peak_bytes)
        text = f"Activations, the batch and what comes with them are {part} of the peak, {_each(report, moving)}"
        yield Finding("lever", text, moving)
    elif fixed >= LEVER_SHARE * report.peak_bytes:
        text = (
            f"Parameters, gradients and optimizer state are {format_share(fixed, report.peak_bytes)} of the peak: "
            f"a smaller batch lowers only the rest.{_fewer_fixed(report)}"
        )
        yield Finding("lever", text, fixed)


def _each(report: Report, moving: int) -> str:
    """What a sample takes, and where there may be fewer of them."""
    if (calls := _forwards(report)) and not any(observed(report, "peak_without_gradients")):
        return f"kept of {calls} forwards until one backward: a backward after fewer of them is the lever."
    if report.batch == 1:
        return "for a batch of one: smaller inputs are the lever."
    each = f"{format_bytes(moving / report.batch)} for each of {report.batch} samples"
    if any(observed(report, "peak_without_gradients")):
        return f"{each} in a forward without gradients: a smaller batch there is the lever."
    if any(observed(report, "same_input")):
        return f"{each}, the same in every step: where they can be cut into batches, the size of these is the lever."
    sizes = {step.batch for step in report.step_accounts if step.batch}
    if len(sizes) >= SIZES:
        return (
            f"{each}, of which steps have {min(sizes)} to {max(sizes)}: where these can be cut into batches, the size of them is "
            "the lever."
        )
    return f"{each}: batch size is the lever.{_room(report)}"


def _forwards(report: Report) -> int:
    """How many forwards of one sample one backward followed, where they are as many as the states of an episode; else 0."""
    calls = max((o.count for o in observed(report, "forwards")), default=0)
    return calls if calls >= FORWARDS and report.batch <= 1 else 0


def _fewer_fixed(report: Report) -> str:
    """What lowers parameters, gradients and optimizer state, as far as the account tells that it would."""
    state, trained = report.peak["optimizer_state"], report.peak["gradients"] + report.peak["optimizer_state"]
    ways = []
    if worth(state, report):
        full = ", 8 bits about a quarter" if _in_full(report, "optimizer_state") else ""
        less = "a smaller history_size of L-BFGS, or " if keeps_history(report) else ""
        ways.append(f"{less}an optimizer with less state ({format_bytes(state)} now; plain SGD none{full})")
    if worth(trained, report):
        ways.append(f"training fewer parameters (frozen layers, LoRA: up to {format_bytes(trained)})")
    if _in_full(report, "parameters"):
        ways.append("bfloat16 instead of float32 for the model (half of all three, at less precision)")
    return f" What lowers them: {'; '.join(ways)}." if ways else ""


def _in_full(report: Report, category: str) -> bool:
    """Whether most of it is in float32."""
    full = sum(t.bytes for t in report.tensors_at_peak if t.category == category and t.dtype == "float32")
    return 2 * full > report.peak[category]


def moving_bytes(report: Report) -> int:
    """Bytes of the peak that grow with the batch: of this cell, and no data set."""
    moving = sum(report.peak[c] for c in _MOVING) - _earlier_results(report)
    if report.peak_phase in ("forward", "backward"):
        moving += report.peak["temporaries"]  # gradients of activations
    if report.batch:  # a data set that lies on the device is among the inputs, and stays as it is
        moving -= sum(t.bytes for t in _inputs(report) if t.shape and t.shape[0] > report.batch)
    moving -= sum(t.bytes for t in report.tensors_at_peak if t.category in _MOVING and t.in_error)
    return moving - sum(bytes_ for _, bytes_ in _kept(report))


def _room(report: Report) -> str:
    """Between which sizes the largest that fits lies, as far as one size tells; empty where it does not."""
    found = batch_bounds(report)
    if found is None:
        return ""
    limit = format_bytes(report.limit_bytes or 0)
    return f" By this one size the largest within {limit} lies between {found[0]} and {found[1]}: --max-batch finds it."


def batch_bounds(report: Report) -> tuple[int, int] | None:
    """Two bounds of the largest batch within the report's limit, from a run with one size; None where nothing bounds it.

    Tensors grow with the batch by `moving_bytes`; what the allocator *reserves* beyond them nobody knows from one size. So at most
    as many samples fit as if it reserved nothing beyond them, and at least as many as if all that it reserved grew with the
    batch, but for parameters, gradients and optimizer state; less `STEPWISE`.
    """
    moving, fixed = moving_bytes(report), sum(report.peak[c] for c in _FIXED)
    reserved, allocator = report.peak_reserved_bytes, report.allocator
    if (
        report.batch < 2
        or report.steps < 2
        or not report.limit_bytes
        or reserved is None
        or not report.card
        or moving <= 0
    ):
        return None
    if allocator.get("retries", 0) or allocator.get("reserved_before", 0) or report.error:
        return None  # it would have held more, or holds what an earlier cell needed
    room = report.limit_bytes - report.card["context"] - report.card["other_processes"]
    high = (room - (report.peak_bytes - moving)) * report.batch // moving
    least = int((1 - STEPWISE) * (room - fixed) * report.batch / max(reserved - fixed, moving))
    low = max(report.batch, least)  # which has fitted
    return (low, high) if low <= high else None


def _earlier_results(report: Report) -> int:
    """Bytes of results and kept graphs that were there before: no smaller batch makes them smaller."""
    rows = (t for t in report.tensors_at_peak if t.phase == "before" and t.category in ("activations", "outputs"))
    return sum(t.bytes for t in rows)


def _graphs(report: Report) -> dict[str, int]:
    """Tensor → bytes at the peak that its graph of an earlier cell kept."""
    found: dict[str, int] = {}
    for row in report.tensors_at_peak:
        if row.category == "activations" and row.graph_of:
            found[row.graph_of] = found.get(row.graph_of, 0) + row.bytes
    return found


def _kept(report: Report) -> list[tuple[str, int]]:
    """The same, of those that keep it still."""
    still = report.end.get("activations", 0)
    return [(name, count) for name, count in _graphs(report).items() if count <= still]


def _kept_graph(report: Report) -> Iterator[Finding]:
    for name, count in _kept(report):
        if worth(count, report) and "[" not in name:  # of containers `findings.holding` speaks
            text = (
                f"{code(name)} keeps the graph of an earlier cell: {format_bytes(count)} of the peak are its activations. "
                f"del {name}, or append .detach() where it is made."
            )
            yield Finding("kept_graph", text, count)


def _let_go_graph(report: Report) -> Iterator[Finding]:
    """The peak was there before: the cell made a variable anew whose graphs an earlier one had left.

    A cell that begins with a backward runs it through such a graph, which is no waste.
    """
    first = min(report.phases, key=lambda phase: phase.start_s, default=None)
    if first is None or first.name != "forward":
        return
    found: dict[str, int] = {}
    for name, count in _graphs(report).items():
        variable = re.split(r"\W", name, maxsplit=1)[0]
        found[variable] = found.get(variable, 0) + count
    for variable, count in found.items():
        if count > report.end.get("activations", 0) and worth(count, report):
            text = (
                f"{code(variable)} of an earlier cell kept {format_bytes(count)} of the peak in its graph until this cell let "
                f"go of it: del {variable} first, to see what this cell itself takes."
            )
            yield Finding("let_go_graph", text, count)


def _inputs(report: Report) -> list[TensorRow]:
    return [t for t in report.tensors_at_peak if t.category == "inputs"]


def _after_trace(report: Report) -> Iterator[Finding]:
    row = next((t for t in report.tensors_at_peak if t.name == AFTER_TRACE), None)
    if row is not None and worth(row.bytes, report):
        by = next((o.count for o in observed(report, "rose") if o.bytes >= (1 - MIN_SHARE) * report.peak_bytes), 0)
        when, more = (f", by the end of step {by}", f" {by}") if by else ("", "")
        text = (
            f"The peak came after the traced part{when}: {format_bytes(row.bytes)} of it have no category. "
            f"Trace more with --trace-steps{more}."
        )
        yield Finding("after_trace", text, row.bytes)


def _optimizer_temporaries(report: Report) -> Iterator[Finding]:
    temporaries = report.peak["temporaries"]
    if (
        report.peak_phase == "optimizer"
        and optimizer_is_foreach(report)
        and temporaries >= TEMPORARIES_SHARE * report.peak_bytes > 0
    ):
        largest = max((t.bytes for t in report.tensors_at_peak if t.category == "parameters"), default=0)
        ways = fewer_temporaries(temporaries, largest, report.environment.get("optimizer", ""))
        if ways:
            them = "most of them" if "foreach" in ways else "them"
            text = (
                f"The optimizer step is the peak, with {format_bytes(temporaries)} of temporaries: "
                f"{ways} in the optimizer avoids {them}."
            )
            yield Finding("optimizer_temporaries", text, temporaries)


def fewer_temporaries(temporaries: int, largest: int, optimizer: str = "") -> str:
    """What lowers the temporaries of a foreach optimizer, as its arguments; empty where nothing does.

    Parameters
    ----------
    largest : int
        Bytes of the largest parameter: a loop over the parameters has up to three of one parameter's size at a time.
    optimizer : str
        Its class; empty where it is not known.
    """
    ways = ["foreach=False"] if 3 * largest < temporaries else []
    ways += ["fused=True"] if not optimizer or optimizer in FUSED else []
    return " or ".join(ways)


def optimizer_is_foreach(report: Report) -> bool:
    """Whether the optimizer updates all parameters at once, with temporaries of their size: torch's default on CUDA."""
    default = "foreach" if report.device.startswith("cuda") else "for-loop"
    return report.environment.get("optimizer_implementation", default) == "foreach"


RULES: tuple[Rule, ...] = (_idle_gpu, _no_gpu, _lever, _kept_graph, _let_go_graph, _after_trace, _optimizer_temporaries)
