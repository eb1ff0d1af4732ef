"""What is worth saying about a report in one plain line each, with the bytes. Silent when there is nothing to say."""

from __future__ import annotations

from collections.abc import Callable

from ipyvram.recording import Recording
from ipyvram.report import Finding, Report
from ipyvram.units import format_bytes, format_share

LEVER_SHARE = 0.5  # a category is named as the lever when it is at least half of the peak


def find(report: Report, recording: Recording) -> tuple[Finding, ...]:
    """All findings of one report, largest first."""
    found = [finding for rule in _RULES if (finding := rule(report, recording)) is not None]
    return tuple(sorted(found, key=lambda f: -f.bytes))


def _idle_gpu(report: Report, recording: Recording) -> Finding | None:
    idle = recording.environment.get("idle_gpu")
    if report.device != "cpu" or not idle or not report.steps:
        return None
    return Finding(
        "idle_gpu",
        f"This cell trained on the CPU while {idle} stood idle: move the model and the batch with .to('cuda'), or use --device cuda.",
    )


def _lever(report: Report, recording: Recording) -> Finding | None:
    """Which quantity the batch size moves, and about how many samples would fit."""
    activations = report.peak["activations"] + report.peak["inputs"]
    batch = _batch_size(report)
    if not report.peak_bytes or not report.steps:
        return None
    fixed = sum(report.peak[c] for c in ("parameters", "gradients", "optimizer_state"))
    if activations / report.peak_bytes >= LEVER_SHARE and batch:
        each = activations / batch
        text = f"Activations and the batch are {format_share(activations, report.peak_bytes)} of the peak, {format_bytes(each)} for each of {batch} samples: batch size is the lever."
        return Finding("lever", text, activations)
    if fixed / report.peak_bytes >= LEVER_SHARE:
        text = f"Parameters, gradients and optimizer state are {format_share(fixed, report.peak_bytes)} of the peak: a smaller batch will hardly help."
        return Finding("lever", text, fixed)
    return None


def _batch_size(report: Report) -> int | None:
    """Samples in the batch: dimension 0 of the largest input."""
    shapes = [t.shape for t in report.tensors_at_peak if t.category == "inputs" and t.shape and len(t.shape) > 1]
    return shapes[0][0] if shapes and shapes[0][0] > 1 else None


def _after_trace(report: Report, recording: Recording) -> Finding | None:
    row = next((t for t in report.tensors_at_peak if t.name == "allocated after the traced part"), None)
    if row is None:
        return None
    text = f"The peak came after the traced part: {format_bytes(row.bytes)} of it have no category. Trace more with --trace-steps."
    return Finding("after_trace", text, row.bytes)


def _foreach(report: Report, recording: Recording) -> Finding | None:
    temporaries = report.peak["temporaries"]
    if report.peak_phase != "optimizer" or temporaries < 0.1 * report.peak_bytes:
        return None
    text = f"The optimizer step is the peak, with {format_bytes(temporaries)} of temporaries: foreach=False or fused=True in the optimizer avoids them."
    return Finding("optimizer_temporaries", text, temporaries)


_RULES: tuple[Callable[[Report, Recording], Finding | None], ...] = (_idle_gpu, _lever, _after_trace, _foreach)
