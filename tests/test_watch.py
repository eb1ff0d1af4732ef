"""When a cell is traced again: by what the sampler saw, and by what the notebook's variables hold."""

from __future__ import annotations

import pytest
import torch

from ipyvram.units import MIB
from ipyvram.watch import MAX_RETRACES, Watch


def steps(watch, namespace, *batches):
    """Traced steps, each with these variables."""
    for batch in batches:
        namespace.update(batch)
        watch.learn_step()


def image(count):
    return torch.zeros(count, 3)


def test_a_larger_batch_is_a_reason_and_says_which():
    namespace = {}
    watch = Watch(namespace)
    steps(watch, namespace, {"x": image(8)}, {"x": image(8)})
    assert watch.reason() == ""
    namespace["x"] = image(16)
    assert watch.reason() == "x grew to 16×3"
    assert watch.reason() == ""  # it is known now


@pytest.mark.parametrize("size", [1, 7, 8])
def test_a_batch_that_is_not_larger_cannot_raise_the_peak(size):
    namespace = {}
    watch = Watch(namespace)
    steps(watch, namespace, {"x": image(8)}, {"x": image(8)})
    namespace["x"] = image(size)
    assert watch.reason() == ""


def test_batches_in_dicts_and_tuples_are_seen():
    namespace = {}
    watch = Watch(namespace)
    for name, make in (("batch", lambda n: {"ids": image(n), "mask": image(n)}), ("pair", lambda n: (image(n), 3))):
        steps(watch, namespace, {name: make(4)}, {name: make(4)})
        namespace[name] = make(9)
        assert watch.reason().startswith(f"{name} grew to 9×3")


def test_what_stays_the_same_object_or_wants_gradients_is_no_batch():
    kept, weight = image(8), torch.zeros(8, requires_grad=True)
    namespace = {"kept": kept}
    watch = Watch(namespace)
    steps(watch, namespace, {"loss": weight.sum(), "_private": image(8)}, {"loss": weight.sum(), "_private": image(8)})
    namespace.update(kept=image(99), loss=torch.zeros(99, requires_grad=True), _private=image(99))
    assert watch.reason() == ""


def test_results_that_are_collected_grow_at_every_step_and_are_no_batch():
    namespace = {"found": image(1)}
    watch = Watch(namespace)
    for size in (2, 4, 8):
        steps(watch, namespace, {"found": image(size)})
    namespace["found"] = image(16)
    assert watch.reason() == ""


@pytest.mark.parametrize(
    ("figure", "known", "below", "above"),
    [
        ("allocated_peak", 100 * MIB, 101 * MIB, 103 * MIB),
        ("allocated_peak", 10_000, 10_000 + MIB, 10_001 + MIB),
        ("process_rss", 2000 * MIB, 2500 * MIB, 2501 * MIB),
    ],
)
def test_a_rise_above_the_traced_steps_is_a_reason(figure, known, below, above):
    watch = Watch({})
    watch.learn_figures("cuda:0", {figure: known - 5})
    watch.learn_figures("cuda:0", {figure: known, "allocated": 1})
    watch.see_figures("cuda:0", {figure: below})
    assert watch.reason() == ""
    watch.see_figures("cuda:0", {figure: above})
    watch.see_figures("cuda:0", {figure: known})
    assert watch.reason().startswith("memory grew by")
    assert watch.reason() == ""


def test_beside_a_gpu_the_resident_size_is_no_reason():
    watch = Watch({})
    watch.learn_figures("cpu", {"process_rss": 2000 * MIB})
    watch.learn_figures("cuda:0", {"allocated_peak": 0})
    watch.see_figures("cpu", {"process_rss": 9000 * MIB})
    assert watch.reason() == ""


def test_a_slow_leak_adds_up():
    watch = Watch({})
    watch.learn_figures("cuda:0", {"allocated_peak": 0})
    reasons = []
    for kib in range(0, 3000, 100):
        watch.see_figures("cuda:0", {"allocated_peak": kib * 1024})
        reasons.append(watch.reason())
    assert len(list(filter(None, reasons))) == 2


def test_a_device_that_the_trace_did_not_see_is_measured_from_its_first_sample():
    watch = Watch({})
    watch.see_figures("cuda:1", {"allocated_peak": 900 * MIB})
    assert watch.reason() == ""
    watch.see_figures("cuda:1", {"allocated_peak": 990 * MIB})
    assert watch.reason() != ""


def test_the_number_of_traces_is_bounded():
    watch = Watch({})
    watch.learn_figures("cuda:0", {"allocated_peak": 0})
    watch.retraces = MAX_RETRACES
    watch.see_figures("cuda:0", {"allocated_peak": 900 * MIB})
    assert not watch.allows()
    assert watch.reason() == ""
