"""Marks as phases: what nests, what merges, and what an error leaves open."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from ipyvram.marks import (
    cut_forwards,
    forwards_of_a_backward,
    models,
    module_at,
    module_track,
    optimizer_steps,
    phase_spans,
    root_forwards,
    step_ends,
)
from ipyvram.recording import Claim, Mark


def marks_of(text: str) -> tuple[Mark, ...]:
    """``"F f B b O o"``: a capital begins forward, backward, optimizer, module; time is the position; ``O`` ends a step."""
    kinds = {"f": "forward", "b": "backward", "o": "optimizer", "m": "module", "n": "forward"}
    found, step = [], 1
    for time, letter in enumerate(text.split(), 1):
        kind = kinds[letter.lower()[0]]
        found.append(Mark(time, kind, letter[0].isupper(), step, letter[1:], letter[0].lower() != "n"))
        step += letter[0] == "o"
    return tuple(found)


def phases(text: str, stop: int = 99) -> list[tuple[str, int, int, int]]:
    return [(p.name, p.step, p.begin_ns, p.end_ns) for p in phase_spans(marks_of(text), stop)]


def test_a_step_has_three_phases_and_forward_reaches_to_backward():
    assert phases("F f B b O o F f B b O o") == [
        ("forward", 1, 1, 3), ("backward", 1, 3, 4), ("optimizer", 1, 5, 6),
        ("forward", 2, 7, 9), ("backward", 2, 9, 10), ("optimizer", 2, 11, 12),
    ]  # fmt: skip


def test_a_criterion_belongs_to_the_forward():
    (forward, backward) = phase_spans(marks_of("F f F f B b"), 99)
    assert (forward.begin_ns, forward.end_ns, forward.body_end_ns) == (1, 5, 4)
    assert backward.name == "backward"


def test_gradient_accumulation_alternates():
    assert [name for name, *_ in phases("F f B b F f B b O o")] == ["forward", "backward"] * 2 + ["optimizer"]


def test_a_recomputed_forward_is_part_of_backward():
    assert phases("F f B F f b O o")[1] == ("backward", 1, 3, 6)


def test_a_closure_inside_the_step_is_told_apart():
    assert [name for name, *_ in phases("O F f B b o")] == ["forward", "backward", "optimizer"]
    assert phases("O F f B b o")[-1] == ("optimizer", 1, 5, 6)


def test_evaluation_does_not_merge_with_training():
    spans = phase_spans(marks_of("N n N n F f B b"), 99)
    assert [(p.name, p.grad) for p in spans] == [("forward", False)] * 2 + [("forward", True), ("backward", True)]


def test_what_an_error_cut_short_ends_with_the_trace():
    assert phases("F f B", stop=50)[-1] == ("backward", 1, 3, 50)


def test_an_end_without_a_beginning_is_ignored():
    assert phases("b m F f") == [("forward", 1, 3, 4)]


@given(st.text(alphabet="FfBbOoMmNn", max_size=40))
def test_phases_never_overlap_and_stay_in_order(letters):
    spans = phase_spans(marks_of(" ".join(letters)), 1000)
    for span in spans:
        assert span.begin_ns <= span.end_ns
    for before, after in itertools.pairwise(spans):
        assert before.end_ns <= after.begin_ns


def test_root_forwards_leave_out_what_is_recomputed():
    assert root_forwards(marks_of("F f N n B F f b")) == [(1, 2, True), (3, 4, False)]


def test_a_forward_that_an_error_ended_reaches_back_to_its_begin_or_that_of_the_trace():
    def cut(text: str) -> list[tuple[int, int]]:
        return cut_forwards(tuple(m._replace(raised=m.kind == "forward" and not m.begin) for m in marks_of(text)))

    assert cut("F f F f") == [(1, 2), (3, 4)]
    assert cut("B b f F") == [(1, 3)]
    assert cut("f") == [(1, 1)]


def test_calls_of_one_model_before_one_backward():
    # Three of a, which a backward follows with what it recomputes; one for each that comes after.
    assert forwards_of_a_backward(marks_of("Fa f Fa f Fc f Na n Fa f B Fa f b O o Fa f B b Fa f B b Fa f")) == 3
    assert forwards_of_a_backward(marks_of("Fa f Fa f")) == 0


def test_borders_lie_between_steps():
    assert step_ends(phase_spans(marks_of("F f B b O o F f B b O o"), 99)) == [6]


def test_the_innermost_module_is_the_one_that_runs():
    marks = marks_of("Fnet Mconv mconv Mhead Mhead.act mhead.act mhead fnet")
    assert [module_at(marks, time) for time in range(9)] == ["", "", "conv", "", "head", "head.act", "head", "", ""]
    track = module_track(marks)
    assert track.ends[track.paths.index("conv")] == 3


def test_with_several_models_a_path_begins_with_its_model():
    marks = marks_of("FG M0 m0 fG FD M0 m0 fD Floss floss")
    claims = tuple(Claim(1, "cpu", i, 4, "parameters", "0.weight", model) for i, model in enumerate(("G", "D")))
    assert models(claims) == {"G", "D"}  # the criterion owns no parameters
    assert [module_at(marks, t, frozenset({"G", "D"})) for t in (2, 6, 9)] == ["G.0", "D.0", ""]


def test_a_part_that_runs_alone_has_its_path_in_the_model():
    marks = marks_of("Fnet.encoder Mencoder.0 mencoder.0 fnet.encoder Fnetwork fnetwork")
    assert [module_at(marks, t, frozenset({"net"})) for t in (1, 2, 5)] == ["encoder", "encoder.0", ""]
    assert [module_at(marks, t, frozenset({"net", "D"})) for t in (1, 2)] == ["net.encoder", "net.encoder.0"]


def test_an_optimizer_step_reaches_over_its_closure():
    kinds = [("optimizer", True), ("forward", True), ("forward", False), ("optimizer", True), ("optimizer", False),
             ("backward", True), ("backward", False), ("optimizer", False), ("optimizer", True)]  # fmt: skip
    marks = tuple(Mark(10 * i, kind, begin, 1, "x") for i, (kind, begin) in enumerate(kinds))
    assert optimizer_steps(marks) == [(0, 70)]  # the last one was cut short
