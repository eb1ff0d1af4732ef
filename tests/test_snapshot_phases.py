"""Phases from the stacks of allocations and torch's own annotations."""

from __future__ import annotations

import pytest

from ipyvram.snapshot_phases import marks_of

FORWARD = [
    {"name": "forward", "filename": "model.py", "line": 3},
    {"name": "<module>", "filename": "train.py", "line": 9},
]
LOSS = [{"name": "<module>", "filename": "train.py", "line": 10}]
ENGINE = [{"name": "torch::autograd::Engine::thread_main(std::shared_ptr<...>)", "filename": "??", "line": 0}]
RECOMPUTED = [*FORWARD, {"name": "recompute_fn", "filename": "checkpoint.py", "line": 1}]


def allocs(*stacks, start=0):
    return [{"action": "alloc", "addr": 0, "size": 1, "time_us": start + i, "frames": f} for i, f in enumerate(stacks)]


def step(begin, end, name="SGD"):
    scope = f"Optimizer.step#{name}.step"
    return [{"stage": "START", "name": scope, "time_us": begin}, {"stage": "END", "name": scope, "time_us": end}]


def spans(marks):
    """Kind, step, begin and end of each phase, in µs."""
    found, open_marks = [], {}
    for m in marks:
        if m.begin:
            open_marks[m.kind] = m
        else:
            begin = open_marks.pop(m.kind)
            found.append((m.kind, m.step, begin.time_ns // 1000, m.time_ns // 1000))
    assert not open_marks
    return sorted(found, key=lambda s: s[2])


@pytest.mark.parametrize("backward", [ENGINE, [], RECOMPUTED], ids=["C++ frames", "no frames", "recomputed"])
def test_a_step(backward):
    trace = allocs(FORWARD, FORWARD, LOSS, backward, backward)
    assert spans(marks_of([trace], step(7, 9))) == [("forward", 1, 0, 1), ("backward", 1, 3, 4), ("optimizer", 1, 7, 9)]


def test_steps_are_counted_by_the_optimizer():
    trace = [*allocs(FORWARD, ENGINE), *allocs(FORWARD, ENGINE, start=20)]
    found = spans(marks_of([trace], [*step(5, 9), *step(30, 31)]))
    assert [(kind, number) for kind, number, _, _ in found] == [
        ("forward", 1), ("backward", 1), ("optimizer", 1), ("forward", 2), ("backward", 2), ("optimizer", 2),
    ]  # fmt: skip


def test_forward_without_backward_is_no_phase():
    """Inference cannot be told from a graph that nobody goes back through."""
    assert marks_of([allocs(FORWARD, FORWARD, LOSS)], []) == ()
    assert spans(marks_of([[*allocs(FORWARD), *allocs(FORWARD, ENGINE, start=20)]], step(5, 9)))[0][0] == "optimizer"


def test_without_any_stacks_only_the_optimizer_is_known():
    assert {m.kind for m in marks_of([allocs([], [], [])], step(1, 2))} == {"optimizer"}


def test_other_scopes_are_no_steps():
    scopes = [{"stage": "START", "name": "Optimizer.zero_grad#SGD.zero_grad", "time_us": 1}]
    assert marks_of([[]], scopes) == ()
    assert marks_of([], []) == ()
