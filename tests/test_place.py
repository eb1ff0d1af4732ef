"""The meter's place: the same messages with it and without it, in a front end that follows the messaging protocol."""

from __future__ import annotations

import os
import warnings
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jupyter_client.session import Session

from ipyvram.render.place import EMPTY, FixedPlace, Place, place_for
from tests.front_end import PLACE, FrontEnd

PARENT = {"msg_id": "cell", "msg_type": "execute_request"}


class Thread:
    """The kernel's sending thread, which is the test's."""

    def __init__(self, session: Session, front_end: FrontEnd) -> None:
        self._session, self._front_end = session, front_end

    def schedule(self, work):
        work()

    def _really_send(self, parts, copy=True):
        message = self._session.deserialize(self._session.feed_identities(parts)[1], content=True)
        self._front_end.take(message["msg_type"], message["content"])


class Kernel:
    """A kernel as far as a place knows it."""

    def __init__(self) -> None:
        self.session, self.front_end = Session(key=b"a key"), FrontEnd()
        self.thread = self.iopub_thread = Thread(self.session, self.front_end)
        self.parent_header, self.topic = PARENT, b"kernel.display_data"

    def send(self, kind: str, content: dict[str, Any], parent: dict[str, Any] = PARENT) -> None:
        message = self.session.msg(kind, content, parent=parent)
        self.thread._really_send(self.session.serialize(message, b"topic"), copy=True)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def text(words: str = "user\n") -> tuple[str, dict[str, Any]]:
    return "stream", {"name": "stdout", "text": words}


def shown(words: str) -> dict[str, Any]:
    return {"text/plain": words, "text/html": words}


FIGURE = ("display_data", {"data": {"image/png": "a"}, "metadata": {}, "transient": {}})
CLEAR, CLEAR_WAIT = ("clear_output", {"wait": False}), ("clear_output", {"wait": True})
CAPTURE, RELEASE = (("comm_msg", {"comm_id": "w", "data": {"state": {"msg_id": msg_id}}}) for msg_id in ("cell", ""))

messages = st.sampled_from([text("a"), text("b\n"), FIGURE, CLEAR, CLEAR_WAIT, CAPTURE, RELEASE])


@example([CLEAR_WAIT, PLACE, FIGURE, PLACE])
@given(st.lists(st.one_of(messages, st.just(PLACE)), max_size=24))
def test_the_users_outputs_are_as_without_it_and_it_is_there_whenever_it_can_be(events):
    kernel, without = Kernel(), FrontEnd()
    place = Place(kernel.thread, kernel)
    front_end, told = kernel.front_end, None
    for i, event in enumerate(events):
        if event == PLACE:
            place.show(shown(str(i)))
            told = told if front_end.captured else shown(str(i))  # an update that a widget swallows is not seen
            if not front_end.captured and not front_end.clear_next:
                assert front_end.places == [told]
        else:
            kernel.send(*event)
            without.take(*event)
            if told and event[0] in ("stream", "display_data") and not front_end.captured:
                assert len(front_end.places) == 1
        assert front_end.users == without.outputs
        assert [output for output in front_end.widget if output[0] != "update_display_data"] == without.widget
        assert len(front_end.places) <= 1
    waits = without.clear_next and without.outputs != []
    left = place.close()
    assert front_end.users == without.outputs
    if left is None:
        assert front_end.captured or all(data == EMPTY for data in front_end.places)
        if waits:  # then there was no place to show the report in
            assert front_end.places == []
    assert "_really_send" not in kernel.thread.__dict__


def test_a_clear_that_still_waits_at_the_end_leaves_the_place_to_the_report(kernel):
    place = Place(kernel.thread, kernel)
    kernel.send(*text("frame"))
    place.show(shown("meter"))
    kernel.send(*CLEAR_WAIT)
    left = place.close()
    assert left is not None
    kernel.send("update_display_data", {"data": shown("report"), "metadata": {}, "transient": {"display_id": left}})
    assert kernel.front_end.outputs == [[PLACE, shown("report")], ["stream", "frame"]]


@pytest.mark.parametrize(("output", "first"), [(text(), PLACE), (FIGURE, "display_data")])
def test_it_comes_right_before_text_and_right_behind_a_figure_that_sets_off_a_clear(kernel, output, first):
    place = Place(kernel.thread, kernel)
    place.show(shown("meter"))
    kernel.send(*CLEAR_WAIT)
    kernel.send(*output)
    assert {name for name, _ in kernel.front_end.outputs} == {PLACE, output[0]}
    assert kernel.front_end.outputs[0][0] == first
    kernel.send(*CLEAR)
    assert kernel.front_end.outputs == [[PLACE, shown("meter")]]
    place.close()
    assert kernel.front_end.outputs == [[PLACE, EMPTY]]


def test_the_outputs_of_other_cells_are_none_of_its_business(kernel):
    place = Place(kernel.thread, kernel)
    place.show(shown("meter"))
    kernel.send(*CLEAR_WAIT, parent={"msg_id": "another"})
    kernel.front_end.clear_next = False
    place.show(shown("more"))
    assert kernel.front_end.outputs == [[PLACE, shown("more")]]
    assert place.close() is None


def test_a_forked_child_only_passes_on(kernel, monkeypatch):
    place = Place(kernel.thread, kernel)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    kernel.send(*text())
    assert kernel.front_end.outputs == [["stream", "user\n"]]
    monkeypatch.undo()
    place.close()


def test_a_fault_of_ours_costs_the_meter_and_no_output(kernel):
    place = Place(kernel.thread, kernel)
    place.show(shown("meter"))
    place._session = None
    kernel.send(*CLEAR_WAIT)
    kernel.send(*FIGURE)
    place.show(shown("more"))
    assert kernel.front_end.outputs == [["display_data", FIGURE[1]["data"]]]
    assert place.close() is None
    assert "_really_send" not in kernel.thread.__dict__


def test_who_observes_in_turn_stays_and_is_served(kernel):
    place = Place(kernel.thread, kernel)
    below, seen = kernel.thread._really_send, []

    def observe(parts, **options):
        seen.append(parts)
        below(parts, **options)

    kernel.thread._really_send = observe
    place.close()
    kernel.send(*text())
    assert kernel.thread._really_send is observe
    assert len(seen) == 1
    assert kernel.front_end.outputs == [["stream", "user\n"]]


def test_two_places_on_top_of_each_other_are_taken_away_again(kernel):
    lower = Place(kernel.thread, kernel)
    kernel.thread._really_send = top = kernel.thread._really_send  # as an instance attribute of somebody's
    upper = Place(kernel.thread, kernel)
    upper.close()
    assert kernel.thread._really_send is top
    lower.close()
    assert "_really_send" not in kernel.thread.__dict__


@pytest.mark.parametrize(
    "exporter", ["HTMLExporter", "MarkdownExporter", "LatexExporter", "RSTExporter", "PythonExporter"]
)
def test_what_stays_in_a_saved_notebook_is_valid_and_nbconvert_does_not_warn_of_it(exporter):
    nbconvert, nbformat = pytest.importorskip("nbconvert"), pytest.importorskip("nbformat")
    output = nbformat.v4.new_output("display_data", data=dict(EMPTY))
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("pass", outputs=[output])])
    nbformat.validate(node)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(nbconvert, exporter)().from_notebook_node(node)
    assert [str(one.message) for one in caught if "represented" in str(one.message)] == []


def test_a_kernel_without_such_a_thread_has_a_fixed_place():
    class Publisher:
        def __init__(self) -> None:
            self.sent: list[tuple[bool, dict[str, Any]]] = []

        def publish(self, data, metadata, transient, update):
            self.sent.append((update, data))

    class Shell:
        kernel, display_pub = object(), Publisher()

    place = place_for(Shell)
    assert isinstance(place, FixedPlace)
    place.show(shown("meter"))
    assert place.close() is None
    assert Shell.display_pub.sent == [(False, EMPTY), (True, shown("meter")), (True, EMPTY)]
