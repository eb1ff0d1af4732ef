"""Reports made by hand for the tests of what is shown: a training cell on a card, one on the CPU, and the awkward ones."""

from __future__ import annotations

import math
from dataclasses import replace

from ipyvram.recording import CATEGORIES
from ipyvram.report import Report
from ipyvram.report_rows import Finding, GroupRow, Lifetime, Measurement, Phase, TensorRow, Timeline

KIB, MIB, GIB = 2**10, 2**20, 2**30


def account(**sizes: int) -> dict[str, int]:
    """Every category, those not named at 0."""
    return {c: sizes.get(c, 0) for c in CATEGORIES}


def curves(
    steps: int = 3, points: int = 120, step_s: float = 0.7, activations: int = 2800 * MIB, scale: int = MIB
) -> tuple[Timeline, tuple[Phase, ...]]:
    """Steps of forward (activations rise), backward (they fall while gradients rise) and optimizer."""
    time, rows, phases = [], [], []
    for step in range(steps):
        begin = step * step_s
        phases += [
            Phase(begin, begin + 0.33 * step_s, "forward", step + 1),
            Phase(begin + 0.33 * step_s, begin + 0.9 * step_s, "backward", step + 1),
            Phase(begin + 0.9 * step_s, begin + step_s, "optimizer", step + 1),
        ]
        for i in range(points):
            part = i / points
            rising = min(1.0, part / 0.33) if part < 0.33 else max(0.0, 1 - (part - 0.33) / 0.57)
            time.append(begin + part * step_s)
            rows.append(
                account(
                    parameters=97 * scale,
                    gradients=int(97 * scale * max(0.0, min(1.0, (part - 0.33) / 0.57))),
                    optimizer_state=195 * scale if step or part > 0.92 else 0,
                    inputs=37 * scale,
                    activations=int(activations * rising),
                    temporaries=int(82 * scale * abs(math.sin(i * 1.7))) if 0.3 < part < 0.95 else 0,
                    workspaces=16 * scale,
                )
            )
    categories = {c: tuple(row[c] for row in rows) for c in CATEGORIES if any(row[c] for row in rows)}
    reserved, high = [], 0
    for row in rows:
        high = max(high, sum(row.values()) * 9 // 8)
        reserved.append(high)
    return Timeline(tuple(time), categories, tuple(reserved), steps * step_s), tuple(phases)


def training(**changes: object) -> Report:
    """Three steps of a ResNet-like cell on a card of 14.75 GiB."""
    timeline, phases = curves()
    total = timeline.allocated
    at = max(range(len(total)), key=total.__getitem__)
    peak = {c: timeline.categories.get(c, (0,) * len(total))[at] for c in CATEGORIES}
    card_bytes, reserved = int(14.75 * GIB), timeline.reserved[at]
    card = {"cache": reserved - total[at], "context": 410 * MIB, "other_processes": 300 * MIB}
    sampled_time = tuple(i * 0.05 for i in range(43))
    sampled = {
        "allocated": tuple(int(total[min(len(total) - 1, int(t / 2.1 * len(total)))] * 0.97) for t in sampled_time),
        "reserved": tuple(timeline.reserved[min(len(total) - 1, int(t / 2.1 * len(total)))] for t in sampled_time),
        "device_used": tuple(
            timeline.reserved[min(len(total) - 1, int(t / 2.1 * len(total)))] + 710 * MIB for t in sampled_time
        ),
    }
    report = Report(
        peak_bytes=total[at],
        peak=peak,
        start=account(parameters=97 * MIB),
        end=account(parameters=97 * MIB, optimizer_state=195 * MIB, gradients=97 * MIB),
        label="bs64",
        note="first try",
        device="cuda:0",
        device_name="NVIDIA T4",
        peak_reserved_bytes=max(timeline.reserved),
        card=card | {"free": card_bytes - total[at] - sum(card.values())},
        card_bytes=card_bytes,
        limit_bytes=int(0.8 * card_bytes),
        peak_time_s=timeline.time_s[at],
        peak_when="step 3, end of forward",
        peak_phase="forward",
        peak_step=3,
        steps=3,
        traced_steps=3,
        duration_s=2.1,
        overhead_s=0.038,
        provenance={
            "peak": "exact",
            "categories": "exact",
            "end": "exact",
            "context": "inferred",
            "other_processes": "sampled",
            "reserved": "exact",
        },
        holders={
            "parameters": "fc.weight · 7.81 MiB · of 161 tensors",
            "optimizer_state": "fc.weight.exp_avg · 7.81 MiB · of 322 tensors",
            "inputs": "x · 64×3×224×224 float32 · 36.8 MiB · of 2 tensors",
            "activations": "layer1.0.conv3 convolution output · line 4 · 196 MiB · of 214 tensors",
            "temporaries": "layer2.0.bn1 empty_like · line 5 · 49.0 MiB",
            "workspaces": "cuBLAS · 16.0 MiB",
        },
        findings=(
            Finding(
                "lever",
                "Activations and the batch are 89 % of the peak, 44.3 MiB for each of 64 samples: batch size is the lever.",
                5,
            ),
        ),
        timeline_data=replace(timeline, sampled_time_s=sampled_time, sampled=sampled),
        phases=phases,
        tensors_at_peak=tensors(peak),
        modules_at_peak=(
            GroupRow("layer1.0", 900 * MIB, {"activations": 890 * MIB, "parameters": 10 * MIB}, 20),
            GroupRow("layer2.0", 600 * MIB, {"activations": 600 * MIB}, 20),
            GroupRow("", total[at] - 1500 * MIB, {"activations": total[at] - 1500 * MIB}, 120),
        ),
        lines_at_peak=(
            GroupRow("line 4", 2800 * MIB, {"activations": 2800 * MIB}, 214, "loss = criterion(model(x), y)"),
            GroupRow("", total[at] - 2800 * MIB, {"parameters": total[at] - 2800 * MIB}, 322),
        ),
        measurement=Measurement(
            "allocator trace",
            9214,
            1220,
            2.1,
            "end of cell",
            43,
            0.061,
            0.05,
            ("NVML: no process list in this container",),
        ),
        environment={"ipyvram": "0.1.0", "torch": "2.14.1", "python": "3.11.2", "optimizer": "Adam", "cuda": "13.0"},
    )
    return replace(report, **changes)


def tensors(peak: dict[str, int]) -> tuple[TensorRow, ...]:
    """Rows that add up to the account."""
    rows = []
    for category, size in peak.items():
        for i, part in enumerate((size // 2, size // 3, size - size // 2 - size // 3)):
            if part:
                name = f"layer1.{i}.weight" if category == "parameters" else f"conv{i} output"
                rows.append(
                    TensorRow(
                        part,
                        category,
                        name,
                        f"layer{i}.conv{i}",
                        4,
                        "y = model(x)",
                        "",
                        (64, 256, 56, 56),
                        "float32",
                        "forward",
                    )
                )
    return tuple(sorted(rows, key=lambda r: -r.bytes))


def lifetimes(name: str = "conv1 output · line 4") -> tuple[Lifetime, ...]:
    """Three large allocations of `training`: one around its peak, one for ever, one long after."""
    return (
        Lifetime(2000 * MIB, "activations", name, 0.8, 1.2),
        Lifetime(300 * MIB, "activations", "later one", 1.9, 2.1),
        Lifetime(50 * MIB, "parameters", "fc.weight", 0.0, 2.1),
    )


def cpu(**changes: object) -> Report:
    """A short cell on the CPU: no card, no reserved memory, the process's memory sampled."""
    timeline, phases = curves(step_s=0.012, activations=4 * MIB, scale=KIB)
    total = timeline.allocated
    at = max(range(len(total)), key=total.__getitem__)
    peak = {c: timeline.categories.get(c, (0,) * len(total))[at] for c in CATEGORIES}
    base, times = training(), tuple(i * 0.05 for i in range(80))
    report = replace(
        base,
        peak_bytes=total[at], peak=peak, start=account(), end=account(parameters=97 * KIB),
        label=None, note=None, device="cpu", device_name="x86_64", card={}, card_bytes=None, limit_bytes=None,
        peak_reserved_bytes=None, steps=300, duration_s=4.0, peak_time_s=timeline.time_s[at],
        provenance={"peak": "exact", "categories": "exact", "end": "end of trace", "context": "inferred"},
        timeline_data=replace(
            timeline, reserved=(), sampled_time_s=times,
            sampled={"process_rss": tuple(800 * MIB + i * MIB for i in range(80))},
        ),
        phases=phases, tensors_at_peak=tensors(peak), modules_at_peak=(), lines_at_peak=(), holders={},
        measurement=replace(base.measurement, source="storage trace", ended_by="3 steps", notes=()),
    )  # fmt: skip
    return replace(report, **changes)


def long(**changes: object) -> Report:
    """Three hours, of which three steps were traced."""
    report = training()
    times = tuple(i * 30.0 for i in range(360))
    sampled = {
        "allocated": tuple(int((2.2 + 0.4 * math.sin(i / 20) + i / 900) * GIB) for i in range(360)),
        "reserved": tuple(int(3.6 * GIB) for _ in range(360)),
        "device_used": tuple(int(4.3 * GIB) for _ in range(360)),
    }
    timeline = replace(report.timeline_data, sampled_time_s=times, sampled=sampled)
    report = replace(
        report,
        duration_s=10_800.0,
        steps=15_430,
        timeline_data=timeline,
        provenance=report.provenance | {"end": "end of trace"},
    )
    return replace(report, **changes)


def retraced(**changes: object) -> Report:
    """Traced at the beginning and, since memory grew, once more after ten minutes."""
    report = training()
    data, gap = report.timeline_data, 600.0
    later = tuple(t + data.end_s + gap for t in data.time_s)
    times = tuple(i * 2.0 for i in range(360))
    timeline = replace(
        data,
        time_s=(*data.time_s, data.end_s, *later),
        categories={c: (*v, 0, *(n * 5 // 4 for n in v)) for c, v in data.categories.items()},
        reserved=(*data.reserved, 0, *(n * 5 // 4 for n in data.reserved)),
        end_s=2 * data.end_s + gap,
        gaps_s=((data.end_s, data.end_s + gap),),
        sampled_time_s=times,
        sampled={"allocated": (2 * GIB,) * 360, "reserved": (4 * GIB,) * 360},
    )
    later_phases = tuple(
        replace(p, start_s=p.start_s + data.end_s + gap, end_s=p.end_s + data.end_s + gap, step=p.step + 900)
        for p in report.phases
    )
    total = timeline.allocated
    at = max(range(len(total)), key=total.__getitem__)
    peak = {c: timeline.categories.get(c, (0,) * len(total))[at] for c in CATEGORIES}
    report = replace(
        report, timeline_data=timeline, phases=(*report.phases, *later_phases), duration_s=720.0, steps=1100,
        peak=peak, peak_bytes=total[at], peak_time_s=timeline.time_s[at], peak_when="step 903, end of forward",
        tensors_at_peak=tensors(peak),
        card=report.card | {"free": report.card["free"] + report.peak_bytes - total[at]},
    )  # fmt: skip
    return replace(report, **changes)


def empty(**changes: object) -> Report:
    """A cell that allocated nothing."""
    return replace(Report(0, account(), account(), account(), duration_s=0.001), **changes)
