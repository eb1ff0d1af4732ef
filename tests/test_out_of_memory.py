"""Out of memory for real, under a byte budget on the CPU: what is told is true, and each way out that is called enough is."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from ipyvram.options import Options
from ipyvram.out_of_memory import explain
from ipyvram.probes import ending
from ipyvram.probes import oom as probe
from ipyvram.probes.clock import Clock
from ipyvram.recording import Cell, OomEvent
from ipyvram.remedies import Situation, remedies
from ipyvram.render.html import html
from ipyvram.render.oom import asked, room
from ipyvram.render.text import text
from ipyvram.report import Report
from ipyvram.report_rows import OutOfMemory, StepAccount, TensorRow
from ipyvram.run import Run
from ipyvram.units import MIB
from tests.made import account
from tests.test_findings_programs import Notebook, notebook  # noqa: F401

SETUP = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside = nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128))
    def forward(self, x):
        return x + self.inside(x)
model = nn.Sequential(*[Block() for _ in range(6)])
optimizer = torch.optim.Adam(model.parameters(){})
def train(batch=512, steps=3, cast=False):
    for _ in range(steps):
        x = torch.randn(batch, 128)
        optimizer.zero_grad()
        with torch.autocast('cpu', dtype=torch.bfloat16, enabled=cast):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
"""


def start(notebook, options: str = "") -> None:  # noqa: F811
    notebook.run(SETUP.format(options))


def peak(notebook, cell: str = "train()") -> int:  # noqa: F811
    report = notebook.measure(cell, budget_bytes=2**40)
    notebook.run("optimizer.zero_grad()")
    return report.peak_bytes


def remedy(report, kind: str):
    return next((r for r in report.oom.remedies if r.kind == kind), None)


def test_the_account_at_that_instant_closes_and_names_who_asked(notebook):  # noqa: F811
    start(notebook)
    report = notebook.measure("train()", budget_bytes=20 * MIB)
    oom = report.oom
    assert report.error.startswith("OutOfMemoryError")
    assert sum(oom.account.values()) == oom.allocated_bytes
    assert oom.allocated_bytes <= oom.limit_bytes == 20 * MIB < oom.allocated_bytes + oom.requested_bytes
    assert (oom.phase, oom.line, oom.source) == ("forward", 1, "train()")
    assert oom.module.startswith(tuple("012345"))
    assert oom.account["activations"] >= oom.limit_bytes / 2
    assert oom.account["other"] == 0
    assert sum(t.bytes for t in oom.holders) <= oom.allocated_bytes
    assert [t.bytes for t in oom.holders] == sorted((t.bytes for t in oom.holders), reverse=True)


def test_a_budget_has_to_hold_the_model_and_what_its_optimizer_keeps(notebook):  # noqa: F811
    """Layers that have not run yet and the optimizer's state lie on a card, too: not only what the cell has used so far."""
    start(notebook)
    notebook.run("train(steps=1)\noptimizer.zero_grad()")
    report = notebook.measure("train(batch=4096)", budget_bytes=20 * MIB)
    parameters = sum(p.nbytes for p in notebook.names["model"].parameters())
    assert report.oom.phase == "forward"
    assert report.oom.account["parameters"] == report.start["parameters"] == parameters
    assert 2 * parameters <= report.oom.account["optimizer_state"] < 2.1 * parameters
    assert report.oom.allocated_bytes <= report.oom.limit_bytes


def test_what_the_traceback_pins_is_what_cutting_it_frees(notebook):  # noqa: F811
    start(notebook)
    report = notebook.measure("train()", budget_bytes=20 * MIB)
    assert report.oom.pinned_bytes > 10 * MIB
    assert "traceback" not in [f.kind for f in report.findings]  # told once


def test_a_variable_names_the_batch_and_not_an_argument_of_some_frame(notebook):  # noqa: F811
    start(notebook)
    notebook.run("x = torch.randn(8, 128)")
    report = notebook.measure("x = torch.randn(4096, 128)\nmodel(x).sum().backward()", budget_bytes=20 * MIB)
    assert {t.name for t in report.tensors_at_peak if t.category == "inputs"} == {"x"}


@pytest.mark.parametrize("caught", ["RuntimeError('x') from error", "ValueError"])
def test_an_error_raised_from_it_counts(notebook, caught):  # noqa: F811
    start(notebook)
    cell = f"try:\n    train()\nexcept torch.OutOfMemoryError as error:\n    raise {caught}"
    assert notebook.measure(cell, budget_bytes=20 * MIB).oom is not None


def test_one_that_the_cell_survived_is_not_reported(notebook):  # noqa: F811
    start(notebook)
    cell = "try:\n    train()\nexcept torch.OutOfMemoryError:\n    pass\ntrain(batch=16)"
    assert notebook.measure(cell, budget_bytes=20 * MIB).oom is None


def test_another_error_is_no_out_of_memory(notebook):  # noqa: F811
    start(notebook)
    assert notebook.measure("raise RuntimeError('CUDA out of patience')", budget_bytes=20 * MIB).oom is None


def test_a_batch_that_was_given_by_keyword_has_a_size_though_the_forward_did_not_return(notebook):  # noqa: F811
    notebook.run(
        "class Keyword(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = model\n"
        "    def forward(self, features=None):\n        return self.net(features).sum()\n"
        "keyword = Keyword()"
    )
    report = notebook.measure("x = torch.randn(4096, 64)\nkeyword(features=x).backward()", budget_bytes=6 * MIB)
    assert report.oom.phase == "forward"
    assert "instead of 4096" in remedy(report, "smaller_batch").text


def test_the_smaller_batch_fits(notebook):  # noqa: F811
    start(notebook)
    notebook.run("train(steps=1, batch=8)")
    budget = round(peak(notebook) * 0.7)
    report = notebook.measure("train(batch=128)\ntrain(batch=512)", budget_bytes=budget)
    way = remedy(report, "smaller_batch")
    assert way.enough
    batch = int(way.text.split()[1])
    del report
    notebook.run("optimizer.zero_grad(set_to_none=True)")
    again = notebook.measure(f"train(batch={batch})", budget_bytes=budget)
    assert again.error is None
    assert again.peak_bytes > 0.8 * budget  # and it is not a timid guess


def test_before_a_step_has_finished_a_batch_is_a_bound(notebook):  # noqa: F811
    start(notebook)
    way = remedy(notebook.measure("train()", budget_bytes=20 * MIB), "smaller_batch")
    if way is not None:
        assert (way.enough is None) == ("at most" in way.text or "room for two states" in way.text)


def test_pieces_in_the_cache_move_with_the_batch_and_in_a_first_backward_states_are_to_come():
    """Of 2000 MiB 1900 count. 1200 are the batch's, and as many more as the cache has in pieces; parameters take 200."""
    oom = OutOfMemory(
        200 * MIB, 1200 * MIB, account(parameters=200 * MIB, activations=1000 * MIB), 2000 * MIB, 0, 2000 * MIB
    )
    step = StepAccount(1, 0.0, 1.0, 0, 0, {}, {}, "forward", batch=100)

    def said(**more) -> tuple[str, bool | None]:
        found = remedies(replace(situation(oom), batch=100, **more))
        return next((r.text.partition(";")[0], r.enough) for r in found if r.kind == "smaller_batch")

    forward = replace(oom, phase="forward")
    assert said(oom=forward, steps=(step,)) == ("batch 64 instead of 100", True)  # 100 * 1700 / (1200 + 800) = 85
    backward, account_ = replace(oom, phase="backward"), "which leaves room for two states of each parameter (Adam's)"
    assert said(oom=backward) == (f"batch 48 instead of 100, {account_}", None)  # 100 * (1700 - 3 * 200) / 2000 = 55
    assert said(oom=forward)[0].startswith("a smaller batch: at most 64 instead of 100 by what was there so far")


def test_autocast_saves_what_it_says(notebook):  # noqa: F811
    start(notebook)
    whole = peak(notebook)
    report = notebook.measure("train()", budget_bytes=round(whole * 0.9))
    way = remedy(report, "autocast")
    assert way.enough is None  # which layers keep full precision shows when it runs
    assert way.text.startswith('with torch.autocast("cpu", dtype=torch.bfloat16) around the forward')
    notebook.run("optimizer.zero_grad(set_to_none=True)")
    cast = peak(notebook, "train(cast=True)")
    assert cast <= whole * 0.9
    assert abs((whole - cast) - way.saves_bytes) < 0.35 * way.saves_bytes


def test_checkpointing_saves_what_it_says(notebook):  # noqa: F811
    start(notebook)
    whole = peak(notebook)
    report = notebook.measure("train()", budget_bytes=round(whole * 0.85))
    way = remedy(report, "checkpointing")
    assert way.enough is not False
    assert " blocks (0, 1, 2" in way.text
    notebook.run(
        "optimizer.zero_grad(set_to_none=True)\n"
        "from torch.utils.checkpoint import checkpoint_sequential\n"
        "inner = model\n"
        "class Checkpointed(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.inner = inner\n"
        "    def forward(self, x):\n        return checkpoint_sequential(self.inner, 6, x, use_reentrant=False)\n"
        "model = Checkpointed()"
    )
    assert notebook.measure("train()", budget_bytes=round(whole * 0.85)).error is None


def test_foreach_saves_what_it_says(notebook):  # noqa: F811
    start(notebook, ", foreach=True")
    notebook.run("train(batch=2, steps=1)\noptimizer.zero_grad(set_to_none=True)")
    whole = peak(notebook, "train(batch=2)")
    report = notebook.measure("train(batch=2)", budget_bytes=whole - MIB)
    assert report.oom.phase == "optimizer"
    way = remedy(report, "foreach")
    assert way.enough
    notebook.run("for group in optimizer.param_groups:\n    group['foreach'] = False\noptimizer.zero_grad()")
    assert notebook.measure("train(batch=2)", budget_bytes=whole - MIB).error is None


def test_foreach_is_no_way_out_of_a_loop(notebook):  # noqa: F811
    start(notebook, ", foreach=False")
    notebook.run("train(batch=2, steps=1)\noptimizer.zero_grad(set_to_none=True)")
    report = notebook.measure("train(batch=2)", budget_bytes=peak(notebook, "train(batch=2)") - 1024)
    assert report.oom is not None
    assert remedy(report, "foreach") is None


def test_no_grad_is_the_way_out_of_an_evaluation(notebook):  # noqa: F811
    start(notebook)
    cell = "model.eval()\nfor _ in range(2):\n    out = model(torch.randn(512, 128))"
    report = notebook.measure(cell, budget_bytes=20 * MIB)
    assert remedy(report, "no_grad").enough
    assert report.oom.remedies[0].kind == "no_grad"
    with torch.no_grad():
        assert notebook.measure(cell, budget_bytes=20 * MIB).error is None


def test_no_grad_is_no_way_out_of_training(notebook):  # noqa: F811
    start(notebook)
    assert remedy(notebook.measure("train()", budget_bytes=20 * MIB), "no_grad") is None


LATE = """
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(3):
    out = model(torch.randn(512, 128))
    optimizer.zero_grad()
    out.square().mean().backward()
    optimizer.step()
    del out
"""


def test_stale_gradients(notebook):  # noqa: F811
    """The second forward runs while the first step's gradients are still held."""
    start(notebook)
    budget = peak(notebook, LATE) - MIB
    report = notebook.measure(LATE, budget_bytes=budget)
    assert (report.oom.phase, report.oom.step) == ("forward", 2)
    way = remedy(report, "set_to_none")
    assert way.enough
    assert way.saves_bytes == sum(p.nbytes for p in notebook.names["model"].parameters())
    notebook.run("optimizer.zero_grad()")
    early = LATE.replace("    optimizer.zero_grad()\n", "").replace("step()", "step(); optimizer.zero_grad()")
    assert notebook.measure(early, budget_bytes=budget).error is None


def test_gradients_that_are_being_accumulated_are_not_stale(notebook):  # noqa: F811
    start(notebook)
    cell = "for b in (64, 1024):\n    model(torch.randn(b, 128)).square().mean().backward()"
    report = notebook.measure(cell, budget_bytes=20 * MIB)
    assert report.oom.account["gradients"] > 0
    assert remedy(report, "set_to_none") is None


def test_what_an_earlier_error_holds_is_the_first_way_out(notebook):  # noqa: F811
    start(notebook)
    notebook.fail("def f():\n    big = torch.zeros(4, 1024, 1024)\n    raise KeyError('x')\nf()")
    report = notebook.measure("train()", budget_bytes=20 * MIB)
    assert report.oom.remedies[0].kind == "traceback"
    assert report.oom.remedies[0].saves_bytes >= 16 * MIB


def test_what_is_in_no_account_is_no_way_out(notebook):  # noqa: F811
    start(notebook)
    notebook.fail("def f():\n    big = torch.zeros(32, 1024, 1024)\n    raise KeyError('x')\nf()")
    report = notebook.measure("train()", budget_bytes=20 * MIB)
    assert remedy(report, "traceback") is None


# -- after the traced steps --------------------------------------------------------------------------------------------


def test_what_the_traceback_holds_stands_for_the_account_after_the_trace():
    """Nothing was traced then; what the frames hold is named, and what they do not is `other`."""
    pinned = {"activations": 50, "outputs": 3, "other": 9}
    event = OomEvent(1, "cuda:0", 40, allocated_bytes=170, pinned_bytes=62, pinned=pinned, phase="forward")
    oom = explain(event, account(parameters=100), (), TensorRow(40, "other"), ("after step 3", "", 0))
    assert oom.account == account(parameters=100, activations=50, outputs=3, other=17)
    assert (oom.when, oom.phase) == ("forward, after the traced steps", "forward")
    unseen = explain(event, account(parameters=100), (), TensorRow(40, "other"), ("", "", 0))
    assert unseen.when == "forward"  # nothing was traced before
    full = explain(
        replace(event, allocated_bytes=120), account(parameters=100), (), TensorRow(40, "other"), ("", "", 0)
    )
    assert sum(full.account.values()) == full.allocated_bytes == 120


FULL = OutOfMemory(200 * MIB, 416 * MIB, account(parameters=416 * MIB), 2048 * MIB, 128 * MIB, 420 * MIB, 4 * MIB)


def test_a_share_of_the_card_is_told_from_a_full_card():
    share = replace(FULL, limit_bytes=512 * MIB, free_bytes=1100 * MIB)
    assert (FULL.share_left_bytes, FULL.outside_bytes) == (None, 1500 * MIB)
    assert (share.share_left_bytes, share.outside_bytes) == (92 * MIB, 0)
    assert "128 MiB free, 1.46 GiB outside torch" in room(FULL)
    assert "92.0 MiB left of what this process may take" in room(share)
    assert "1.07 GiB of the card are free" in room(share)
    assert (situation(FULL).missing_bytes, situation(share).missing_bytes) == (72 * MIB, 108 * MIB)


def situation(oom: OutOfMemory, **more) -> Situation:
    return Situation(oom, (), (), (), None, "cuda:0", "foreach", True, True, **more)


def test_the_state_of_an_optimizer_is_no_temporary():
    oom = replace(FULL, phase="optimizer", account=account(gradients=416 * MIB))
    assert [r.kind for r in remedies(situation(oom))] == ["foreach"]
    assert remedies(situation(oom, making_state=True)) == ()


def test_an_optimizer_without_a_fused_form_is_not_told_to_use_one():
    oom = replace(FULL, phase="optimizer", account=account(parameters=208 * MIB, temporaries=208 * MIB))
    told = {name: [r.text for r in remedies(situation(oom, optimizer=name))] for name in ("Adam", "RMSprop")}
    assert told["Adam"][0].startswith("foreach=False or fused=True")
    assert told["RMSprop"][0].startswith("foreach=False in the optimizer")
    one = TensorRow(208 * MIB, "parameters")  # a loop would have as many temporaries
    ways = remedies(replace(situation(oom, optimizer="RMSprop"), live=(one,)))
    assert ways == ()


def test_cached_pieces_are_perhaps_enough_while_no_step_has_finished():
    oom = replace(FULL, allocated_bytes=100 * MIB, account=account(parameters=100 * MIB), phase="forward")
    assert [(r.kind, r.enough) for r in remedies(situation(oom))] == [("expandable_segments", None)]
    outside = {r.kind: r.enough for r in remedies(situation(replace(oom, phase="")))}
    assert outside["expandable_segments"] is True


def saved(module: str, mib: int, dtype: str = "float32") -> TensorRow:
    return TensorRow(bytes=mib * MIB, category="activations", module=module, dtype=dtype)


#: Four blocks behind a stem of leaves: checkpoints save 320 - 80 - (80 + 60) = 100 MiB, and 72 MiB are missing.
STEM = tuple(saved(name, 20) for name in ("conv1", "bn1", "maxpool"))
BLOCKS = tuple(saved(f"layer1.{i}.{part}", 20) for i in range(4) for part in ("conv1", "bn1", "conv2", "bn2"))
TRAINING = replace(FULL, phase="forward", account=account(parameters=156 * MIB, activations=260 * MIB))


def ways_of(oom: OutOfMemory, live: tuple[TensorRow, ...], **more) -> dict:
    found = replace(situation(oom, **more), live=live)
    return {r.kind: r for r in remedies(found)}


def test_checkpoints_go_around_modules_that_have_parts():
    ways = ways_of(TRAINING, (*STEM, *BLOCKS))
    assert "around 4 blocks (layer1.0, layer1.1, layer1.2, …)" in ways["checkpointing"].text
    assert (
        ways["checkpointing"].saves_bytes == 100 * MIB
    )  # the output of each, the inside of one and the gradients on their way through it are there all the same
    assert "checkpointing" not in ways_of(TRAINING, STEM)


def test_blocks_may_lie_deep_in_a_model():
    deep = tuple(replace(row, module=f"net.encoder.{row.module}") for row in BLOCKS)
    assert "around 4 blocks (net.encoder.layer1.0," in ways_of(TRAINING, deep)["checkpointing"].text


@pytest.mark.parametrize(("path", "named"), [("", True), ("layer1.", True), ("head.", False)])
def test_a_model_that_sets_its_checkpoints_itself_is_asked_to(path, named):
    way = ways_of(TRAINING, BLOCKS, checkpoints={path: "net.gradient_checkpointing_enable()"})["checkpointing"]
    assert way.text.startswith("net.gradient_checkpointing_enable() before training sets") is named
    assert way.saves_bytes == 100 * MIB


OWN = """
class Own(nn.Module):
    supports_gradient_checkpointing = {}
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(6))
    def gradient_checkpointing_enable(self): raise AssertionError("called")
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x
class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Own()
    def forward(self, x):
        return self.backbone(x)
model = {}
optimizer = torch.optim.Adam(model.parameters())
"""


@pytest.mark.parametrize(
    ("made", "supported", "call"),
    [
        ("Own()", True, "model.gradient_checkpointing_enable()"),
        ("Wrapper()", True, "model.backbone.gradient_checkpointing_enable()"),
        ("Own()", False, "torch.utils.checkpoint around "),
    ],
)
@pytest.mark.parametrize("other", ["", "other = nn.Linear(4, 4); other(torch.ones(1, 4))\n"])
def test_the_call_that_works_in_the_users_program_is_named(made, supported, call, other, notebook):  # noqa: F811
    start(notebook)
    notebook.run(OWN.format(supported, made) + other)
    report = notebook.measure(other + "train()", budget_bytes=round(peak(notebook) * 0.85))
    assert remedy(report, "checkpointing").text.startswith(call)


def test_while_a_forward_is_unfinished_nothing_is_called_enough():
    big = tuple(replace(row, bytes=4 * row.bytes) for row in BLOCKS)
    ways = ways_of(TRAINING, big)
    assert ways["checkpointing"].saves_bytes > situation(TRAINING).missing_bytes
    assert ways["checkpointing"].enough is None
    assert ways["autocast"].enough is None


def test_in_the_first_backward_gradients_and_states_are_still_to_come():
    fits = replace(TRAINING, phase="backward", account=account(parameters=10 * MIB, activations=406 * MIB))
    big = tuple(replace(row, bytes=4 * row.bytes) for row in BLOCKS)
    assert ways_of(fits, big)["checkpointing"].enough is True
    larger = replace(fits, account=account(parameters=156 * MIB, activations=260 * MIB))
    assert ways_of(larger, big)["checkpointing"].enough is None


def test_autocast_is_no_way_out_where_it_is_in_use():
    assert "autocast" in ways_of(TRAINING, BLOCKS)
    assert "autocast" not in ways_of(TRAINING, (*BLOCKS, saved("layer1.1.relu", 50, "bfloat16")))
    assert "autocast" not in ways_of(TRAINING, (saved("", 200),))  # a loss stays in full precision


def test_state_that_the_optimizer_made_after_the_first_steps_peak_comes_on_top():
    """760 MiB are needed in all, and 544 there may be: 216 MiB have to be saved, though 72 would do for this allocation."""
    peak = {"parameters": 100 * MIB, "gradients": 60 * MIB, "activations": 400 * MIB}
    step = StepAccount(1, 0.0, 1.0, 560 * MIB, 360 * MIB, peak, {}, "backward")
    held = account(parameters=100 * MIB, optimizer_state=200 * MIB, activations=116 * MIB)
    for times, enough in ((1, None), (2, None), (3, True)):
        live = tuple(replace(row, bytes=times * row.bytes) for row in BLOCKS)
        found = replace(situation(replace(TRAINING, step=2, account=held)), live=live, steps=(step,))
        way = next(r for r in remedies(found) if r.kind == "checkpointing")
        assert (way.saves_bytes, way.enough) == (times * 100 * MIB, enough)


def test_what_follows_the_traced_phases_reads_as_a_sentence():
    assert asked(replace(FULL, line=3, when="after step 3")).endswith("at line 3 after step 3.")
    assert asked(replace(FULL, line=3, when="step 1, forward")).endswith("at line 3 in step 1, forward.")


@pytest.mark.parametrize(
    ("code", "phase"),
    [
        ("model(torch.randn(512, 128))", "forward"),
        ("x = torch.randn(512, 128, requires_grad=True)\n(model(x).exp().exp()).sum().backward()", "backward"),
        ("torch.zeros(100, 1024, 1024)", ""),
        ("torch.nn.Linear(4096, 4096).to(torch.float64)", ""),
    ],
)
def test_the_frames_tell_the_phase(notebook, code, phase):  # noqa: F811
    start(notebook)
    budget = 10 * MIB if phase != "backward" else peak(notebook, code) - 1024
    run = Run(Options(budget_bytes=budget), Cell(code, "x"), notebook.names)
    run.start()
    error = None
    try:
        notebook.run(code)
    except torch.OutOfMemoryError as raised:
        error = raised
    event = run.stop(error).oom
    assert event.phase == phase
    assert sum(event.pinned.values()) == event.pinned_bytes


# -- shown -------------------------------------------------------------------------------------------------------------


def test_text_and_html_tell_the_same(notebook):  # noqa: F811
    start(notebook)
    report = notebook.measure("train()", budget_bytes=20 * MIB)
    shown, markup = " ".join(text(report).split()), html(report)
    for way in report.oom.remedies:
        assert way.text in shown
    for part in ("Out of memory: ", "--budget", "Ways out, cheapest first", "%vram free --traceback"):
        assert part in shown
        assert part in markup
    assert max(map(len, text(report, width=60).splitlines())) <= 60
    assert Report.from_json(report.to_json()) == report


# -- CUDA --------------------------------------------------------------------------------------------------------------


def test_the_observer_is_attached_once_and_idle_between_cells(monkeypatch):
    attached = []
    monkeypatch.setattr(torch._C, "_cuda_attach_out_of_memory_observer", attached.append, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda include_traces=True: SEGMENTS)
    monkeypatch.setattr(probe.counters, "read", lambda device: {"allocated": 70, "reserved": 90})
    monkeypatch.setattr(probe, "_attached", False)
    first, second = probe.OomWatch(Clock(), lambda: 5), probe.OomWatch(Clock(), lambda: 6)
    first.start()
    attached[0](1, 40, 100, 10)
    first.stop()
    attached[0](1, 41, 100, 10)  # between cells
    second.start()
    attached[0](1, 42, 100, 10)
    second.stop()
    assert len(attached) == 1
    assert (first.event.requested_bytes, second.event.requested_bytes) == (40, 42)
    event = first.event
    assert (event.device, event.limit_bytes, event.free_bytes, event.stack) == ("cuda:1", 100, 10, 5)
    assert (event.allocated_bytes, event.reserved_bytes, event.largest_free_bytes) == (70, 90, 15)


def test_a_torch_that_reads_the_history_along_is_not_asked_for_blocks(monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: SEGMENTS)
    monkeypatch.setattr(torch._C, "_cuda_isHistoryEnabled", lambda: True, raising=False)
    assert probe._largest_free(1) is None
    monkeypatch.setattr(torch._C, "_cuda_isHistoryEnabled", lambda: False, raising=False)
    assert probe._largest_free(1) == 15


SEGMENTS = [
    {"device": 1, "blocks": [{"size": 15, "state": "inactive"}, {"size": 70, "state": "active_allocated"}]},
    {"device": 1, "blocks": [{"size": 5, "state": "inactive"}]},
    {"device": 0, "blocks": [{"size": 99, "state": "inactive"}]},
]


def test_a_fault_in_the_observer_is_not_the_users(monkeypatch):
    def broken(*args):
        raise RuntimeError("ours")

    monkeypatch.setattr(probe, "_listener", broken)
    probe._observe(0, 1, 2, 3)


def test_without_cuda_there_is_nothing_to_attach():
    watch = probe.OomWatch(Clock(), lambda: -1)
    watch.start()
    watch.stop()
    assert watch.event is None
    gc.collect()


def test_an_evaluation_after_the_traced_steps_is_told_by_its_frames():
    class Net(torch.nn.Module):
        def forward(self, x):
            raise torch.OutOfMemoryError("CUDA out of memory")

    def said(net: torch.nn.Module) -> str:
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.nn.Sequential(net)(torch.zeros(1)) if net.training else torch.nn.Sequential(net).eval()(
                torch.zeros(1)
            )
        event = ending.out_of_memory(caught.value, OomEvent(1, "cuda:0", 40), None)
        assert event is not None
        return event.evaluating

    assert (said(Net()), said(Net().eval())) == ("", "Sequential")
    oom = replace(FULL, phase="forward", account=account(activations=416 * MIB), requested_bytes=8 * MIB, free_bytes=0)
    ways = remedies(situation(oom, evaluating_since="Net"))
    assert [(r.kind, r.saves_bytes) for r in ways if r.kind == "no_grad"] == [("no_grad", 400 * MIB)]
    assert "no_grad" not in [r.kind for r in remedies(situation(oom))]
