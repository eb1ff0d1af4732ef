"""Rules 5 to 9 on allocations drawn by hand: a name of a phase, when it was born, when it died."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.attribution import attribute
from ipyvram.ledger import build
from ipyvram.recording import BY_HAND, CATEGORIES, Action, Claim, Events, Mark, Origin, Recording, Trace

#: Two steps: forward 10-20 (its loss until 30), backward 30-40, optimizer 50-60; the same from 110 on. A module runs 12-18.
STEP = [("forward", True, 10), ("module", True, 12), ("module", False, 18), ("forward", False, 20), ("backward", True, 30),
        ("backward", False, 40), ("optimizer", True, 50), ("optimizer", False, 60)]  # fmt: skip
MARKS = tuple(Mark(t + 100 * s, kind, begin, s + 1, "net") for s in (0, 1) for kind, begin, t in STEP)
END = 200


def recording(
    *lives: tuple[int, int], size: int = 4096, claims=(), marks=MARKS, environment=None, op="aten.mm"
) -> Recording:
    """One allocation for each (born, died); a death after `END` is none."""
    rows = []
    for address, (born, died) in enumerate(lives, 1):
        rows.append((Action.ALLOC, address, size, 0, born, -1, 0))
        if died <= END:
            rows.append((Action.FREE_REQUESTED, address, size, 0, died, -1, -1))
    rows.sort(key=lambda row: row[4])
    trace = Trace("cpu", "storages", 0, END, Events.from_rows(rows))
    return Recording(0, END, traces=(trace,), marks=marks, claims=tuple(claims), environment=environment or {},
                     origins=(Origin(op),))  # fmt: skip


def categories(found: Recording) -> list[str]:
    """The category of each allocation when it is born, in the order of their addresses."""
    ledger = build(found.traces[0])
    attribution = attribute(found, ledger, "cpu")
    by_address = {
        int(ledger.address[row]): attribution.category_at(int(ledger.born[row]))[row] for row in range(len(ledger.born))
    }
    return [by_address[address] for address in sorted(by_address)]


@pytest.mark.parametrize(
    ("born", "died", "category"),
    [
        (13, 16, "temporaries"),  # within the module
        (13, 35, "activations"),  # until the backward uses it
        (13, 45, "temporaries"),  # until shortly after the backward: nobody's
        (13, 150, "outputs"),  # into the next step
        (25, 28, "temporaries"),  # of the loss
        (25, 150, "outputs"),  # a kept loss
        (32, 38, "temporaries"),  # inside the backward
        (32, 55, "gradients"),  # what the backward leaves behind
        (52, 58, "temporaries"),  # foreach's copies
        (52, 150, "optimizer_state"),
        (45, 70, "temporaries"),  # from backward to after the step: the norm of the gradients
        (45, 105, "temporaries"),
        (45, 150, "inputs"),  # there when the model ran again
        (5, 45, "inputs"),  # made before the forward, there while it ran
        (5, 8, "temporaries"),  # gone before the forward
        (113, 999, "outputs"),  # of the second forward, and its backward did not free it
    ],
)  # fmt: skip
def test_birth_and_death_tell(born, died, category):
    assert categories(recording((born, died))) == [category]


def test_a_number_made_outside_any_phase_is_no_batch():
    assert categories(recording((5, 150), size=8)) == ["outputs"]


def test_what_forward_left_at_the_end_of_the_cell_is_an_activation():
    assert categories(recording((13, 999), marks=MARKS[:4])) == ["activations"]


def test_what_was_live_when_an_error_ended_a_forward_is_an_activation():
    cut = (*MARKS[:3], Mark(20, "forward", False, 1, "net", True, raised=True), *MARKS[8:])
    lives = [(5, 21), (13, 14), (13, 18), (16, 17)]  # the batch, an operand, and what the error freed
    assert categories(recording(*lives, marks=cut)) == ["inputs", "temporaries", "activations", "activations"]
    assert "activations" not in categories(recording(*lives, marks=MARKS))


def test_evaluation_keeps_results():
    marks = (Mark(10, "forward", True, 1, "net", False), Mark(20, "forward", False, 1, "net", False))
    assert categories(recording((13, 18), (13, 150), marks=marks)) == ["temporaries", "outputs"]


def test_a_recomputed_activation_outlives_its_module_in_backward():
    inside = [Mark(32, "forward", True, 1, "part"), Mark(33, "module", True, 1, "part.0"),
              Mark(35, "module", False, 1, "part.0"), Mark(36, "forward", False, 1, "part")]  # fmt: skip
    marks = tuple(sorted([*MARKS, *inside], key=lambda m: m.time_ns))
    assert categories(recording((34, 38), (34, 35), marks=marks)) == ["activations", "temporaries"]


def test_a_workspace_has_its_size_and_stays():
    environment = {"cublas_workspace_bytes": "8519680"}
    found = recording((13, 999), (13, 35), size=8_519_680, environment=environment)
    assert categories(found) == ["workspaces", "activations"]


def test_a_workspace_of_cublaslt_is_the_first_that_nobody_claims():
    """Its size is one that results have, too."""
    environment = {"cublas_workspace_bytes": "8519680", "cublaslt_workspace_bytes": "4096"}
    weight = Claim(6, "cpu", 1, 4096, "parameters", "weight")
    found = recording((5, 999), (13, 999), (14, 999), claims=[weight], environment=environment)
    assert categories(found) == ["parameters", "workspaces", "outputs"]
    assert categories(recording((13, 20), environment=environment)) == ["temporaries"]


def test_a_bucket_of_gradients_has_its_size_and_stays():
    environment = {"gradient_bucket_bytes": "4096,8192"}
    assert categories(recording((5, END + 1), environment=environment)) == ["gradients"]
    assert categories(recording((5, END + 1), size=4097, environment=environment)) == ["inputs"]
    assert categories(recording((32, 38), environment=environment)) == ["temporaries"]


@pytest.mark.parametrize(("op", "category"), [("aten.randn", "inputs"), ("aten.mm", "outputs"), ("", "inputs")])
def test_without_any_phase_a_variable_holds_data_or_a_result(op, category):
    named = Claim(6, "cpu", 1, 4096, "", "x")
    assert categories(recording((5, 999), marks=(), claims=[named], op=op)) == [category]


@pytest.mark.parametrize(
    ("born", "died", "category"),
    [
        (5, 8, "temporaries"),
        (5, 105, "outputs"),  # until its variable gets the next step's
        (105, 999, "outputs"),  # … of which there is none
        (5, 999, "other"),  # longer than that
    ],
)
def test_a_program_without_modules_holds_its_results_until_the_next_step(born, died, category):
    marks = tuple(m for m in MARKS if m.kind not in ("forward", "module"))
    assert categories(recording((born, died), marks=marks)) == [category]


def test_a_step_made_by_hand_ends_where_it_was_noticed():
    """What the program keeps from then on is none of an optimizer's state."""
    by_hand = [m._replace(time_ns=60 if m.step == 1 else 160, name=BY_HAND) for m in MARKS if m.kind == "optimizer"]
    marks = tuple(sorted([*(m for m in MARKS if m.kind != "optimizer"), *by_hand], key=lambda m: m.time_ns))
    assert categories(recording((45, 55), (45, 150), marks=marks)) == ["temporaries", "inputs"]


def test_a_trace_that_begins_within_a_step_and_sees_only_its_end():
    assert categories(recording((5, 8), (5, 150), marks=(Mark(60, "optimizer", False, 1, "SGD"),))) == [
        "temporaries",
        "optimizer_state",
    ]


def test_what_a_thread_loads_meanwhile_is_batch():
    """Born in a forward, a backward and a step; the last waits in a queue when the trace ends."""
    threads = {"stacks_of_threads": "-1"}  # the stack of all of them here
    saved = Claim(14, "cpu", 1, 4096, "activations", "AddmmBackward0.tensors")
    given = Claim(111, "cpu", 1, 4096, "inputs", "x")
    found = recording((13, 150), (35, 150), (55, 150), (120, 999), claims=[saved, given], environment=threads)
    assert categories(found) == ["inputs"] * 4


def test_without_a_name_or_a_phase_it_is_other():
    assert categories(recording((5, 999), marks=())) == ["other"]


lives = st.lists(st.tuples(st.integers(1, 199), st.integers(1, 250)).map(lambda p: (min(p), max(p) + 1)), max_size=12)
kinds = st.sampled_from([*CATEGORIES, "", "released", "data", "copy"])


@given(
    lives,
    st.lists(st.tuples(st.integers(1, 199), st.integers(1, 12), kinds, st.sampled_from(["", "net", "w"])), max_size=12),
)
def test_whatever_is_claimed_every_instant_of_every_allocation_counts_once(found, made):
    claims = sorted(
        (Claim(t, "cpu", address, 4096, kind, "n", module) for t, address, kind, module in made),
        key=lambda c: c.time_ns,
    )
    one = recording(*found, claims=claims)
    ledger = build(one.traces[0])
    accounts = attribute(one, ledger, "cpu").accounts(ledger)
    total = sum(accounts.values(), np.zeros(ledger.instants, np.int64))
    assert (total == ledger.allocated()).all()
    assert all((column >= 0).all() for column in accounts.values())
