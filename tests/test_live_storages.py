"""Which storage is which: numbers, when each counts from, and its end."""

from __future__ import annotations

import gc

import pytest
import torch

from ipyvram.ledger import build
from ipyvram.probes.clock import Clock
from ipyvram.probes.live_storages import LiveStorages
from ipyvram.probes.storage_log import DeviceLogs
from ipyvram.recording import Action, Trace


class Storages(LiveStorages):
    """With logs of its own, and what operators would say of a tensor."""

    def __init__(self, followed=None) -> None:
        self.logs = DeviceLogs({}, {}, frozenset())
        super().__init__(Clock(), lambda above: -1, self.logs, followed)

    def make(self, tensor: torch.Tensor, reused: torch.Tensor | None = None) -> None:
        storage = tensor.untyped_storage()
        over = None if reused is None else self.known(reused.untyped_storage())
        self.made(storage, storage.nbytes(), self.logs.of(storage), -1, over)

    def met(self, tensor: torch.Tensor) -> int:
        """Claimed as there before."""
        return self.identify(tensor.untyped_storage(), before=True)

    def find(self, tensor: torch.Tensor) -> None:
        """An operator is given it."""
        storage = tensor.untyped_storage()
        self.found(storage, self.logs.of(storage), before=False)

    def trace(self) -> Trace:
        return self.logs.traces(0, 1 << 62, "end of cell")[0]

    def rows(self) -> list[tuple[str, int]]:
        events, signs = self.trace().events, {Action.ALLOC: "+", Action.FREE_REQUESTED: "-"}
        return [(signs[a], int(s)) for a, s in zip(events.action, events.size, strict=True)]


@pytest.fixture
def live():
    return Storages()


def test_numbers_are_never_used_twice(live):
    for _ in range(50):
        live.make(torch.zeros(10))
    events = live.trace().events
    made = events.address[events.action == Action.ALLOC]
    assert len(made) == 50
    assert len(set(made.tolist())) == 50


def test_a_storage_has_one_number_through_all_of_its_tensors(live):
    x, old = torch.zeros(5), torch.zeros(10)
    live.make(x)
    serial = live.identify(x.untyped_storage())
    assert live.identify(x.view(5, 1).untyped_storage()) == serial
    ancient = live.met(old)
    assert live.met(old) == ancient
    live.find(old)
    del x
    found = live.trace()
    assert found.events.address.tolist() == [serial] * 2
    assert [b.address for b in found.baseline] == [ancient]


def test_host_memory_that_was_there_before_counts_from_its_use_on(live):
    used, unused = torch.zeros(10), torch.zeros(20)
    live.met(used)
    live.met(unused)
    live.find(used)
    assert [b.size for b in live.trace().baseline] == [40]


def test_what_nobody_says_was_there_before_appears_when_it_is_met(live):
    x = torch.zeros(10)
    live.identify(x.untyped_storage())
    assert not live.trace().baseline
    assert live.rows() == [("+", 40)]


def test_what_compiled_code_uses_counts_from_when_it_was_met(live):
    """No operator tells of it: state of an optimizer that was there, and state that its compiled step has made."""
    there, made, unused = torch.zeros(10), torch.zeros(20), torch.zeros(30)
    live.met(there)
    x = torch.zeros(1)
    live.make(x)
    serial = live.met(made)
    live.met(unused)
    assert live.use(there.untyped_storage()) is False
    assert live.use(made.untyped_storage()) is True
    assert live.use(made.untyped_storage()) is False  # it counts already
    assert live.identify(made.untyped_storage()) == serial
    assert [block.size for block in live.trace().baseline] == [40]
    assert live.rows() == [("+", 4), ("+", 80)]


def test_what_is_counted_is_there_from_the_begin_used_or_not(live):
    first, second = torch.zeros(10), torch.zeros(20)
    live.count({live.met(first)})
    live.met(second)
    assert [block.size for block in live.trace().baseline] == [40]
    live.find(first)
    assert [block.size for block in live.trace().baseline] == [40]


def test_what_an_earlier_trace_has_seen_counts_from_the_start(live):
    x, gone = torch.zeros(10), torch.zeros(20)
    live.make(x)
    live.make(gone)
    del gone
    live.close()
    later = Storages(live.followed)
    later.met(x)
    assert [block.size for block in later.trace().baseline] == [40]


def test_a_result_takes_the_place_of_its_operand_where_that_ends_at_once(live):
    operand, result = torch.zeros(10), torch.zeros(10)
    live.make(operand)
    live.make(result, reused=operand)
    del operand
    assert build(live.trace()).allocated().tolist() == [0, 40]
    live.make(kept := torch.zeros(10), reused=result)
    live.make(torch.zeros(1))  # something happened, and the operand is still there
    assert kept.numel() == result.numel()
    assert live.rows() == [("+", 40), ("+", 40), ("+", 4), ("-", 4)]


def test_a_storage_that_grows_is_freed_and_made(live):
    x = torch.zeros(10)
    live.make(x)
    live.resized(live.known(x.untyped_storage()), 80, -1)
    del x
    assert live.rows() == [("+", 40), ("-", 40), ("+", 80), ("-", 80)]
    assert live.logs.by_name["cpu"].bytes == 0


def test_the_dead_whose_end_was_not_told_are_freed(live, monkeypatch):
    monkeypatch.setattr(LiveStorages, "freed", lambda self, live: None)
    x = torch.zeros(10)
    live.make(x)
    monkeypatch.undo()
    del x
    assert live.rows() == [("+", 40)]
    live.free_the_dead()
    assert live.rows() == [("+", 40), ("-", 40)]


def test_nothing_is_kept_after_the_end(live):
    x = torch.zeros(10)
    live.make(x)
    live.close()
    events = live.event_count
    del x
    gc.collect()
    assert live.event_count == events
    assert not live.by_key
