"""The timeline: no peak is lost, every scale is honest, and the picture holds the figures behind it."""

from __future__ import annotations

import html
import itertools
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.render import scene as scenes
from ipyvram.render.axes import Piece, TimeAxis, byte_ticks, round_bytes, second_ticks, spread
from ipyvram.render.scene import LEFT, MAX_POINTS, PLOT_H, PLOT_W, TOP, columns, make_scene
from ipyvram.render.timeline import legend, sentence, timeline
from ipyvram.report_rows import LABELS, OutOfMemory, Phase, Timeline
from ipyvram.units import GIB, format_bytes
from tests import reports

CASES = {"training": reports.training, "cpu": reports.cpu, "long": reports.long, "retraced": reports.retraced}
SVG = "{http://www.w3.org/2000/svg}"

steps = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1000)), min_size=1, max_size=200).map(sorted)


@given(steps)
def test_every_column_shows_its_highest_and_the_curve_goes_on_from_its_last(rows):
    positions, totals = [x for x, _ in rows], [v for _, v in rows]
    shown = columns(positions, totals)
    at = [x for x, _ in shown]
    assert at == sorted(set(at))
    for x in set(positions):
        highest = max(v for p, v in rows if p == x)
        assert totals[dict(shown)[x]] >= highest
    assert shown[-1][1] == len(rows) - 1
    assert max(totals[row] for _, row in shown) == max(totals)


@given(st.lists(st.floats(1e-5, 1e4), min_size=1, max_size=8))
def test_the_time_axis_is_monotonic_and_fills_its_width(lengths):
    bounds = list(itertools.accumulate(lengths, initial=0.0))
    axis = TimeAxis(spread(bounds, 0, 800))
    assert axis(0) == 0
    assert axis(bounds[-1]) == pytest.approx(800)
    places = [axis(bounds[-1] * i / 50) for i in range(51)]
    assert places == sorted(places)


def test_even_steps_share_one_scale_and_a_slow_first_step_hides_no_other():
    assert len(spread([0, 0.1, 1, 2, 3], 0, 800)) == 1
    pieces = spread([0, 0.5, 10.5, 10.53, 10.56], 0, 800)
    assert len(pieces) == 4
    assert min(p.right - p.left for p in pieces[1:]) > 80


def test_a_line_too_short_to_be_seen_is_not_named():
    """The only sample of an estimate is of its end."""
    whole = reports.training()
    data = whole.timeline_data
    last = replace(data, sampled_time_s=(data.end_s,), sampled={n: v[-1:] for n, v in data.sampled.items()})
    assert "device used" in legend(make_scene(whole))
    assert "device used" not in legend(make_scene(replace(whole, timeline_data=last, duration_s=data.end_s + 1e-6)))


def test_an_idle_end_is_drawn_short():
    """An out-of-memory after 70 ms, and then seconds in which the notebook writes the traceback."""
    whole = reports.training()
    data = whole.timeline_data
    assert not any(panel.idle for panel in make_scene(whole).panels)
    end = 20 * data.end_s
    scene = make_scene(replace(whole, duration_s=end, timeline_data=replace(data, end_s=end)))
    assert scene.panels[0].idle
    assert scene.axis(data.time_s[-1]) == pytest.approx(PLOT_W * (1 - scenes.IDLE_SHARE))
    assert scene.axis(end) == pytest.approx(PLOT_W)
    assert "the end, where nothing was allocated, is drawn short" in legend(scene)
    still = replace(
        data, time_s=data.time_s[:1], categories={}, reserved=(), end_s=end
    )  # a cell that allocates nothing
    assert not any(panel.idle for panel in make_scene(replace(whole, timeline_data=still)).panels)


def test_what_lies_on_the_end_of_a_piece_belongs_to_it():
    axis = TimeAxis([Piece(0, 1, 0, 10), Piece(1, 5, 20, 40)])
    assert (axis(1), axis(5), axis(9), axis(-1)) == (10, 40, 40, 0)


@given(st.integers(1, 2**50))
def test_byte_ticks_are_round_and_within(highest):
    ticks = byte_ticks(highest)
    assert ticks[0] == 0
    assert ticks[-1] <= highest
    assert len(ticks) <= 11
    assert len({b - a for a, b in itertools.pairwise(ticks)}) <= 1


@given(st.floats(0, 1e5), st.floats(1e-4, 1e5))
def test_second_ticks_are_within(start, length):
    ticks = second_ticks(start, start + length)
    assert len(ticks) <= 11
    slack = 1e-6 * length  # of a pixel
    assert all(start - slack <= t <= start + length + slack for t in ticks)


@pytest.mark.parametrize("case", CASES)
def test_it_is_one_well_formed_picture_that_refers_to_nothing(case):
    svg, _ = timeline(CASES[case]())
    root = ET.fromstring(svg)
    assert root.tag == SVG + "svg"
    assert not re.search(r"url\(|<defs|\bid=|href|var\(", svg)


@pytest.mark.parametrize("case", CASES)
def test_the_peak_is_drawn_at_its_height_and_named(case):
    report = CASES[case]()
    scene, (svg, _) = make_scene(report), timeline(report)
    circle = ET.fromstring(svg).find(SVG + "circle")
    assert int(circle.get("cy")) == TOP + scene.y(report.peak_bytes)
    assert int(circle.get("cx")) == LEFT + scene.x(report.peak_time_s)
    assert f"peak {format_bytes(report.peak_bytes)}" in svg
    highest = min(_tops(area) for area in ET.fromstring(svg).iter(SVG + "path") if area.get("class") == "a")
    assert highest == scene.y(report.peak_bytes)


def _tops(area: ET.Element) -> int:
    """The least y that a path reaches."""
    y = lowest = PLOT_H
    for change in re.findall(r"v(-?\d+)", area.get("d")):
        y += int(change)
        lowest = min(lowest, y)
    return lowest


@pytest.mark.parametrize("case", CASES)
def test_areas_end_where_the_trace_ends_and_stay_in_the_plot(case):
    report = CASES[case]()
    scene, (svg, _) = make_scene(report), timeline(report)
    for area in ET.fromstring(svg).iter(SVG + "path"):
        if area.get("class") == "a":
            (start,) = re.findall(r"^M(\d+) ", area.get("d"))
            right = int(start) + sum(map(int, re.findall(r"h(\d+)", area.get("d"))))
            assert right == scene.x(report.timeline_data.end_s) <= PLOT_W


@pytest.mark.parametrize("case", CASES)
def test_the_payload_holds_the_account_to_what_is_shown_of_it(case):
    report = CASES[case]()
    svg, _ = timeline(report)
    payload = json.loads(html.unescape(re.search(r"<metadata>(.*?)</metadata>", svg)[1]))
    count = len(payload["time"])
    assert count <= MAX_POINTS
    columns_ = {label: [v * unit for n, v in zip(runs[::2], runs[1::2], strict=True) for _ in range(n)]
                for label, _, unit, runs in payload["rows"]}  # fmt: skip
    assert all(len(column) == count for column in columns_.values())
    peak = max(range(count), key=lambda i: sum(c[i] for c in columns_.values()))
    for category, size in report.peak.items():
        if size:
            assert columns_[LABELS[category]][peak] == pytest.approx(size, rel=1e-3)


def test_what_would_flatten_the_rest_is_told_and_not_drawn():
    report = reports.training(limit_bytes=100 * 2**30)
    _svg, legend = timeline(report)
    assert "off the scale: limit 100 GiB" in legend
    assert make_scene(report).top_bytes < 2 * report.timeline_data.sampled["device_used"][-1]


def test_a_limit_in_scale_is_drawn():
    report = reports.training(limit_bytes=5 * 2**30)
    _svg, legend = timeline(report)
    assert "limit 5.00 GiB pink" in legend
    assert make_scene(report).limit_bytes == 5 * 2**30


def test_what_an_out_of_memory_ran_into_is_drawn():
    report = reports.cpu()
    limit = report.peak_bytes + report.peak_bytes // 10
    oom = OutOfMemory(report.peak_bytes // 5, report.peak_bytes, report.peak, limit_bytes=limit, budget=True)
    assert make_scene(report).limit_bytes is None
    assert make_scene(replace(report, oom=oom)).limit_bytes == limit


def test_after_the_trace_the_samples_go_on():
    scene = make_scene(reports.long())
    assert [p.traced for p in scene.panels] == [True, False]
    assert all(p.right - p.left > 200 for p in scene.panels)
    sampled = [c for c in scene.curves if c.name == "allocated"]
    assert [c.time_s[0] > 2 for c in sampled] == [True]


def test_a_second_trace_gets_a_panel_of_its_own_and_the_gap_is_not_drawn_as_nothing():
    report = reports.retraced()
    scene = make_scene(report)
    assert [p.traced for p in scene.panels] == [True, False, True, False]
    assert scene.panels[0].left <= scene.x(report.phases[0].start_s) < scene.panels[0].right
    assert scene.panels[2].left <= scene.x(report.phases[9].start_s) < scene.panels[2].right
    assert min(v for c in scene.curves if c.name == "reserved" for v in c.values) > 0


def test_the_process_has_a_scale_of_its_own_where_tensors_are_small():
    report = reports.cpu()
    scene = make_scene(report)
    assert [(c.name, c.own_scale) for c in scene.curves] == [("process_rss", True)]
    assert scene.y(max(scene.curves[0].values), True) > 0


def test_nothing_recorded_gives_no_picture():
    assert timeline(reports.empty()) == ("", "")


def test_a_cell_without_tensors_has_no_picture_of_the_process_alone():
    sampled = {"process_rss": (500 * 2**20,) * 2, "device_used": (None,) * 2}
    report = replace(reports.empty(), timeline_data=Timeline(sampled_time_s=(0.0, 0.1), sampled=sampled))
    assert timeline(report) == ("", "")
    used = Timeline(sampled_time_s=(0.0, 0.1), sampled={**sampled, "device_used": (2**30,) * 2})
    assert "device used" in timeline(replace(report, timeline_data=used))[1]


def test_the_picture_in_words_names_the_peak():
    report = reports.training()
    assert format_bytes(report.peak_bytes) in sentence(report)
    assert report.peak_when in sentence(report)
    assert "Activations" in sentence(report)


def test_thinning_is_by_what_can_be_seen():
    report = reports.training(timeline_data=reports.curves(points=4000)[0])
    assert len(report.timeline_data.time_s) == 12_000
    thinned = make_scene(report).data
    assert len(thinned.time_s) <= MAX_POINTS
    assert max(thinned.allocated) == max(report.timeline_data.allocated)
    assert len(thinned.sampled_time_s) <= scenes.MAX_SAMPLES


@pytest.mark.parametrize(
    ("tick", "told"), [(0, "0"), (GIB, "1 GiB"), (GIB // 2, "512 MiB"), (5 * GIB // 2, "2.5 GiB"), (200, "200 B")]
)
def test_a_tick_is_told_without_needless_digits(tick, told):
    assert round_bytes(tick) == told


def labels(svg: str) -> dict[str, int]:
    """Words around the plot and how far down they stand."""
    return {words: int(y) for y, words in re.findall(r'<text x="\d+" y="(\d+)"[^>]*>([^<]*)</text>', svg)}


def test_lines_are_named_where_they_end_unless_they_are_too_close():
    told = labels(timeline(reports.training())[0])
    assert told["reserved"] - told["device used"] >= 13
    close = reports.training()
    data = close.timeline_data
    sampled = data.sampled | {
        "device_used": tuple(v and close.peak_reserved_bytes + 2**26 for v in data.sampled["device_used"])
    }
    told = labels(timeline(replace(close, timeline_data=replace(data, sampled=sampled)))[0])
    assert "device used" in told
    assert "reserved" not in told
    assert "reserved dashed" in timeline(close)[1]  # told below the picture in any case


def test_a_limit_that_is_drawn_is_named():
    assert "limit 5.00 GiB" in labels(timeline(reports.training(limit_bytes=5 * GIB))[0])
    assert "limit 11.8 GiB" not in labels(timeline(reports.training())[0])


def test_as_an_image_it_has_paper_and_ink_of_its_own_for_old_browsers_too():
    root = timeline(reports.training())[0].split(">")[0]
    plain = re.sub(r"[\w-]+:light-dark[^;\"]*", "", root)
    assert "background:#fff;" in plain
    assert "color:#444;" in plain
    assert "background:light-dark(#fff,#111)" in root


def test_what_was_only_sampled_is_not_written_over_the_step_that_begins_there():
    """In a slow cell the trace ends with a step, and the next begins where its samples do."""
    base = reports.cpu()
    end = base.timeline_data.end_s
    phases = (*base.phases, Phase(end + 0.05, end + 0.1, "forward", 9))
    root = ET.fromstring(timeline(replace(base, phases=phases))[0])
    told = {text.text: (float(text.get("x")), float(text.get("y"))) for text in root.iter(f"{SVG}text") if text.text}
    rows = [y for name, (_, y) in told.items() if name and name.startswith("step ")]
    assert "step 9" in told
    assert told["sampled only"][1] not in rows
