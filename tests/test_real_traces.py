"""The CUDA path on traces of real cards: their events, with the claims that the probes would have made.

The programs are public and their models are known, so what each category must hold is known as well.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ipyvram.analysis import analyse
from ipyvram.ledger import build
from ipyvram.recording import CATEGORIES, Claim, Device
from ipyvram.snapshot import recording_of
from tests.simulated_cuda import WORKSPACE
from tests.traces import FILES, load, needs_traces

pytestmark = needs_traces

#: vocabulary 10000, width 512, 4 layers, 16 heads, feed-forward 1344: parameters by layer kind.
NIU_PARAMETERS = 2 * 10_000 * 512 + 4 * (4 * 512 * 512 + 3 * 512 * 1344 + 2 * 512) + 512
NIU_UPDATE_LINE = 64  #: of its own Adam, which puts every parameter into a new storage at each step
WEDSON_PARAMETERS = 423_183_360


def named(name):
    return next((p for p in FILES if p.name.startswith(name + ".")), None)


class Program:
    """A trace, and what its births and deaths say about who would have claimed what."""

    def __init__(self, name):
        self.recording = recording_of(load(named(name)))
        (self.trace,) = self.recording.traces
        self.ledger = build(self.trace)
        self.claims = []
        self.stacks = self.recording.stacks

    def live_at(self, time_ns, born_after=0):
        k = int(np.searchsorted(self.ledger.time_ns, time_ns, side="right")) - 1
        born_ns = self.ledger.time_ns[np.minimum(self.ledger.born, self.ledger.instants - 1)]
        alive = (self.ledger.born <= k) & (self.ledger.died > k) & (born_ns >= born_after)
        return np.flatnonzero(alive)

    def claim(self, rows, time_ns, category):
        for row in rows:
            at, size = int(self.ledger.address[row]), int(self.ledger.bytes[row])
            self.claims.append(Claim(time_ns, self.trace.device, at, size, category, f"{category}{row}"))

    def frames(self, row):
        stack = self.ledger.stack[row]
        return self.stacks[stack] if stack >= 0 else ()

    def report(self):
        recording = replace(
            self.recording, kind="measured", claims=tuple(sorted(self.claims)),
            environment={"cublas_workspace_bytes": str(WORKSPACE)}, devices=(Device(self.trace.device, "a card", 24 << 30),),
        )  # fmt: skip
        return analyse(recording)


def check_sums(report):
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.peak_bytes + sum(report.card.values()) == report.card_bytes
    frame = report.timeline()
    assert (frame[list(CATEGORIES)].sum(axis=1) == frame["allocated"]).all()
    assert (frame["reserved"] >= frame["allocated"]).all()


@pytest.mark.parametrize("name", ["niu_fb_100", "niu_fb_200"])
def test_a_training_run_from_its_first_byte(name):
    program = Program(name)
    marks = program.recording.marks
    forward = marks[0].time_ns - 1
    for category, file in (("parameters", "TransformerLM.py"), ("optimizer_state", "optimizer.py")):
        rows = [r for r in program.live_at(forward) if any(f.file.endswith(file) for f in program.frames(r))]
        program.claim(rows, forward, category)
    steps = [m for m in marks if m.kind == "optimizer"]
    for begin, end in zip(steps[::2], steps[1::2], strict=True):
        backward = max(m.time_ns for m in marks if m.kind == "backward" and m.begin and m.time_ns < begin.time_ns)
        made = program.live_at(begin.time_ns, born_after=backward)
        program.claim([r for r in made if program.ledger.bytes[r] != WORKSPACE], begin.time_ns, "gradients")
        for row in program.live_at(end.time_ns, born_after=begin.time_ns):
            new_parameter = program.frames(row)[0].line == NIU_UPDATE_LINE
            program.claim([row], end.time_ns, "parameters" if new_parameter else "optimizer_state")
    report = program.report()
    check_sums(report)
    for category, copies in (("parameters", 1), ("optimizer_state", 2)):  # blocks are up to 1 MiB larger than tensors
        assert copies * NIU_PARAMETERS * 4 <= report.peak[category] < 1.02 * copies * NIU_PARAMETERS * 4
    assert report.peak["workspaces"] == 2 * WORKSPACE  # of the forward's thread and of autograd's
    assert report.peak["gradients"] == 0  # the peak is where the last backward begins, and zero_grad has let go of them
    assert report.peak["activations"] > report.peak["parameters"]
    assert {p.name for p in report.phases} == {"forward", "backward", "optimizer"}
    assert report.peak_phase in ("forward", "backward")
    assert report.peak["other"] < 0.02 * report.peak_bytes


def test_a_training_step_that_was_recorded_in_the_middle():
    program = Program("wedson_medium_512_train")
    first = int(program.trace.start_ns)
    before = program.live_at(first)
    program.claim([r for r in before if program.ledger.born[r] == 0], first, "parameters")
    report = program.report()
    check_sums(report)
    assert report.start["parameters"] >= 3 * 4 * WEDSON_PARAMETERS  # with both moments of AdamW
    assert sum(report.start.values()) == report.start["parameters"]
