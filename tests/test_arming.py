"""When a cell is traced: its first steps, and again where there is a reason to."""

from __future__ import annotations

import itertools
import threading
import weakref

import pytest
import torch
from torch import nn

import ipyvram
from ipyvram import measuring
from ipyvram.watch import MAX_RETRACES
from tests.test_run import WAITING, batches, global_state, measured, model, train


def retraced(sizes, ask_after=None, **options):
    """Train on batches of these sizes, in a function that calls another one."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def body(run):
        for step, size in enumerate(sizes):
            if step == ask_after:
                run.retrace("asked for")
            x = torch.randn(size, 10)
            train(net, optimizer, [x])

    return measured(body, {"net": net}, **options)


def test_a_larger_batch_is_traced_and_its_trace_tells_of_the_peak():
    _, recording, report = retraced([8, 8, 8, 8, 64, 64, 64, 8, 8])
    first, second = recording.traces
    assert first.stop_ns < second.start_ns
    assert (recording.steps, recording.traced_steps) == (9, 4)
    assert report.measurement.ended_by == "3 steps; then step 6 (x grew to 64×10)"
    assert report.peak_step == 6
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.peak["parameters"] == report.start["parameters"] == 262 * 4
    assert report.peak["inputs"] >= 64 * 10 * 4
    ((begin, end),) = report.timeline_data.gaps_s
    frame = report.timeline()
    inside = frame[(frame.index >= begin) & (frame.index < end)]
    assert inside["allocated"].isna().all()
    assert {row.step for row in report.step_accounts} == {1, 2, 3, 6}
    assert ipyvram.Report.from_json(report.to_json()).timeline_data.gaps_s == report.timeline_data.gaps_s


def test_the_first_trace_tells_of_the_peak_when_it_saw_more():
    _, recording, report = retraced([8, 8, 8, 8, 2, 2], ask_after=5)
    assert len(recording.traces) == 2
    assert report.peak_step in (1, 2, 3)


def test_a_cell_that_always_grows_is_traced_a_bounded_number_of_times():
    _, recording, _ = retraced([8, 9, 8, 20, 20, 40, 40, 80, 80, 160, 160, 320, 320])
    assert len(recording.traces) == 1 + MAX_RETRACES
    assert recording.traced_steps == 3 + MAX_RETRACES


def test_a_smaller_batch_has_an_account_of_its_own():
    _, _, report = retraced([8] * 5 + [4] * 6)
    assert report.measurement.ended_by == "3 steps; then step 8 (x changed to 4×10)"
    assert {row.step: row.batch for row in report.step_accounts} == {1: 8, 2: 8, 3: 8, 8: 4}
    assert report.batch == 8
    assert report.peak_step in (1, 2, 3)
    small, large = report.step_accounts[-1], report.step_accounts[1]
    assert small.peak["inputs"] * 2 == large.peak["inputs"] == 8 * 10 * 4


def test_the_same_shapes_are_not_traced_again():
    assert retraced([8] * 30)[1].traced_steps == 3


@pytest.mark.parametrize(("lengths", "steps"), [((16, 8), (1, 2, 3, 7)), ((8, 16), (1, 2, 3, 6))])
def test_another_sequence_length_is_traced(lengths, steps):
    torch.manual_seed(0)
    net = nn.GRU(4, 5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def body(run):
        for step in range(9):
            batch = {"tokens": torch.randn(lengths[step > 3], 3, 4), "mask": torch.ones(3)}
            net(batch["tokens"])[0].sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    _, _, report = measured(body)
    assert tuple(row.step for row in report.step_accounts) == steps


def test_the_last_batch_of_each_epoch_is_traced_once():
    _, _, report = retraced(([8] * 4 + [3]) * 6)
    assert [row.step for row in report.step_accounts if row.batch == 3] == [15]


def test_between_traces_nothing_is_left_on_torch_and_no_batch_is_kept():
    net, before, seen, alive = model(), global_state(), {}, []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def one_step(step, size):
        x = torch.randn(size, 10)
        train(net, optimizer, [x])
        seen[step] = global_state() | {"threads": []}
        return weakref.ref(x)

    def body(run):
        for step, size in enumerate([8, 8, 8, 8, 8, 64, 64, 64, 4, 4, 4, 4], 1):
            alive.append(one_step(step, size)() is not None)

    _, recording, _ = measured(body)
    waiting = {name: before[name] for name in WAITING}
    traced = [step for step in seen if seen[step] | waiting != before]
    assert traced == [1, 2, 6, 10]  # at the end of the others the next one is not traced
    assert recording.traced_steps == 5
    assert not any(alive)
    assert global_state() == before


def test_growth_seen_by_the_sampler_starts_a_trace():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def body(run):
        def grow(step):
            if step == 5:
                run._arming.watch.see_figures("cuda:0", {"allocated_peak": 1})
                run._arming.watch.see_figures("cuda:0", {"allocated_peak": 10**9})

        train(net, optimizer, batches(8), grow)

    _, recording, report = measured(body)
    assert recording.traced_steps == 4
    assert report.measurement.ended_by == "3 steps; then step 7 (memory grew by 954 MiB)"
    (rose,) = (o for o in recording.observations if o.kind == "rose")
    assert (rose.bytes, rose.count, rose.device) == (10**9, 6, "cuda:0")


def test_a_trace_on_request():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    answers = []

    def ask(step):
        if step in (2, 5):
            answers.append(measuring.retrace())

    with ipyvram.measure("x") as m:
        train(net, optimizer, batches(8), ask)
    assert answers == [False, True]
    assert m.report.traced_steps == 4
    assert m.report.measurement.ended_by == "3 steps; then step 6 (asked for)"
    assert measuring.retrace() is False


def test_a_trace_on_request_within_a_step_ends_with_it():
    """No phase begins in it: the step's own had begun before."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    count = itertools.count(1)

    def ask(*_):
        if next(count) == 5:
            measuring.retrace()

    optimizer.register_step_pre_hook(ask)
    with ipyvram.measure() as m:
        train(net, optimizer, batches(6))
    assert m.report.measurement.ended_by == "3 steps; then step 5 (asked for)"


def test_no_trace_is_started_inside_somebodys_mode():
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    net, answers = model(), []
    optimizer = torch.optim.SGD(net.parameters(), 0.1)

    def body(run):
        train(net, optimizer, batches(4))
        with Mode():
            answers.append(run.retrace("asked for"))
        answers.append(run.retrace("asked for"))

    measured(body)
    assert answers == [False, True]


def test_a_model_that_runs_on_another_thread_is_told():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def here(run):
        train(net, optimizer, batches(2))

    def elsewhere(run):
        worker = threading.Thread(target=here, args=(run,))
        worker.start()
        worker.join()

    _, told, _ = measured(elsewhere)
    _, untold, _ = measured(here)
    assert len(told.notes) == 1
    assert "ran on another thread" in told.notes[0]
    assert untold.notes == ()


# -- several optimizers ------------------------------------------------------------------------------------------------


def test_optimizers_that_train_one_after_another_are_each_traced():
    """Layer by layer, each with its optimizer: the last layer is the peak."""

    def body(run):
        x = torch.randn(64, 10)
        for width in (4, 16, 1024):
            layer = nn.Linear(x.shape[1], width)
            train(layer, torch.optim.Adam(layer.parameters()), [x] * 8)
            x = layer(x).detach()

    _, recording, report = measured(body)
    ended = "3 steps; then step 10 (another Adam began); then step 18 (another Adam began)"
    assert report.measurement.ended_by == ended
    assert (recording.steps, recording.traced_steps) == (24, 3 + 2)
    assert report.peak_step == 18
    weights = (16 + 1) * 1024 * 4
    assert report.peak["parameters"] >= weights
    assert report.peak["optimizer_state"] >= 2 * weights
    assert report.peak["other"] == 0


def test_a_generator_that_steps_once_for_five_steps_of_its_critic_is_traced():
    critic, generator = model(), nn.Sequential(nn.Linear(10, 512), nn.ReLU(), nn.Linear(512, 10))
    first, second = torch.optim.SGD(critic.parameters(), 0.1), torch.optim.Adam(generator.parameters())

    def body(run):
        for _ in range(6):
            train(critic, first, batches(5))
            train(generator, second, batches(1))

    _, recording, report = measured(body, {"critic": critic, "generator": generator})
    assert report.measurement.ended_by == "3 steps; then step 12 (another Adam began)"
    assert report.peak["optimizer_state"] >= 2 * 10 * 512 * 4 * 2
    assert report.peak["other"] == 0
    assert recording.steps == 31
