"""An exported page: interactive, complete, readable, and alone."""

from __future__ import annotations

import re

import pytest

from ipyvram.render import comparison_html
from ipyvram.render.html import html, page
from ipyvram.report_rows import LABELS
from ipyvram.units import format_bytes, parse_bytes
from tests import comparisons, reports
from tests.browser.contrast import graphics, texts


def timeline(shown):
    return shown.locator(".w").first


def told(shown) -> str:
    return timeline(shown).get_attribute("aria-valuetext")


def at(shown, part: float) -> tuple[float, float]:
    """A point of the picture, ``part`` of its width from the left."""
    box = timeline(shown).bounding_box()
    return box["x"] + box["width"] * part, box["y"] + box["height"] * 0.6


def test_hover_tells_time_step_phase_every_category_and_the_totals(file_page):
    report = reports.training()
    shown = file_page(page(report))
    shown.mouse.move(*at(shown, 0.6))
    tip = shown.locator(".tip")
    text = tip.inner_text()
    assert tip.is_visible()
    assert re.match(r"1\.\d\d s, step 2, backward", text)
    for label in ("Parameters", "Gradients", "Optimizer state", "Activations", "Batch", "Workspaces"):
        assert label in text
    for total in ("allocated", "reserved", "device used (sampled)"):
        assert total in text
    shown.mouse.move(10, 10)
    assert tip.is_hidden()


def test_the_peak_is_one_key_away_and_keys_reach_every_moment(file_page):
    report = reports.training()
    shown = file_page(page(report))
    timeline(shown).focus()
    shown.keyboard.press("p")
    assert f"allocated {format_bytes(report.peak_bytes)}" in told(shown)
    for category, size in report.peak.items():
        if size:
            assert f"{LABELS[category]} {format_bytes(size)}" in told(shown)
    peak = told(shown)
    shown.keyboard.press("ArrowRight")
    after = told(shown)
    shown.keyboard.press("ArrowLeft")
    assert told(shown) == peak != after
    shown.keyboard.press("Home")
    assert "step 1, forward" in told(shown)
    assert timeline(shown).get_attribute("aria-valuenow") == "0"
    shown.keyboard.press("End")
    assert int(timeline(shown).get_attribute("aria-valuenow")) == int(timeline(shown).get_attribute("aria-valuemax"))


def test_a_screen_reader_finds_a_slider_with_the_picture_in_words(file_page):
    shown = file_page(page(reports.training()))
    slider = shown.get_by_role("slider")
    assert "peak 3.13 GiB" in slider.get_attribute("aria-label")
    assert shown.get_by_role("table").first.get_by_role("rowheader").count() == 7
    assert shown.locator("img").count() == 0


def test_a_screen_reader_hears_what_others_see(file_page):
    """From the tree that the browser hands to screen readers: names, values, states and what is announced."""
    report = reports.training(lifetimes=reports.lifetimes())
    shown = file_page(page(report))

    def tree(role: str) -> list[dict]:
        nodes = shown.context.new_cdp_session(shown).send("Accessibility.getFullAXTree")["nodes"]
        found = [node for node in nodes if node.get("role", {}).get("value") == role and not node["ignored"]]
        keys = ("name", "description", "value")
        return [
            {key: node.get(key, {}).get("value") for key in keys}
            | {p["name"]: p["value"].get("value") for p in node["properties"]}
            for node in found
        ]

    shown.keyboard.press("Tab")  # the buttons of the table, then the picture
    while shown.evaluate("document.activeElement.role") != "slider":
        shown.keyboard.press("Tab")
    (slider,) = tree("slider")
    assert slider["name"].startswith("Memory over 2.1 s; 3 traced steps; peak 3.13 GiB")
    assert "P peak" in slider["description"]
    assert "zoom" in slider["description"]
    assert slider["focused"]
    seen = shown.locator(".tip").inner_text().split("\n")  # where the cursor is: at the peak, to begin with
    assert f"{format_bytes(report.peak_bytes)}" in seen
    assert sorted(told(shown).replace(": ", ", ", 1).split(", ")) == sorted(
        [*seen[0].split(", "), *(f"{label} {size}" for label, size in zip(seen[1::2], seen[2::2], strict=True))]
    )
    (announced,) = tree("status")
    assert announced["live"] == "polite"
    shown.keyboard.press("Enter")
    assert "Live at" in shown.get_by_role("status").inner_text()
    buttons = tree("button")
    assert [b["name"].strip() for b in buttons] == [LABELS[c] for c in report.peak if report.peak[c]]
    assert {b["pressed"] for b in buttons} == {"true"}
    shown.get_by_role("button", name="Activations").press("Enter")
    assert [b["name"].strip() for b in tree("button") if b["pressed"] == "false"] == ["Activations"]


def test_a_click_lists_what_was_live_largest_first(file_page):
    report = reports.training(lifetimes=reports.lifetimes())
    shown = file_page(page(report))
    timeline(shown).focus()
    shown.keyboard.press("p")
    shown.keyboard.press("Enter")
    live, tip = shown.locator(".live"), shown.locator(".tip")
    assert tip.is_hidden()  # it would lie over the list
    rows = [row.split("\n") for row in re.findall(r"(.+\n[\d.]+ [KMGT]iB)", live.inner_text())]
    assert rows[0][0] == "conv1 output · line 4"
    listed = [row for row in rows if not row[0].startswith("other ")]
    assert listed[:2] == [["conv1 output · line 4", "1.95 GiB"], ["fc.weight", "50.0 MiB"]]
    assert "later one" not in live.inner_text()
    sizes = [parse_bytes(size) for _, size in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == pytest.approx(report.peak_bytes, rel=0.01)
    shown.keyboard.press("ArrowLeft")
    assert tip.is_visible()
    shown.keyboard.press("Escape")
    assert live.is_hidden()


def test_a_brush_zooms_and_a_double_click_goes_back(file_page):
    shown = file_page(page(reports.training()))
    plot = shown.locator(".g")
    whole = plot.get_attribute("viewBox")
    before = shown.locator(".a").first.get_attribute("d")
    shown.mouse.move(*at(shown, 0.3))
    shown.mouse.down()
    shown.mouse.move(*at(shown, 0.45))
    shown.mouse.move(*at(shown, 0.5))
    shown.mouse.up()
    left, _, width, _ = map(float, plot.get_attribute("viewBox").split())
    assert 150 < left < 220
    assert 150 < width < 200
    assert shown.locator(".a").first.get_attribute("d") != before
    assert shown.get_by_text("step 1", exact=True).is_hidden()
    shown.mouse.dblclick(*at(shown, 0.5))
    assert plot.get_attribute("viewBox") == whole
    assert shown.get_by_text("step 1", exact=True).is_visible()


def window(shown) -> tuple[float, float]:
    """The left edge of what is shown of the plot, and its width."""
    left, _, width, _ = map(float, shown.locator(".g").get_attribute("viewBox").split())
    return left, width


def test_keys_zoom_around_the_cursor_which_stays_in_view(file_page):
    shown = file_page(page(reports.training()))
    timeline(shown).focus()
    left, whole = window(shown)
    shown.keyboard.press("p")
    peak_x = float(shown.locator(".g > .l").last.get_attribute("d").split()[0][1:])
    for key in "+=+":
        shown.keyboard.press(key)
    near, narrow = window(shown)
    assert narrow == pytest.approx(whole / 8)
    assert near + narrow / 2 == pytest.approx(peak_x, abs=1)
    assert shown.locator(".tip").is_visible()
    for _ in range(8):
        shown.keyboard.press("Shift+ArrowRight")
        assert shown.locator(".tip").is_visible()
    panned, same = window(shown)
    assert same == pytest.approx(narrow)
    assert panned > near
    shown.keyboard.press("End")
    assert sum(window(shown)) == pytest.approx(whole)
    shown.keyboard.press("-")
    assert window(shown)[1] == pytest.approx(whole / 4)
    for _ in range(40):
        shown.keyboard.press("+")
    assert window(shown)[1] == pytest.approx(4)
    shown.keyboard.press("Escape")
    assert window(shown) == (left, whole)
    for _ in range(3):
        shown.keyboard.press("-")
    assert window(shown) == (left, whole)


def test_the_keys_of_the_page_and_of_the_browser_stay_theirs(file_page):
    shown = file_page(page(reports.training()))
    shown.evaluate(
        "() => { window.seen = []; document.addEventListener('keydown', e => seen.push([e.key, e.defaultPrevented])); }"
    )
    timeline(shown).focus()
    for key in ("p", "+", "ArrowLeft", "Enter", "Control+p", "Tab", "j"):
        shown.keyboard.press(key)
    seen = shown.evaluate("seen")
    assert seen == [["Control", False], ["p", False], ["Tab", False], ["j", False]]


def test_the_table_toggles_categories_by_mouse_and_by_key(file_page):
    shown = file_page(page(reports.training()))
    button = shown.get_by_role("button", name="Parameters")

    def height() -> float:
        return min(map(float, re.findall(r"V([\d.]+)", shown.locator(".a").first.get_attribute("d"))))

    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    without = height()
    button.focus()
    shown.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert height() < without


def test_after_the_trace_and_in_a_gap_the_samples_are_told(file_page):
    shown = file_page(page(reports.long()))
    shown.mouse.move(*at(shown, 0.9))
    assert "allocated (sampled)" in told(shown)
    assert "Activations" not in told(shown)
    shown = file_page(page(reports.retraced()))
    shown.mouse.move(*at(shown, 0.48))
    assert "allocated (sampled) 2.00 GiB" in told(shown)
    assert "allocated 0" not in told(shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("case", ["training", "cpu", "long", "retraced", "empty"])
def test_text_and_graphics_have_contrast(file_page, case, scheme):
    shown = file_page(page(getattr(reports, case)()), color_scheme=scheme)
    for summary in shown.locator("summary").all():
        summary.click()
    if shown.locator(".w").count():
        shown.mouse.move(*at(shown, 0.5))
        shown.wait_for_timeout(100)
    root = shown.locator(".ipyvram")
    measured = texts(root)
    assert len(measured) > 3
    assert [pair for pair in measured if pair[1] < 4.5] == []
    assert [pair for pair in graphics(root) if pair[1] < 3] == []


def test_nothing_is_asked_of_anybody_and_nothing_outside_changes(file_page):
    plain = "<p class=r>before</p><table class=c><tr><th>x</table><button>b</button>"
    alone = file_page(f"<body>{plain}")
    look = "[...document.querySelectorAll('body > p, body > table, body > button')].map(e => JSON.stringify(Object.fromEntries([...getComputedStyle(e)].map(k => [k, getComputedStyle(e)[k]]))) + e.outerHTML)"
    names = "Object.keys(window).length"
    expected, count = alone.evaluate(look), alone.evaluate(names)
    beside = file_page(f"<body>{plain}{html(reports.training())}")
    assert beside.locator(".w").count() == 1
    assert beside.evaluate(look) == expected
    assert beside.evaluate(names) == count
    assert beside.refused == []


def test_two_copies_of_a_report_are_each_alive(file_page):
    markup = html(reports.training())
    shown = file_page(f"<body>{markup}<hr>{markup}")
    assert shown.locator(".w").count() == 2
    for i in range(2):
        shown.locator(".w").nth(i).hover()
        assert shown.locator(".tip").nth(i).is_visible()


def test_several_devices_are_each_alive(file_page):
    shown = file_page(page(reports.training(others=(reports.cpu(),))))
    assert shown.locator(".w").count() == 2


def test_many_devices_are_alive_when_they_are_opened(file_page):
    others = tuple(reports.training(device=f"cuda:{i}") for i in range(1, 5))
    shown = file_page(page(reports.training(others=others)))
    assert shown.locator(".w:visible").count() == 1
    shown.locator("summary", has_text="cuda:3").click()
    assert shown.locator(".w:visible").count() == 2
    shown.locator(".w").nth(3).hover()
    assert shown.locator(".tip").nth(3).is_visible()


def test_a_hostile_report_is_only_text(file_page):
    bad = "<img src=x onerror=alert(1)></script><script>document.title='owned'</script>\"'"
    report = reports.training(label=bad, note=bad, device_name=bad, lifetimes=reports.lifetimes(bad))
    dialogs = []
    shown = file_page(page(report))
    shown.on("dialog", lambda d: dialogs.append(d))
    timeline(shown).focus()
    shown.keyboard.press("p")
    shown.keyboard.press("Enter")
    assert bad[:40] in shown.locator(".live").inner_text()
    assert shown.title() == bad
    assert shown.locator(".ipyvram img").count() == 0
    assert dialogs == []


def test_it_is_readable_on_a_narrow_page(file_page):
    shown = file_page(page(reports.training()))
    shown.set_viewport_size({"width": 480, "height": 800})
    box = timeline(shown).bounding_box()
    assert box["width"] <= 480
    shown.mouse.move(*at(shown, 0.5))
    assert told(shown)


@pytest.mark.parametrize(
    ("make", "spared"),
    [
        (lambda: page(reports.training()), {"start", "end"}),
        (lambda: page(reports.cpu()), {"start", "end of trace"}),
        (lambda: comparison_html.html(comparisons.measured()), {"by category"}),
    ],
    ids=["report", "report of a CPU", "sizes"],
)
def test_a_narrow_page_keeps_the_columns_that_answer(file_page, make, spared):
    """Beside another window the table is as wide as its place: nobody has to scroll to the largest holder or the status."""
    shown = file_page(make())
    table = shown.locator(".c table").first
    hidden = {}
    for width in (540, 1000):
        shown.set_viewport_size({"width": width, "height": 800})
        assert table.evaluate("e => e.parentElement.scrollWidth - e.parentElement.clientWidth") == 0
        hidden[width] = {head.text_content() for head in table.locator("thead th").all() if not head.is_visible()}
    assert hidden == {540: spared, 1000: set()}
