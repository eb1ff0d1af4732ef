"""An interrupt that arrives in the callback of a weak reference still reaches the program, and the account is whole."""

from __future__ import annotations

import sys
import time
import weakref
from types import SimpleNamespace

import pytest
import torch

import ipyvram
from ipyvram.probes.interrupts import Interrupts


class Thing:
    pass


def wait() -> None:
    """As a program that calls no operator: the interrupt has to find it."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.001)


def test_an_interrupt_in_the_callback_is_sent_again():
    repaired = []

    def callback(reference: object) -> None:
        raise KeyboardInterrupt

    watch = Interrupts(callback, lambda: repaired.append(True))
    before = sys.unraisablehook
    watch.start()
    try:
        things = [Thing()]
        reference = weakref.ref(things[0], callback)

        def program() -> None:
            things.clear()
            wait()

        with pytest.raises(KeyboardInterrupt):
            program()
    finally:
        watch.stop()
    assert reference() is None
    assert repaired == [True]
    assert sys.unraisablehook is before


def raising(kind: type[BaseException]) -> None:
    raise kind


@pytest.mark.parametrize(
    ("kind", "function"),
    [(ValueError, raising), (KeyboardInterrupt, lambda kind: raising(kind)), (KeyboardInterrupt, None)],
    ids=["another error", "another callback", "in no function"],
)
def test_what_is_not_ours_goes_where_it_went(kind, function, monkeypatch):
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    watch = Interrupts(raising, lambda: pytest.fail("nothing to repair"))
    watch.start()
    unraisable = SimpleNamespace(exc_type=kind, exc_traceback=None, object=None)
    try:
        if function is not None:
            function(kind)
    except BaseException as error:
        unraisable.exc_traceback = (
            error.__traceback__.tb_next
        )  # as Python gives it, which calls the callback from no frame
    try:
        sys.unraisablehook(unraisable)
    finally:
        watch.stop()
    assert seen == [unraisable]


def test_a_hook_that_came_later_stays(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    watch = Interrupts(wait, lambda: None)
    watch.start()
    sys.unraisablehook = later = lambda unraisable: None
    watch.stop()
    assert sys.unraisablehook is later


def test_a_storage_whose_end_was_missed_is_freed(monkeypatch):
    from ipyvram.probes.live_storages import LiveStorages

    raised = []
    original = LiveStorages.freed

    def interrupted_once(self: LiveStorages, live: object) -> None:
        if not raised and live.size == 4_000:  # type: ignore[attr-defined]
            raised.append(True)
            raise KeyboardInterrupt
        original(self, live)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveStorages, "freed", interrupted_once)

    def program() -> None:
        a = torch.ones(1_000)
        del a
        wait()

    with pytest.raises(KeyboardInterrupt), ipyvram.measure() as m:
        program()
    assert raised
    assert m.report.peak_bytes == 4_000
    assert sum(m.report.end.values()) == 0
    assert m.report.error == "KeyboardInterrupt"
