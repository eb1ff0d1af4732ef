"""Reports where other programs show them, emulated in Chromium: see `tests.browser.hosts`."""

from __future__ import annotations

import pytest

from ipyvram.render import comparison_html
from ipyvram.render.html import html
from tests import comparisons, reports
from tests.browser import hosts
from tests.browser.contrast import graphics, paper, texts


def looks_right(where, root) -> None:
    """Everything reads, the picture is interactive, figures stand to the right and nothing is striped."""
    root.evaluate("e => e.querySelectorAll('details').forEach(d => d.open = true)")
    root.locator(".w").first.focus()
    measured = texts(root)
    assert len(measured) > 60
    assert [pair for pair in measured if pair[1] < 4.5] == []
    assert [pair for pair in graphics(root) if pair[1] < 3] == []
    assert root.locator(".tip").is_visible()
    look = "e => { const s = getComputedStyle(e); return [s.textAlign, s.backgroundColor, getComputedStyle(e.parentNode).backgroundColor] }"
    rows = root.locator(".c tbody tr")
    for i in range(2):
        assert rows.nth(i).locator("td").first.evaluate(look) == ["right", "rgba(0, 0, 0, 0)", "rgba(0, 0, 0, 0)"]
        assert rows.nth(i).locator("th").evaluate(look)[0] == "left"


@pytest.mark.parametrize("scheme", ["light", "dark"])  # of the system, which need not be that of the host
@pytest.mark.parametrize("theme", hosts.VSCODE)
def test_in_vs_code(file_page, theme, scheme):
    shown = file_page(hosts.vscode(html(reports.training()), theme), color_scheme=scheme)
    looks_right(shown, shown.locator(".ipyvram"))
    shown = file_page(hosts.vscode(comparison_html.html(comparisons.measured()), theme), color_scheme=scheme)
    assert paper(shown.locator("img")) == ((17, 17, 17) if "light" not in hosts.VSCODE[theme][0] else (255, 255, 255))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("theme", hosts.COLAB)
def test_in_colab(file_page, theme, scheme):
    shown = file_page(hosts.colab(html(reports.training()), theme), color_scheme=scheme)
    frame = shown.frame_locator("iframe")
    looks_right(frame, frame.locator(".ipyvram"))
    shown = file_page(hosts.colab(comparison_html.html(comparisons.measured()), theme), color_scheme=scheme)
    picture = shown.frame_locator("iframe").locator("img")
    assert paper(picture) == ((17, 17, 17) if theme == "dark" else (255, 255, 255))
