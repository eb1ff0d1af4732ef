"""Where the meter's place stands among a cell's outputs, message by message."""

from __future__ import annotations

import pytest

from ipyvram.render.standing import Standing

CELL = "the cell"


def after(*messages: tuple[str, dict], made: bool = True) -> Standing:
    standing = Standing()
    if made:
        standing.made()
    for kind, content in messages:
        standing.passed(kind, content, CELL)
    return standing


def clear(wait: bool) -> tuple[str, dict]:
    return "clear_output", {"wait": wait}


def widget(msg_id: str, comm: str = "w") -> tuple[str, dict]:
    return "comm_msg", {"comm_id": comm, "data": {"method": "update", "state": {"msg_id": msg_id}}}


def test_it_is_made_before_the_first_text_and_not_before_a_figure():
    assert Standing().wants_before("stream")
    assert not Standing().wants_before("display_data")
    assert not after().wants_before("stream")


def test_a_clear_takes_it_away_at_once_or_with_the_next_output():
    assert not after(clear(wait=False)).there
    waiting = after(clear(wait=True))
    assert (waiting.there, waiting.pending, waiting.free) == (True, True, False)
    assert waiting.wants_before("stream")
    assert not waiting.wants_before("display_data")
    for kind in ("stream", "display_data", "execute_result", "error"):
        waiting = after(clear(wait=True))
        waiting.passed(kind, {}, CELL)
        assert (waiting.there, waiting.pending, waiting.free) == (False, False, True)


@pytest.mark.parametrize("kind", ["display_data", "execute_result", "error"])
def test_it_is_made_again_behind_what_took_it_away_unless_that_ends_the_cell(kind):
    assert after().passed(*clear(wait=False), CELL)
    assert not after(made=False).passed(*clear(wait=False), CELL)
    assert not after().passed(*clear(wait=True), CELL)
    assert after(clear(wait=True)).passed(kind, {}, CELL) == (kind == "display_data")


@pytest.mark.parametrize("kind", ["update_display_data", "status", "comm_msg", "clear_output"])
def test_what_is_no_output_sets_nothing_off(kind):
    assert not after(clear(wait=True)).wants_before(kind)
    assert not Standing().wants_before(kind)


def test_what_goes_into_a_widget_is_not_under_the_cell():
    taken = after(widget(CELL), clear(wait=False))
    assert (taken.there, taken.free) == (True, False)
    assert not taken.wants_before("stream")
    assert not after(clear(wait=True), widget(CELL)).wants_before("stream")
    assert after(clear(wait=True), widget(CELL), ("stream", {})).pending


def test_a_widget_lets_go_or_is_closed():
    assert after(widget(CELL), widget("")).free
    assert after(widget(CELL), ("comm_close", {"comm_id": "w", "data": {}})).free
    assert not after(widget(CELL), widget(CELL, "v"), widget("")).free
    assert not after(widget(CELL), ("comm_msg", {"comm_id": "w", "data": {"state": {"value": 1}}})).free


def test_a_widget_that_takes_another_cells_outputs_is_none_of_ours():
    assert after(widget("another cell")).free
