"""When a cell is traced again: by what the sampler saw, and by what variables hold."""

from __future__ import annotations

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.probes.variables import Variables
from ipyvram.units import MIB
from ipyvram.watch import MAX_RETRACES, Watch


class Held(Variables):
    """Variables of one running function."""

    def __init__(self, **values):
        super().__init__()
        self.values = values

    def all(self):
        return {(1, name): value for name, value in self.values.items() if not name.startswith("_")}

    def some(self, wanted):
        return {place: value for place, value in self.all().items() if place[1] in wanted.get(1, ())}


def traced(watch, held, *batches):
    """Traced steps, each with these variables."""
    for batch in batches:
        held.values.update(batch)
        watch.learn_step()


def follow(sizes, traced_steps=3, held=None, name="x"):
    """Step → why the step after it is traced, of a loop over batches of these sizes."""
    held = held or Held()
    watch, why, armed = Watch(held), {}, 0
    for step, size in enumerate(sizes, 1):
        held.values[name] = image(size)
        if step <= traced_steps or armed == step:
            watch.learn_step()
        elif reason := watch.reason():
            why[step] = reason
            armed = step + 1
            watch.retraces += 1
    return why


def image(count):
    return torch.zeros(count, 3)


# -- shapes -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.integers(0, 3), st.integers(4, 40))
def test_constant_shapes_are_never_a_reason(size, traced_steps, steps):
    assert follow([size] * steps, traced_steps) == {}


@pytest.mark.parametrize("traced_steps", [2, 3])
def test_a_larger_batch_is_traced_at_once(traced_steps):
    assert follow([8, 8, 8, 8, 64, 64, 64, 8, 8], traced_steps) == {5: "x grew to 64×3"}


@pytest.mark.parametrize("size", [1, 7, 8.5])
def test_another_batch_that_comes_and_stays_is_traced_once(size):
    size = int(size * 10)
    assert follow([80] * 5 + [size] * 9) == {7: f"x changed to {size}×3"}


def test_one_odd_batch_is_not_worth_a_trace():
    assert follow([8] * 5 + [3] + [8] * 9) == {}


@given(st.integers(2, 12), st.integers(3, 6))
def test_the_last_batch_of_an_epoch_is_met_in_the_third(steps, epochs):
    sizes = ([8] * (steps - 1) + [3]) * epochs
    covered = steps <= 3  # the traced steps had one
    assert follow(sizes) == ({} if covered else {3 * steps - 1: "x changed to 3×3"})


def test_two_shapes_in_turn_are_covered_by_the_traced_steps():
    assert follow([8, 6] * 10) == {}


def test_two_shapes_in_turn_that_begin_later_are_met():
    assert follow([8] * 4 + [6, 8] * 8) == {8: "x changed to 6×3"}


@given(st.lists(st.integers(1, 9), min_size=4, max_size=80))
def test_traces_are_bounded_and_none_is_for_shapes_that_were_traced(sizes):
    why = follow(sizes)
    assert len(why) <= MAX_RETRACES
    met = [sizes[step] for step in why if step < len(sizes) and why[step].endswith(f" {sizes[step]}×3")]
    assert len(met) == len(set(met))
    assert not set(met) & set(sizes[1:3])


def test_other_shapes_leave_room_for_what_raises_the_peak():
    sizes = [80] * 3 + [70] * 3 + [60] * 3 + [50] * 3 + [40] * 3 + [160] * 3
    assert list(follow(sizes).values()) == [
        "x changed to 70×3", "x changed to 60×3", "x changed to 50×3", "x grew to 160×3"
    ]  # fmt: skip


def test_a_loop_that_begins_later_has_variables_of_its_own():
    held = Held()
    watch = Watch(held)
    traced(watch, held, {"x": image(8)}, {"x": image(8)})
    held.values = {}
    reasons = []
    for size in (8, 8, 5, 5, 5):
        held.values["batch"] = image(size)
        reasons.append(watch.reason())
    assert reasons == ["", "", "", "batch changed to 5×3", "batch changed to 5×3"]


def test_the_largest_of_a_batch_gives_the_reason():
    held = Held()
    watch = Watch(held)
    pairs = [{"y": torch.zeros(n), "x": image(n)} for n in (8, 8, 8, 8, 4, 4)]
    traced(watch, held, *pairs[:3])
    reasons = []
    for pair in pairs[3:]:
        held.values.update(pair)
        reasons.append(watch.reason())
    assert reasons == ["", "", "x changed to 4×3"]
    held.values.update(y=torch.zeros(64), x=image(64))
    assert watch.reason() == "x grew to 64×3"


def test_batches_in_dicts_and_tuples_are_seen():
    for name, make in (("batch", lambda n: {"ids": image(n), "mask": image(n)}), ("pair", lambda n: (image(n), 3))):
        held = Held()
        watch = Watch(held)
        traced(watch, held, {name: make(4)}, {name: make(4)}, {name: make(4)})
        held.values[name] = make(9)
        assert watch.reason().startswith(f"{name} grew to 9×3")


def test_what_stays_the_same_object_or_wants_gradients_is_no_batch():
    kept, weight = image(8), torch.zeros(8, requires_grad=True)
    held = Held(kept=kept)
    watch = Watch(held)
    for _ in range(3):
        traced(watch, held, {"loss": weight.sum(), "_private": image(8)})
    held.values.update(kept=image(99), loss=torch.zeros(99, requires_grad=True), _private=image(99))
    assert watch.reason() == ""


def test_results_that_are_collected_grow_at_every_step_and_are_no_batch():
    assert follow([1, 2, 3, 4, 5, 6, 7]) == {}


def test_results_that_are_collected_in_a_later_loop_are_no_batch():
    held, reasons = Held(), []
    watch = Watch(held)
    losses = [torch.zeros(())]
    traced(watch, held, {"losses": [torch.zeros(())]}, {"losses": losses})
    for _ in range(8):
        losses.append(torch.zeros(()))
        reasons.append(watch.reason())
        assert not watch.doubling()
    assert reasons == [""] * 8


@given(st.lists(st.integers(1, 64), min_size=4, max_size=30))
def test_a_trace_goes_on_while_each_batch_is_a_good_deal_larger_than_all_before(sizes):
    held = Held()
    watch = Watch(held)
    for step, size in enumerate(sizes, 1):
        traced(watch, held, {"x": image(size)})
        assert watch.doubling() == (step > 2 and size >= 1.6 * max(sizes[1 : step - 1]))


def test_a_batch_that_doubles_without_end_is_traced_so_long_and_no_longer():
    held = Held()
    watch = Watch(held)
    went_on = []
    for step in range(20):
        traced(watch, held, {"x": image(1).expand(2**step, 3)})
        went_on.append(watch.doubling())
    assert went_on == [False] * 2 + [True] * 12 + [False] * 6


def test_a_batch_that_doubled_and_stays_is_traced_once():
    assert follow([8, 8, 8, 8, 64, 64, 64]) == {5: "x grew to 64×3"}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_has_no_shape_is_passed_over():
    held = Held()
    watch = Watch(held)
    for _ in range(6):
        ragged = torch.nested.nested_tensor([image(2), image(3)])
        jagged = torch.nested.nested_tensor([image(2), image(3)], layout=torch.jagged)
        held.values.update(ragged=ragged, jagged=jagged, both=[ragged, image(1)])
        watch.learn_step()
    assert watch.reason() == watch.reason() == ""


def test_nothing_is_kept_alive():
    held = Held()
    watch = Watch(held)
    for step in range(8):
        held.values["x"] = x = image(8 if step < 5 else 4)
        end_of_step = watch.learn_step if step < 3 else watch.reason
        end_of_step()
        last = weakref.ref(x)
        del x
        held.values.clear()
        assert last() is None


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("figure", "known", "below", "above"),
    [
        ("allocated_peak", 100 * MIB, 101 * MIB, 103 * MIB),
        ("allocated_peak", 10_000, 10_000 + MIB, 10_001 + MIB),
        ("process_rss", 2000 * MIB, 2500 * MIB, 2501 * MIB),
    ],
)
def test_a_rise_above_the_traced_steps_is_a_reason(figure, known, below, above):
    watch = Watch(Held())
    watch.learn_figures("cuda:0", {figure: known - 5})
    watch.learn_figures("cuda:0", {figure: known, "allocated": 1})
    watch.see_figures("cuda:0", {figure: below})
    assert watch.reason() == ""
    watch.see_figures("cuda:0", {figure: above})
    watch.see_figures("cuda:0", {figure: known})
    assert watch.reason().startswith("memory grew by")
    assert watch.reason() == ""


def test_what_grew_before_a_traced_step_is_covered_by_it():
    """A trace that was asked for, after memory grew and before the watch had told."""
    watch = Watch(Held())
    watch.learn_figures("cuda:0", {"allocated_peak": 100 * MIB})
    watch.learn_step()
    watch.see_figures("cuda:0", {"allocated_peak": 200 * MIB})
    watch.learn_step()
    assert watch.reason() == ""
    watch.see_figures("cuda:0", {"allocated_peak": 300 * MIB})
    assert watch.reason() == "memory grew by 100 MiB"


def test_beside_a_gpu_the_resident_size_is_no_reason():
    watch = Watch(Held())
    watch.learn_figures("cpu", {"process_rss": 2000 * MIB})
    watch.learn_figures("cuda:0", {"allocated_peak": 0})
    watch.see_figures("cpu", {"process_rss": 9000 * MIB})
    assert watch.reason() == ""


def test_a_slow_leak_adds_up():
    watch = Watch(Held())
    watch.learn_figures("cuda:0", {"allocated_peak": 0})
    reasons = []
    for kib in range(0, 3000, 100):
        watch.see_figures("cuda:0", {"allocated_peak": kib * 1024})
        reasons.append(watch.reason())
    assert len(list(filter(None, reasons))) == 2


def test_a_device_that_the_trace_did_not_see_is_measured_from_its_first_sample():
    watch = Watch(Held())
    watch.see_figures("cuda:1", {"allocated_peak": 900 * MIB})
    assert watch.reason() == ""
    watch.see_figures("cuda:1", {"allocated_peak": 990 * MIB})
    assert watch.reason() != ""


def test_the_number_of_traces_is_bounded():
    watch = Watch(Held())
    watch.learn_figures("cuda:0", {"allocated_peak": 0})
    watch.retraces = MAX_RETRACES
    watch.see_figures("cuda:0", {"allocated_peak": 900 * MIB})
    assert not watch.allows()
    assert watch.reason() == ""


def test_a_long_cell_has_room_for_later_traces_up_to_a_bound():
    """Layer after layer is trained, or unfrozen: the last of them is the peak."""
    watch, traced_at = Watch(Held()), []
    for step in range(1, 401):
        watch.see_figures("cuda:0", {"allocated_peak": 100 * MIB * step})
        if watch.reason():
            watch.retraces += 1
            traced_at.append(step)
    assert len(traced_at) == 12
    assert all(step >= 10 * place for place, step in enumerate(traced_at) if place >= MAX_RETRACES)
