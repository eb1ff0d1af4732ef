"""The text form: as wide as asked, in the characters that there are, and as complete as the HTML form."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.render.columns import display_width
from ipyvram.render.markup import clean
from ipyvram.render.palette import COLOURS, LETTERS
from ipyvram.render.summary import summarise
from ipyvram.render.text import CHART_ROWS, Pen, text
from ipyvram.report_rows import LABELS, Finding, Measurement, StepAccount
from ipyvram.units import GIB, MIB
from tests import reports
from tests.made import report

CASES = {
    "training": reports.training,
    "cpu": reports.cpu,
    "long": reports.long,
    "retraced": reports.retraced,
    "empty": reports.empty,
}


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("case", CASES)
def test_no_line_is_too_long(case, width):
    assert max(map(len, text(CASES[case](), width=width).splitlines())) <= width


@given(st.text(alphabet="ab 模型中 \u0301é", max_size=300), st.integers(40, 90))
def test_wide_letters_take_two_columns_and_nothing_is_lost_by_wrapping(words, width):
    lines = Pen(width, unicode=True, colour=False).wrap(words, "  ")
    assert all(display_width(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(clean(words).split())


def test_a_wide_label_fits():
    report = reports.training(label="模型" * 60)
    assert all(display_width(line) <= 80 for line in text(report).splitlines())


@pytest.mark.parametrize("case", CASES)
def test_without_unicode_it_is_ascii(case):
    report = CASES[case](label="Größe · 模型")
    assert text(report, unicode=False).isascii()


@pytest.mark.parametrize("case", CASES)
def test_colour_changes_no_word(case):
    coloured = text(CASES[case](), colour=True, unicode=False)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == text(CASES[case](), unicode=False)


def painted(line: str) -> list[tuple[str, str]]:
    """Character by character: the colour of its upper and of its lower half; empty for the background of the terminal."""
    halves, fore, back = [], "", ""
    for code, character in re.findall(r"\x1b\[([0-9;]*)m|(.)", line):
        if code.startswith("38;2;"):
            fore = code[5:]
        elif code.startswith("48;2;"):
            back = code[5:]
        elif character:
            halves.append({"█": (fore, fore), "▀": (fore, back), "▄": (back, fore)}.get(character, ("", "")))
        else:
            fore = back = ""
    return halves


def chart(shown: str) -> list[str]:
    """Its rows, without the scale before them."""
    return [line.partition("│")[2] for line in shown.splitlines() if "│" in re.sub(r"\x1b\[[0-9;]*m", "", line)]


@pytest.mark.parametrize("case", ["training", "cpu", "long"])
def test_in_colour_the_chart_is_the_same_picture_with_twice_the_rows(case):
    report = CASES[case]()
    rows = [half for line in chart(text(report, colour=True)) for half in zip(*painted(line), strict=True)]
    letters = chart(text(report))
    assert len(rows) == 2 * len(letters) == 2 * CHART_ROWS
    colours = {";".join(str(int(COLOURS[c][i : i + 2], 16)) for i in (1, 3, 5)): LETTERS[c] for c in COLOURS} | {
        "": " "
    }
    for x in range(len(rows[0])):
        fine = [colours[row[x]] for row in rows]
        coarse = [row[x] if x < len(row) else " " for row in letters]
        assert " " not in "".join(fine).lstrip(" ")
        height, halves = CHART_ROWS - coarse.count(" "), len(rows) - fine.count(" ")
        assert abs(2 * height - halves) <= 1
        for letter in set("".join(coarse)) - {" "}:
            assert abs(2 * coarse.count(letter) - fine.count(letter)) <= 2


def test_in_colour_only_runs_are_painted():
    """A character of its own colour costs 25 bytes: a line of 120 would be 3 KB."""
    assert max(map(len, text(reports.cpu(), width=120, colour=True).splitlines())) < 1200


def test_what_is_in_the_chart_and_not_in_the_table_is_named():
    """Nobody else tells what its letter means."""
    made = reports.training()
    assert "and between those" not in text(made)
    size = made.peak["inputs"]
    gone = replace(made, peak=made.peak | {"inputs": 0, "other": size})
    assert f"\nand between those: {LETTERS['inputs']} {LABELS['inputs']}\n" in text(gone)
    assert f"{LETTERS['inputs']} █ {LABELS['inputs']}" in text(gone, colour=True)


def test_a_label_cannot_move_the_cursor():
    assert "\x1b" not in text(reports.training(label="\x1b[2Jgone\r", note="a\nb"))


@pytest.mark.parametrize(
    ("limit", "card", "said"),
    [
        (6 * GIB, None, "5.00 GiB to the limit of 6.00 GiB"),  # on a CPU there is no card, and a limit all the same
        (GIB // 2, None, "512 MiB over the limit of 512 MiB"),
        (8 * GIB, 10 * GIB, "10 % of the card · 7.00 GiB to the 80 % limit"),
        (GIB // 2, 10 * GIB, "10 % of the card · 512 MiB over the 5 % limit"),
    ],
)
def test_the_room_to_the_limit_is_told(limit, card, said):
    made = report({"parameters": GIB}, limit_bytes=limit, card_bytes=card, peak_when="forward")
    shown = " ".join(text(made, width=200).split())
    assert f"Peak 1.00 GiB in forward · {said}" in shown


def test_a_cell_without_tensors_says_no_more_than_that():
    shown = text(
        report({}, provenance={"peak": "sampled", "categories": "sampled"}, measurement=Measurement("sampler only"))
    )
    assert "Peak 0 B\n" in shown
    assert "no tensors were made or used; those that were there before are not counted" in shown
    assert "Nothing in" not in shown
    assert "sampled" not in shown


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 10, "traced_steps": 3}, "exact for 3 of 10 steps"),
        ({"steps": 3, "traced_steps": 3}, "exact for its 3 steps"),  # an evaluation may have followed
        ({"steps": 1, "traced_steps": 1}, "exact for its step"),
        ({"steps": 0, "traced_steps": 0}, "exact for the traced part"),
        ({"steps": 10, "traced_steps": 3, "device": "cuda:0"}, "exact"),  # the allocator's own high-water mark tells
        ({"steps": 10, "traced_steps": 3, "kind": "estimated"}, "exact"),
    ],
)
def test_a_peak_is_exact_only_for_what_was_seen(changes, said):
    unseen = {"peak": "exact", "end": "end of trace"}
    assert f"Peak 1.00 MiB ({said})" in text(report({"parameters": MIB}, provenance=unseen, **changes))
    seen = unseen | {"end": "exact"}
    assert "Peak 1.00 MiB (exact)" in text(report({"parameters": MIB}, provenance=seen, **changes))


def test_an_error_is_repeated_in_a_few_words():
    shown = " ".join(text(report(error="RuntimeError: sizes differ (3 and 4).\nA second line.")).split())
    assert "ended with RuntimeError: sizes differ (3 and 4) – the figures" in shown
    shown = " ".join(text(report(error="RuntimeError: " + "very " * 100)).split())
    assert "very… – the figures" in shown


def test_one_event_is_no_plural():
    shown = text(report({"parameters": 1}, measurement=Measurement("storage trace", events=1, claims=1)))
    assert "1 event in" in shown
    assert "1 claim of ownership" in shown


def test_golden(golden):
    golden("report-training.txt", text(reports.training()) + "\n")
    golden("report-cpu-ascii.txt", text(reports.cpu(), unicode=False) + "\n")


def test_the_peak_of_each_batch_size_is_told_where_there_are_several():
    def step(number, batch, size):
        return StepAccount(number, 0.0, 1.0, size, 0, {}, {}, batch=batch)

    several = summarise(reports.training(step_accounts=(step(1, 64, 3), step(2, 64, 5 * GIB), step(9, 8, GIB))))
    assert "Peak by batch size: 8: 1.00 GiB (step 9), 64: 5.00 GiB (step 2)" in several.measured
    one = summarise(reports.training(step_accounts=(step(1, 64, 3), step(2, 64, 5), step(3, 0, 7))))
    assert not [fact for fact in one.measured if fact.startswith("Peak by")]


def test_a_verdict_stands_right_below_the_peak_and_is_no_finding_again():
    verdict = Finding("does_not_fit", "Does not fit on a small card.", 1)
    report = reports.training(kind="estimated")
    lines = text(replace(report, findings=(*report.findings, verdict)), width=200).splitlines()
    peak = next(i for i, line in enumerate(lines) if line.startswith("Peak"))
    assert lines[peak + 1] == verdict.text
    assert sum(verdict.text in line for line in lines) == 1


def test_without_an_allocator_there_is_no_cache():
    """On the CPU, judged by a card: what is not there is not said to be 0."""
    card = {"cache": 0, "context": 0, "other_processes": 0, "free": 24 * GIB - 100 * MIB}
    judged = report({"parameters": 100 * MIB}, card=card, card_bytes=24 * GIB, peak_reserved_bytes=None)
    assert summarise(judged).sums.startswith("tensors 100 MiB · Free 23.9 GiB")
    assert "24.0 GiB card" in summarise(judged).context
    assert "judged by Tesla T4, 24.0 GiB" in summarise(replace(judged, card_name="Tesla T4")).context
    reserved = replace(judged, peak_reserved_bytes=100 * MIB)
    assert summarise(reserved).sums.startswith("tensors 100 MiB + cache 0 B = reserved 100 MiB · Free")
