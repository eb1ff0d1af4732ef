"""What the programs of `test_cuda_cells` and `test_cuda_stories` begin with, in the process that has the stub for a card."""

from __future__ import annotations

HEAD = """
import sys, torch, warnings
from torch import nn
from torch.nn import functional as F
import ipyvram

result = {}

def on_card(tensors):
    torch.cuda.synchronize()
    return sum((t.untyped_storage().nbytes() + 511) // 512 * 512 for t in tensors)

def said(name, report):
    rows = report.tensors_at_peak
    result[name] = {
        "start": report.start, "peak": report.peak, "end": report.end, "bytes": report.peak_bytes, "when": report.peak_when,
        "names": [t.name for t in rows], "modules": [t.module for t in rows], "notes": report.measurement.notes,
        "steps": report.traced_steps, "events": report.measurement.events, "oom": report.oom and report.oom.account,
        "findings": {f.kind: f.text for f in report.findings},
    }
"""
