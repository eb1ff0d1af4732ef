"""Findings about the account itself: what the batch size moves, and what else is at the peak."""

from __future__ import annotations

from collections.abc import Iterator

from ipyvram.findings.worth import Rule, code, worth
from ipyvram.report import Report
from ipyvram.report_rows import AFTER_TRACE, OF_ERROR, OF_GRAPH, Finding, TensorRow
from ipyvram.units import format_bytes, format_share

#: A category is named as the lever when it is at least half of the peak.
LEVER_SHARE = 0.5
#: Optimizer temporaries are worth removing from a tenth of the peak.
TEMPORARIES_SHARE = 0.1
#: Optimizers of torch that have a fused form.
FUSED = ("Adagrad", "Adam", "AdamW", "SGD")


def _idle_gpu(report: Report) -> Iterator[Finding]:
    idle = report.environment.get("idle_gpu")
    if report.device == "cpu" and idle and report.steps:
        text = (
            f"This cell trained on the CPU while {idle} stood idle: "
            "move the model and the batch with .to('cuda'), or use --device cuda."
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


def _lever(report: Report) -> Iterator[Finding]:
    """Which quantity the batch size moves; none of what earlier cells left, nor where the peak was before the first forward."""
    first_s = min((p.start_s for p in report.phases), default=0.0)
    if not report.peak_bytes or not report.steps or (not report.peak_phase and report.peak_time_s < first_s):
        return
    moving = report.peak["activations"] + report.peak["inputs"] + report.peak["outputs"]
    moving -= _earlier_results(report)
    if report.peak_phase in ("forward", "backward"):
        moving += report.peak["temporaries"]  # gradients of activations
    fixed = sum(report.peak[c] for c in ("parameters", "gradients", "optimizer_state"))
    if report.batch:  # a data set that lies on the device is among the inputs, and stays as it is
        moving -= sum(t.bytes for t in _inputs(report) if t.shape and t.shape[0] > report.batch)
    moving -= sum(t.bytes for t in report.tensors_at_peak if t.category in _MOVING and t.name.startswith(OF_ERROR))
    moving -= sum(bytes_ for _, bytes_ in _kept(report))
    if moving >= LEVER_SHARE * report.peak_bytes and report.batch:
        each = f"{format_bytes(moving / report.batch)} for each of {report.batch} samples: batch size is the lever."
        text = (
            f"Activations, the batch and what comes with them are {format_share(moving, report.peak_bytes)} of the peak, "
            f"{each if report.batch > 1 else 'for a batch of one: smaller inputs are the lever.'}"
        )
        yield Finding("lever", text, moving)
    elif fixed >= LEVER_SHARE * report.peak_bytes:
        text = (
            f"Parameters, gradients and optimizer state are {format_share(fixed, report.peak_bytes)} of the peak: "
            "a smaller batch lowers only the rest."
        )
        yield Finding("lever", text, fixed)


def _earlier_results(report: Report) -> int:
    """Bytes of results and kept graphs that were there before: no smaller batch makes them smaller."""
    rows = (t for t in report.tensors_at_peak if t.phase == "before" and t.category in ("activations", "outputs"))
    return sum(t.bytes for t in rows)


def _kept(report: Report) -> list[tuple[str, int]]:
    """Variable → bytes at the peak that its graph of an earlier cell kept, and keeps still."""
    found: dict[str, int] = {}
    for row in report.tensors_at_peak:
        if row.category == "activations" and row.name.startswith(OF_GRAPH):
            name = row.name.removeprefix(OF_GRAPH)
            found[name] = found.get(name, 0) + row.bytes
    still = report.end.get("activations", 0)
    return [(name, count) for name, count in found.items() if count <= still]


def _kept_graph(report: Report) -> Iterator[Finding]:
    for name, count in _kept(report):
        if worth(count, report) and "[" not in name:  # of containers `findings.holding` speaks
            text = (
                f"{code(name)} keeps the graph of an earlier cell: {format_bytes(count)} of the peak are its activations. "
                f"del {name}, or append .detach() where it is made."
            )
            yield Finding("kept_graph", text, count)


def _inputs(report: Report) -> list[TensorRow]:
    return [t for t in report.tensors_at_peak if t.category == "inputs"]


def _after_trace(report: Report) -> Iterator[Finding]:
    row = next((t for t in report.tensors_at_peak if t.name == AFTER_TRACE), None)
    if row is not None and worth(row.bytes, report):
        text = (
            f"The peak came after the traced part: {format_bytes(row.bytes)} of it have no category. "
            "Trace more with --trace-steps."
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


RULES: tuple[Rule, ...] = (_idle_gpu, _no_gpu, _lever, _kept_graph, _after_trace, _optimizer_temporaries)
