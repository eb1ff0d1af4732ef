"""Each rule on a hand-made report: it speaks at its threshold and is silent just below. The programs that make such reports
happen are in `test_findings_programs`."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipyvram.findings import find
from ipyvram.findings.batch import batch_bounds, fewer_temporaries
from ipyvram.findings.worth import code
from ipyvram.grouping import batch_size
from ipyvram.recording import Observation
from ipyvram.report_rows import AFTER_TRACE, Phase, StepAccount, TensorRow, Timeline
from tests.made import MIB, account, report

GIB = 2**30


def kinds(made) -> list[str]:
    return [f.kind for f in find(made)]


def text(made, kind: str) -> str:
    return next(f.text for f in find(made) if f.kind == kind)


def step(number: int, peak: int, end: int = 0, phase: str = "backward", **categories: int) -> StepAccount:
    held = categories or {"activations": peak}
    return StepAccount(number, number - 1.0, float(number), peak, end, held, held | {"outputs": end}, phase)


def steps(*pairs: tuple[int, int]):
    return tuple(step(i, peak, end) for i, (peak, end) in enumerate(pairs, 1))


def seen(kind: str, bytes_: int, **fields) -> tuple[Observation, ...]:
    return (Observation(kind, bytes_, **fields),)


def cuda(**fields):
    """1 GiB of tensors on a card of 8 GiB of which `card` says the rest."""
    card = {"cache": 0, "context": 0, "other_processes": 0} | fields.pop("card", {})
    peak = fields.pop("peak", {"parameters": GIB})
    left = 8 * GIB - sum(peak.values()) - sum(card.values())
    defaults = {"device": "cuda:0", "card_bytes": 8 * GIB, "device_bytes": 8 * GIB, "card": card | {"free": left}}
    return report(peak, **defaults | fields)


def row(bytes_: int, category: str, name: str = "", shape: tuple[int, ...] | None = None, **more) -> TensorRow:
    return TensorRow(bytes_, category, name, shape=shape, **more)


def one_step(**before: int):
    """A cell of one step, which made 20 MiB of optimizer state after a backward with what is said."""
    peak = {"optimizer_state": 20 * MIB, "gradients": 80 * MIB}
    columns = {c: (before.get(c, 0), peak.get(c, 0)) for c in before | peak}
    timeline = Timeline((0.0, 0.5), columns, end_s=1.0)
    phases = (Phase(0.0, 0.4, "forward", 1), Phase(0.5, 1.0, "optimizer", 1))
    only = (step(1, 100 * MIB, phase="optimizer", **peak),)
    return report(peak, steps=1, traced_steps=1, step_accounts=only, timeline_data=timeline, phases=phases)


#: kind → (a report that triggers it, a near miss, what the sentence must contain)
CASES = {
    "evaluates_later": (
        report(observations=seen("evaluates_later", 0, name="3 steps")),
        report(),
        ("ends after 3 steps", "evaluation"),
    ),
    "left_on_host": (
        report(observations=seen("left_on_host", 0, name="16×3×32×32, 16", holder="convolution", count=2)),
        report(),
        ("leaves 2 tensors (16×3×32×32, 16) on the CPU", "first in convolution", "Move them with .to(device)"),
    ),
    "traceback": (
        report(observations=seen("traceback", 3 * MIB, name="KeyError")),
        report(observations=seen("traceback", 1 * MIB, name="KeyError")),  # 1 % of the peak
        ("3.00 MiB", "KeyError", "%vram free --traceback"),
    ),
    "out": (
        report(observations=seen("out", 5 * MIB, name="Out[10], _10")),
        report(observations=seen("out", 2**15, name="Out[10], _10")),
        ("`Out[10]`, `_10` hold", "5.00 MiB", "%vram free --out"),
    ),
    "old_model": (
        report(observations=seen("old_model", 50 * MIB, name="model", holder="optimizer")),
        report(observations=seen("old_model", 1 * MIB, name="model", holder="optimizer")),
        ("previous `model` (50.0 MiB)", "held by `optimizer`"),
    ),
    "orphan_optimizer": (
        report(observations=seen("orphan_optimizer", 100, name="optimizer", count=6)),
        report(),
        ("`optimizer` updates 6 parameters (100 B) of no live model",),
    ),
    "graphs": (
        report(observations=seen("graphs", 30 * MIB, name="losses", count=9)),
        report(observations=seen("graphs", 30 * MIB, name="loss", count=1)),
        ("`losses` keeps 9 autograd graphs alive, 30.0 MiB", ".item() of a loss"),
    ),
    "untrained": (
        report(observations=seen("untrained", 3 * MIB, name="vgg", count=26)),
        report(observations=seen("untrained", 1 * MIB, name="vgg", count=26)),
        ("gradients (3.00 MiB) for 26 parameters of `vgg` that no optimizer updates", "requires_grad_(False)"),
    ),
    "unused_graph": (
        report(observations=seen("unused_graph", 5 * MIB, count=8)),
        report(observations=seen("unused_graph", 5 * MIB, count=1)),
        ("5.00 MiB a forward", "no_grad"),
    ),
    "second_step": (
        report(step_accounts=(step(1, 100 * MIB), step(2, 110 * MIB, optimizer_state=8 * MIB, activations=102 * MIB))),
        report(step_accounts=(step(1, 100 * MIB), step(2, 110 * MIB, activations=110 * MIB))),  # a larger batch
        ("10.0 MiB above step 1", "8.00 MiB more"),
    ),
    "only_step": (one_step(activations=90 * MIB), one_step(activations=80 * MIB), ("about 110 MiB, 10.0 MiB more", "two steps")),
    "first_step": (
        report(step_accounts=steps((60 * MIB, 0), (40 * MIB, 0)), environment={"cudnn_benchmark": "True"}),
        report(step_accounts=steps((60 * MIB, 0), (40 * MIB, 0))),  # nobody asked cuDNN to search
        ("60.0 MiB", "40.0 MiB", "cudnn.benchmark"),
    ),
    "growth": (
        report(step_accounts=steps((1, 0), (1, 4 * MIB), (1, 8 * MIB))),
        report(step_accounts=steps((1, 0), (1, 4 * MIB), (1, 4 * MIB))),  # once is not a trend
        ("grows 4.00 MiB a step", "mostly outputs (100 %)"),
    ),
    "fragmentation": (
        cuda(card={"cache": GIB // 4}),
        cuda(card={"cache": GIB // 4 - 1}),
        ("256 MiB of the 1.25 GiB reserved (20 %)", "expandable_segments:True"),
    ),
    "earlier_cache": (
        cuda(card={"cache": GIB}, allocator={"reserved_before": 2 * GIB - GIB // 5 + 1}),
        # More had to be reserved, and what was reserved before was in use.
        cuda(card={"cache": GIB}, allocator={"reserved_before": GIB}, start=account(parameters=GIB // 2 + 1)),
        ("1.00 GiB of the 2.00 GiB reserved (50 %)", "was there before", "empty_cache()"),
    ),
    "retries": (
        cuda(allocator={"retries": 9, "ooms": 2}),
        cuda(allocator={"retries": 2, "ooms": 2}),  # an allocation that failed was tried again, too
        ("7 times",),
    ),
    "caught_oom": (
        cuda(observations=seen("caught_oom", GIB), allocator={"retries": 2, "ooms": 2}),
        cuda(allocator={"retries": 2}),
        ("2 out-of-memory errors were caught", "1.00 GiB"),
    ),
    "reconcile": (
        cuda(card={"cache": GIB // 8, "context": GIB // 4}),
        cuda(card={"cache": GIB // 8, "context": GIB // 8}),
        ("1.38 GiB = 1.00 GiB tensors + 128 MiB cache + 256 MiB context",),
    ),
    "process": (
        cuda(observations=seen("process", GIB, name="python", count=4242, holder="other")),
        cuda(observations=seen("process", GIB // 4, name="python", count=4242, holder="other")),
        ("`python` (PID 4242), holds 1.00 GiB",),
    ),
    "workers": (
        cuda(observations=seen("process", GIB, name="python", count=9, holder="worker")),
        cuda(observations=seen("process", MIB, name="python", count=9, holder="worker")),
        ("1 child processes", "DataLoader"),
    ),
    "spill": (
        cuda(peak_reserved_bytes=9 * GIB),
        cuda(peak_reserved_bytes=8 * GIB),
        ("1.00 GiB more than the card has", "system RAM"),
    ),
    "empty_cache": (
        cuda(observations=seen("empty_cache", 64 * MIB), allocator={"allocated": GIB}),
        cuda(observations=seen("empty_cache", 64 * MIB), allocator={"allocated": 0}),  # it did all that was wanted
        ("gave 64.0 MiB", "1.00 GiB of live tensors stay"),
    ),
    "pinned_host": (
        cuda(observations=seen("pinned_host", GIB)),
        cuda(observations=seen("pinned_host", GIB - 1)),
        ("host RAM",),
    ),
    "idle_gpu": (
        report(steps=3, environment={"idle_gpu": "a GPU"}),
        report(steps=0, environment={"idle_gpu": "a GPU"}),
        ("a GPU stood idle",),
    ),
    "no_gpu": (
        report(error="AssertionError: Torch not compiled with CUDA enabled"),
        report(error="AssertionError: shapes"),
        ("--estimate --card T4",),
    ),
    "lever": (
        report({"activations": 5, "other": 5}, steps=1, batch=4),
        report({"activations": 4, "other": 6}, steps=1, batch=4),
        ("50 % of the peak, 1 B for each of 4 samples",),
    ),
    "let_go_graph": (
        report(
            {"activations": 90 * MIB, "parameters": 10 * MIB},
            tensors_at_peak=tuple(row(45 * MIB, "activations", f"graph of t[{i}]", graph_of=f"t[{i}]") for i in range(2)),
            phases=(Phase(0.1, 0.2, "forward", 1),),
        ),
        report(  # the backward of what was computed in the cell before
            {"activations": 90 * MIB, "parameters": 10 * MIB},
            tensors_at_peak=(row(90 * MIB, "activations", "graph of t[0]", graph_of="t[0]"),),
            phases=(Phase(0.1, 0.2, "backward", 1), Phase(0.3, 0.4, "forward", 1)),
        ),
        ("`t` of an earlier cell kept 90.0 MiB of the peak", "del t first"),
    ),
    "kept_graph": (
        report({"activations": 9 * MIB}, end=account(activations=8 * MIB), tensors_at_peak=(row(8 * MIB, "activations", "graph of t", graph_of="t"),)),
        report({"activations": 9 * MIB}, tensors_at_peak=(row(8 * MIB, "activations", "graph of out", graph_of="out"),)),  # its backward ran
        ("`t` keeps the graph of an earlier cell: 8.00 MiB", "del t"),
    ),
    "after_trace": (
        report(tensors_at_peak=(row(2 * MIB, "other", AFTER_TRACE),)),
        report(tensors_at_peak=(row(2 * MIB - 1, "other", AFTER_TRACE),)),  # a block that was not split, a kept loss
        ("2.00 MiB of it have no category",),
    ),
    "optimizer_temporaries": (
        report({"parameters": 9, "temporaries": 1}, peak_phase="optimizer", device="cuda:0"),
        report({"parameters": 9, "temporaries": 1}, peak_phase="optimizer", device="cpu"),
        ("1 B of temporaries", "foreach=False"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("holder", "said"),
    [
        ("optimizer", ": del optimizer before"),
        ("Out[7]", ": %vram free --out before"),  # del Out[7] leaves _7 and _
        ("the last traceback", ": %vram free --traceback before"),
        ("", "no variable holds it: gc.collect()"),  # nor will a del free it
    ],
)
def test_an_earlier_model_is_released_where_it_is_held(holder, said):
    assert said in text(report(observations=seen("old_model", 50 * MIB, name="model", holder=holder)), "old_model")


@pytest.mark.parametrize("kind", CASES)
def test_speaks_at_its_threshold(kind):
    made, _, parts = CASES[kind]
    for part in parts:
        assert part in text(made, kind)


@pytest.mark.parametrize("kind", CASES)
def test_is_silent_below_it(kind):
    assert kind not in kinds(CASES[kind][1])


def test_a_traceback_whose_error_is_not_known_is_told_without_its_name():
    (finding,) = find(report(observations=seen("traceback", 3 * MIB, name="")))
    assert "the traceback of an error: %vram free" in finding.text


def test_fragmentation_of_a_small_cell_on_a_large_card_is_not_worth_a_word():
    peak = {"parameters": 8 * MIB}
    assert "fragmentation" not in kinds(cuda(peak=peak, card={"cache": 8 * GIB // 100}))  # rounded down: just below
    assert "fragmentation" in kinds(cuda(peak=peak, card={"cache": 8 * GIB // 100 + 1}))


def test_what_an_earlier_cell_left_in_the_cache_is_not_called_fragmentation():
    assert "fragmentation" not in kinds(cuda(card={"cache": GIB}, allocator={"reserved_before": 2 * GIB}))
    in_use = account(parameters=GIB // 2 + 1)  # of what was reserved: most that lies unused is this cell's
    assert "fragmentation" in kinds(cuda(card={"cache": GIB}, allocator={"reserved_before": GIB}, start=in_use))


def test_the_batch_is_told_from_the_data_set_it_was_taken_from():
    rows = (
        row(600, "inputs", "data", shape=(512, 3)),
        row(200, "activations", shape=(64, 16)),
        row(100, "activations", shape=(3, 5)),
        row(80, "inputs", "x", shape=(64, 3)),
        row(3, "inputs", "mean", shape=(3, 1)),
    )
    assert batch_size(rows) == 64
    made = report({"activations": 300, "inputs": 683}, steps=1, tensors_at_peak=rows, batch=64)
    assert "lever" not in kinds(made)  # 383 of 983 bytes move with the batch
    more = report({"activations": 900, "inputs": 683}, steps=1, tensors_at_peak=rows, batch=64)
    assert "62 % of the peak, 15 B for each of 64 samples" in text(more, "lever")


def test_what_earlier_cells_left_moves_with_no_batch():
    rows = (row(50, "activations", "graph of t", graph_of="t"), row(20, "inputs", "traceback: x", in_error=True))
    made = report(
        {"activations": 60, "inputs": 40}, steps=1, batch=4, tensors_at_peak=rows, end=account(activations=50)
    )
    assert "lever" not in kinds(made)  # 30 of 100 bytes are this cell's
    alone = report({"activations": 60, "inputs": 40}, steps=1, batch=1)
    assert "for a batch of one: smaller inputs are the lever" in text(alone, "lever")


def test_a_variable_may_be_called_like_what_an_earlier_cell_left():
    rows = (row(50, "activations", "graph of t"), row(20, "inputs", "traceback: x in step()"))  # keys of a dict, say
    made = report(
        {"activations": 60, "inputs": 40}, steps=1, batch=4, tensors_at_peak=rows, end=account(activations=50)
    )
    assert "100 % of the peak" in text(made, "lever")


def held(**fields):
    """16 samples take 1 GiB beside 1 GiB of model; 2.5 GiB were reserved; of a card of 8 GiB 7 may be used."""
    peak = {"parameters": GIB // 2, "optimizer_state": GIB // 2, "activations": GIB}
    usual = {"peak": peak, "peak_reserved_bytes": 5 * GIB // 2, "limit_bytes": 7 * GIB, "steps": 3, "batch": 16}
    return cuda(**usual | fields)


def test_one_size_bounds_the_largest_batch_from_below_and_above():
    """At most 16 samples a GiB of tensors, at least 16 for each 1.5 GiB that was reserved for them, less 25 %."""
    assert "largest within 7.00 GiB lies between 48 and 96: --max-batch" in text(held(), "lever")
    beside = held(card={"cache": GIB // 2, "context": GIB // 4, "other_processes": GIB // 4})
    assert batch_bounds(beside) == (44, 88)
    ran = held(batch=91, limit_bytes=5 * GIB // 2)
    assert batch_bounds(ran) == (91, 136)  # by the rule 68, but so many have fitted
    tight = held(peak_reserved_bytes=2 * GIB)
    assert batch_bounds(tight) == (72, 96)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 1},  # the optimizer's state comes with the second step
        {"batch": 0},
        {"limit_bytes": None},
        {"peak_reserved_bytes": None},
        {"error": "OutOfMemoryError"},
        {"allocator": {"retries": 1}},  # it would have held more
        {"allocator": {"reserved_before": GIB}},  # an earlier cell may have needed it
        {"limit_bytes": GIB},
    ],
)
def test_without_a_bound_none_is_said(fields):
    assert batch_bounds(held(**fields)) is None
    assert "--max-batch" not in " ".join(f.text for f in find(held(**fields)))


def test_the_step_is_told_by_whose_end_the_peak_was_there():
    late = (row(50 * MIB, "other", AFTER_TRACE),)
    made = report(tensors_at_peak=late)
    peak = made.peak_bytes
    known = replace(made, observations=seen("rose", peak, count=31, device=made.device))
    earlier = replace(made, observations=seen("rose", peak // 2, count=31, device=made.device))
    assert "after the traced part, by the end of step 31: " in text(known, "after_trace")
    assert text(known, "after_trace").endswith("--trace-steps 31.")
    assert "by the end of" not in text(earlier, "after_trace")


def test_what_is_the_same_in_every_step_may_be_no_batch():
    made = report({"activations": 900, "parameters": 100}, steps=3, batch=64, observations=seen("same_input", 0))
    assert "for each of 64 samples, the same in every step: where they can be cut into batches" in text(made, "lever")
    assert "--max-batch" not in text(made, "lever")


def test_a_peak_in_an_evaluation_speaks_of_its_own_batch():
    evaluation = seen("peak_without_gradients", 0)
    made = report(
        {"temporaries": 900, "parameters": 100}, steps=3, batch=64, peak_phase="forward", observations=evaluation
    )
    assert "for each of 64 samples in a forward without gradients: a smaller batch there" in text(made, "lever")


def test_the_other_lever():
    made = report({"parameters": 5, "optimizer_state": 1, "activations": 4}, steps=1)
    assert text(made, "lever").endswith("a smaller batch lowers only the rest.")  # too small for advice


def weights(dtype, *categories):
    return tuple(TensorRow(40 * MIB, category, "w", dtype=dtype) for category in categories)


def test_the_other_lever_says_what_does_lower_it():
    parts = {"parameters": 40 * MIB, "gradients": 40 * MIB, "optimizer_state": 80 * MIB, "activations": MIB}
    rows = weights("float32", "parameters", "gradients", "optimizer_state", "optimizer_state")
    adam = text(report(parts, steps=1, tensors_at_peak=rows), "lever")
    assert "less state (80.0 MiB now; plain SGD none, 8 bits about a quarter)" in adam
    assert "training fewer parameters (frozen layers, LoRA: up to 120 MiB)" in adam
    assert "bfloat16 instead of float32" in adam
    frozen = report(
        {"parameters": 40 * MIB, "activations": MIB}, steps=1, tensors_at_peak=weights("float32", "parameters")
    )
    assert "bfloat16" in text(frozen, "lever")
    assert "LoRA" not in text(frozen, "lever")
    assert "less state" not in text(frozen, "lever")
    half = report(parts, steps=1, tensors_at_peak=weights("bfloat16", "parameters", "optimizer_state"))
    assert "bfloat16" not in text(half, "lever")
    assert "8 bits" not in text(half, "lever")


def of_size(step, batch):
    return StepAccount(step, 0.0, 1.0, 900, 900, {}, {}, batch=batch)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((64, 64, 64, 17), "samples: batch size is the lever."),
        ((37, 120, 64, 80), "each of 64 samples, of which steps have 37 to 120: where these can be cut into batches"),
    ],
)
def test_where_steps_have_other_sizes_each_time_they_are_no_free_choice(sizes, said):
    accounts = tuple(of_size(i, size) for i, size in enumerate(sizes, 1))
    made = report({"activations": 900, "parameters": 100}, steps=4, batch=64, step_accounts=accounts)
    assert said in text(made, "lever")


@pytest.mark.parametrize(("count", "batch", "said"), [(200, 1, True), (200, 0, True), (200, 64, False), (3, 1, False)])
def test_an_episode_of_many_forwards_is_no_batch(count, batch, said):
    seen_so = (Observation("forwards", count=count),)
    made = report({"activations": 900, "parameters": 100}, steps=3, batch=batch, observations=seen_so)
    assert ("kept of 200 forwards until one backward: a backward after fewer" in text(made, "lever")) is said


@pytest.mark.parametrize(
    ("device", "implementation", "said"),
    [("cuda:0", "fused", False), ("cuda:0", "for-loop", False), ("cpu", "foreach", True), ("cuda:0", "foreach", True)],
)
def test_only_foreach_optimizers_have_temporaries_to_save(device, implementation, said):
    environment = {"optimizer_implementation": implementation}
    made = report({"parameters": 9, "temporaries": 1}, peak_phase="optimizer", device=device, environment=environment)
    assert ("optimizer_temporaries" in kinds(made)) is said


def test_the_search_of_cudnn_empties_the_cache_though_nobody_wrote_that():
    fields = {"observations": seen("empty_cache", 64 * MIB), "allocator": {"allocated": GIB}}
    assert kinds(cuda(**fields)) == ["empty_cache"]
    assert kinds(cuda(**fields, environment={"cudnn_benchmark": "True"})) == []


def test_a_model_that_was_there_before_is_moved_by_no_option():
    made = report({"parameters": 9}, steps=3, environment={"idle_gpu": "a GPU"})
    assert "--device cuda" in text(made, "idle_gpu")
    weight = TensorRow(9, "parameters", "weight", phase="before")
    assert "--device cuda" not in text(replace(made, tensors_at_peak=(weight,)), "idle_gpu")


@pytest.mark.parametrize(
    ("largest", "optimizer", "ways"),
    [
        (10, "Adam", "foreach=False or fused=True"),
        (10, "RMSprop", "foreach=False"),  # there is no fused form of it
        (60, "Adam", "fused=True"),  # a loop would have two temporaries of the largest parameter
        (60, "RMSprop", ""),
        (60, "", "fused=True"),
    ],
)
def test_what_lowers_the_temporaries_of_an_optimizer(largest, optimizer, ways):
    assert fewer_temporaries(100, largest, optimizer) == ways


def test_advice_that_would_not_help_is_not_given():
    held = {"parameters": 900, "temporaries": 100}
    fields = {"peak_phase": "optimizer", "device": "cuda:0", "tensors_at_peak": (row(900, "parameters", "w"),)}
    assert "fused=True in the optimizer avoids them" in text(report(held, **fields), "optimizer_temporaries")
    rmsprop = {"optimizer": "RMSprop"}
    assert "optimizer_temporaries" not in kinds(report(held, environment=rmsprop, **fields))


def test_optimizer_temporaries_matter_in_the_optimizer_only():
    assert kinds(report({"parameters": 9, "temporaries": 1}, peak_phase="backward", device="cuda:0")) == []


def test_a_plain_report_has_nothing_to_say():
    assert find(report({"parameters": 10, "temporaries": 10, "outputs": 10})) == ()


def test_most_bytes_first():
    everything = [made for made, _, _ in CASES.values()]
    observations = tuple(o for made in everything for o in made.observations)
    found = find(replace(everything[0], observations=observations))
    assert len(found) >= 6
    assert [f.bytes for f in found] == sorted((f.bytes for f in found), reverse=True)


def test_observations_of_another_device_are_not_ours():
    assert kinds(report(observations=seen("out", GIB, name="_", device="cuda:1"))) == []
    assert kinds(report(observations=seen("out", GIB, name="_", device="cpu"))) == ["out"]


def test_an_odd_step_hides_no_trend_and_makes_none():
    growing = steps((1, 0), (1, 10 * MIB), (1, 13 * MIB), (1, 16 * MIB))
    assert "grows 3.00 MiB" in text(report(step_accounts=growing), "growth")
    assert kinds(report(step_accounts=steps((1, 0), (1, 10 * MIB), (1, 13 * MIB), (1, 13 * MIB)))) == []


def test_an_optimizer_that_keeps_more_with_every_step_is_no_list_of_losses():
    """As L-BFGS does."""
    growing = tuple(
        replace(s, end={"optimizer_state": s.end_bytes}) for s in steps((1, 0), (1, 10 * MIB), (1, 20 * MIB))
    )
    said = text(report(step_accounts=growing), "growth")
    assert "history_size" in said
    assert "losses" not in said


def test_a_smaller_batch_is_no_advice_where_memory_grows():
    account = {"activations": 100 * MIB}
    assert kinds(report(account, steps=3, batch=4)) == ["lever"]
    growing = steps((1, 0), (1, 10 * MIB), (1, 20 * MIB))
    assert kinds(report(account, steps=3, batch=4, step_accounts=growing)) == ["growth"]


def test_names_are_set_as_code_and_cut():
    assert code("Out[1], _") == "`Out[1]`, `_`"
    assert len(code("x" * 500)) == 62


def test_cache_that_an_earlier_cell_left_in_other_sizes_is_no_fragmentation_of_this_one():
    """Half of what lies unused was cache before, though this cell had to reserve more."""
    made = cuda(card={"cache": GIB}, allocator={"reserved_before": GIB}, start=account(parameters=GIB // 2))
    assert "512 MiB of the 2.00 GiB reserved (25 %) are cache that was there before" in text(made, "earlier_cache")
    assert "fragmentation" not in kinds(made)
