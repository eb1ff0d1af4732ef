"""Scripts of programs at two sizes, played at others: against the model of the allocator running the program itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipyvram.allocator.rules import MIB, Settings
from ipyvram.caching_allocator import CachingAllocator, OutOfMemory
from ipyvram.recording import Action, Events, Mark, Recording, Trace
from ipyvram.sweep.rehearsal import Rehearsal, goes_on, play, script_of

#: A step: (block, bytes fixed, bytes per sample); "-" lets go. What a step leaves, the next one lets go of when it makes it anew.
LAYERS = ((3 * MIB, 700_000), (0, 1_300_000), (MIB // 2, 90_000), (5 * MIB, 0), (0, 2_500_000), (9 * MIB, 310_000))


#: From this batch on a step works in a little more.
SCRATCH_FROM = 1000


def train(allocator: CachingAllocator, batch: int, steps: int, layers=LAYERS, on_step=lambda step: None) -> None:
    """Forward keeps each layer's activation, backward lets them go and makes gradients, which stay to the next step."""
    weights = [allocator.alloc(4 * MIB + 512 * i) for i, _ in enumerate(layers)]
    states, gradients, kept_loss = list[int](), list[int](), None
    for step in range(1, steps + 1):
        batch_of_data = allocator.alloc(600_000 * batch)
        for gradient in gradients:
            allocator.free(gradient)
        gradients = []
        activations = [allocator.alloc(max(512, a + b * batch)) for a, b in layers]
        if batch >= SCRATCH_FROM:
            allocator.free(allocator.alloc(900_000))
        loss = allocator.alloc(4)
        if kept_loss is not None:
            allocator.free(kept_loss)
        kept_loss = loss
        for i, activation in reversed(list(enumerate(activations))):
            passed_on = allocator.alloc(max(512, layers[i][1] * batch))
            gradients.append(allocator.alloc(4 * MIB + 512 * i))
            allocator.free(activation)
            allocator.free(passed_on)
        if not states:
            states = [allocator.alloc(4 * MIB + 512 * i) for i, _ in enumerate(layers)]
        allocator.free(batch_of_data)
        on_step(step)
    assert weights


def recorded(batch: int, settings: Settings | None = None, layers=LAYERS, before: tuple[int, ...] = ()) -> Recording:
    """Two steps as a trial records them."""
    rows, marks = list[tuple[int, ...]](), list[Mark]()
    recording = False

    def record(action: Action, address: int, size: int, stream: int, private: tuple[int, int]) -> None:
        if recording:
            rows.append((int(action), address, size, stream, len(rows) + 1, -1, -1))

    allocator = CachingAllocator(settings=settings, record=record)
    for size in before:
        allocator.alloc(size)
    recording = True
    train(allocator, batch, 2, layers, lambda step: marks.append(Mark(len(rows), "optimizer", False, step)))
    told = {"expandable_segments": bool(settings and settings.expandable_segments)}
    if settings is not None:
        told["max_split_size"] = settings.max_split_size
    trace = Trace(
        "cuda:0", "history", 0, len(rows) + 1, Events.from_rows(rows), segments_end=allocator.segments(),
        allocator_settings=told,
    )  # fmt: skip
    return Recording(0, len(rows) + 1, marks=tuple(marks), traces=(trace,))


def runs(
    batch: int, allowed: int, settings: Settings | None = None, layers=LAYERS, before: tuple[int, ...] = ()
) -> bool:
    """The truth: five steps without having to make room."""
    allocator = CachingAllocator(settings=settings, allowed=allowed)
    try:
        for size in before:
            allocator.alloc(size)
        train(allocator, batch, 5, layers)
    except OutOfMemory:
        return False
    return not allocator.retries


def rehearsal(*batches: int, **how) -> Rehearsal:
    found = Rehearsal()
    for batch in batches:
        found.learn(batch, script_of(recorded(batch, **how), "cuda:0"))
    return found


@pytest.mark.parametrize("conf", [None, Settings(expandable_segments=True), Settings(max_split_size=64 * MIB)], ids=str)
@pytest.mark.parametrize("before", [(), (30 * MIB, 700, 3 * MIB)], ids=["fresh", "with an earlier model"])
def test_the_largest_that_fits_is_the_true_one(conf, before):
    allowed = 1500 * MIB
    found = rehearsal(16, 32, settings=conf, before=before).largest(32, None, 1, 100.0, allowed)
    assert found is not None
    assert runs(found, allowed, conf, before=before)
    assert not runs(found + 1, allowed, conf, before=before)


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(0, 30 * MIB), st.integers(0, 3 * MIB)), min_size=1, max_size=8),
    st.integers(300, 4000),
    st.sampled_from([1, 8]),
)
def test_every_size_is_judged_as_the_program_itself_fares(layers, limit_mib, multiple):
    known, allowed = rehearsal(16, 32, layers=layers), limit_mib * MIB
    for batch in (40, 64, 65, 100, 333):
        assert known.fits(batch, allowed) is runs(batch, allowed, layers=layers)
    if runs(32, allowed, layers=layers):
        found = known.largest(32, 5000, multiple, None, allowed)
        if found is not None:
            assert found % multiple == 0
            assert runs(found, allowed, layers=layers)


def test_a_repeated_step_lets_go_of_what_the_one_before_it_made():
    script = script_of(recorded(16), "cuda:0")
    longer = goes_on(script, 6)
    assert len([n for n in longer.acts if n >= 0]) == len(longer.asked)
    assert len(set(longer.acts)) == len(longer.acts)  # nothing is asked for or let go twice
    live = np.cumsum([longer.asked[n] if n >= 0 else -longer.asked[~n] for n in longer.acts])
    assert live.max() == live[: len(script.acts)].max()  # no step keeps what the one before it let go
    assert play(longer, 1 << 40) == play(script, 1 << 40)


def test_a_kernel_that_works_in_more_from_a_size_on_leaves_the_rest_matched():
    """As reductions over many rows do."""
    known = rehearsal(SCRATCH_FROM // 2, SCRATCH_FROM)
    less, more = (script_of(recorded(size), "cuda:0") for size in (SCRATCH_FROM // 2, SCRATCH_FROM))
    assert len(more.asked) == len(less.asked) + 2
    for batch in (2, 3, 4):
        for allowed in (1000 * MIB, 4000 * MIB, 9000 * MIB):
            assert known.fits(batch * SCRATCH_FROM, allowed) is runs(batch * SCRATCH_FROM, allowed)


def test_what_was_there_before_may_lie_in_another_order():
    """What a trial puts back comes to lie elsewhere: no block that grows with the batch, nor one that shrinks."""
    known, sizes = Rehearsal(), (3 * MIB, 30 * MIB, 700)
    for batch, before in ((16, sizes), (32, sizes[::-1])):
        known.learn(batch, script_of(recorded(batch, before=before), "cuda:0"))
    found = known.largest(32, None, 1, 100.0, 1500 * MIB)
    assert found is not None
    assert runs(found, 1500 * MIB, before=sizes[::-1])
    assert not runs(found + 1, 1500 * MIB, before=sizes[::-1])


def test_where_the_next_size_is_not_known_none_is_the_largest(monkeypatch):
    known = rehearsal(16, 32)
    at = known.at
    monkeypatch.setattr(known, "at", lambda size: None if size > 40 else at(size))
    assert known.largest(32, None, 1, None, 1 << 40) is None


def test_nobody_knows_with_one_size_or_other_requests_or_where_a_trial_said_otherwise():
    assert rehearsal(16).largest(16, None, 1, None, 1 << 40) is None
    other = rehearsal(16)
    other.learn(32, script_of(recorded(32, layers=LAYERS[:3]), "cuda:0"))
    assert other.largest(32, None, 1, None, 1 << 40) is None
    assert rehearsal(16, 32).largest(32, 48, 1, None, 1 << 40) is None  # 48 did not fit, though it should


def test_only_what_the_allocator_told_from_the_start_is_a_script():
    whole = recorded(16)
    assert script_of(whole, "cuda:1") is None
    late = replace(whole, steps=2, marks=tuple(m._replace(time_ns=10**9) for m in whole.marks))
    assert script_of(late, "cuda:0") is None  # its trace ended before the first step
    for damaged in (replace(whole.traces[0], complete=False), replace(whole.traces[0], source="storages")):
        assert script_of(replace(whole, traces=(damaged,)), "cuda:0") is None


def test_few_trials_on_torchs_own_allocator(run_on_stub):
    found = run_on_stub(
        """
import torch, ipyvram
from torch import nn

def train(batch_size, steps=20):
    with torch.device("cuda"):
        net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(),
                            nn.Flatten(), nn.Linear(64 * 60 * 60, 100))
    optimizer = torch.optim.Adam(net.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(batch_size, 3, 64, 64, device="cuda")).sum().backward()
        optimizer.step()

train(2, steps=1)
c = ipyvram.compare_batches(train, limit="100%")
result = {"largest": c.largest.batch, "status": c.largest.status, "beyond": c.largest.beyond, "trials": c.trials}
sizes = [c.largest.batch * n // 16 for n in (4, 8, 12)]
listed = ipyvram.compare_batches(train, sizes, limit="100%").largest
result["listed"] = [listed.batch, listed.status]
torch.cuda.empty_cache()
torch.cuda.reset_peak_memory_stats()
train(c.largest.batch)
result["retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
""",
        BYTES=4 << 30,
    )
    assert found["trials"] == 4  # two small sizes, the answer, and the size beyond it
    assert found["status"] == "verified"
    assert found["beyond"] == found["largest"] + 1
    assert found["listed"] == [found["largest"], "verified"]  # the same answer beside sizes that were asked for
