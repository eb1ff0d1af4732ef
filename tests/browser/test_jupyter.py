"""Reports and the live meter where they live: JupyterLab and Notebook 7."""

from __future__ import annotations

import subprocess
import sys

import nbformat
import pytest

from ipyvram.render import comparison
from ipyvram.render.bundle import MIME_TYPE, bundle
from ipyvram.units import format_bytes
from tests import comparisons, reports
from tests.browser.contrast import graphics, inside, paper, texts
from tests.browser.jupyter import LOAD, ROOT, TRAIN, notebook, opened

METER = "document.querySelector('.jp-Notebook')?.textContent.match(/slow one · [^▁▂▃▄▅▆▇█]*/)?.[0] ?? ''"
SLOW = "%%vram slow one\nimport time, torch\nfor i in range(8):\n    time.sleep(0.5)\n    print('line', i)"


def reload(lab) -> None:
    lab.page.reload()
    lab.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)


def watch_meter(page) -> list[str]:
    """What the meter said, one text for each change, until it is gone."""
    seen: list[str] = []
    page.wait_for_function(f"{METER} !== ''", timeout=90_000)
    while text := page.evaluate(METER):
        if text not in seen:
            seen.append(text)
        page.wait_for_timeout(100)
    return seen


def test_in_lab_the_meter_moves_and_the_report_takes_its_place(browser, server):
    server.write("meter.ipynb", notebook(LOAD, SLOW), trusted=True)
    with opened(browser, server, "meter.ipynb") as lab:
        lab.run_all()
        seen = watch_meter(lab.page)
        assert len(seen) >= 3
        assert "process" in seen[0]
        lab.wait_until_run()
        outputs = lab.page.locator(".jp-Cell").nth(1).locator(".jp-OutputArea-child")
        assert "line 7" in outputs.first.inner_text() + outputs.nth(1).inner_text()
        assert "Peak" in outputs.last.inner_text()
        assert lab.page.locator(".jp-Cell").nth(1).locator(".ipyvram").count() == 1
        empty = [box for box in outputs.all() if not box.inner_text().strip()]
        assert sum((box.bounding_box() or {"height": 0})["height"] for box in empty) < 8


def test_in_lab_the_quickstart_runs_and_its_reports_are_alive(browser, server):
    node = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    node.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    server.write("quickstart.ipynb", node, trusted=True)
    with opened(browser, server, "quickstart.ipynb") as lab:
        lab.run_all()
        lab.wait_until_run()
        lab.page.wait_for_timeout(1000)
        assert lab.page.locator(".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
        first = lab.page.locator(".ipyvram").first
        first.scroll_into_view_if_needed()
        hover_zoom_and_keys(lab.page, first)


def hover_zoom_and_keys(page, report) -> None:
    timeline = report.locator(".w").first
    timeline.scroll_into_view_if_needed()
    box = timeline.bounding_box()
    middle = box["y"] + box["height"] * 0.6
    page.mouse.move(box["x"] + box["width"] * 0.4, middle)
    assert report.locator(".tip").first.is_visible()
    assert "allocated" in timeline.get_attribute("aria-valuetext")
    whole = report.locator(".g").first.get_attribute("viewBox")
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, middle)
    page.mouse.move(box["x"] + box["width"] * 0.55, middle)
    page.mouse.up()
    assert report.locator(".g").first.get_attribute("viewBox") != whole
    timeline.focus()
    page.keyboard.press("p")
    assert report.locator(".g").first.get_attribute("viewBox") == whole
    peak = int(timeline.get_attribute("aria-valuenow"))
    page.keyboard.press("ArrowLeft")
    assert int(timeline.get_attribute("aria-valuenow")) == peak - 1
    page.keyboard.press("Enter")
    assert "Live at" in report.locator(".live").first.inner_text()
    button = report.get_by_role("button", name="Parameters").first
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"


@pytest.fixture(scope="module")
def lab(browser, server):
    """A notebook with one report that was run here, open for several tests."""
    server.write("one.ipynb", notebook(LOAD, TRAIN), trusted=True)
    with opened(browser, server, "one.ipynb") as found:
        found.run_all()
        found.wait_until_run()
        found.page.wait_for_selector(".ipyvram .w")
        yield found


def test_hover_zoom_and_keys(lab):
    hover_zoom_and_keys(lab.page, lab.page.locator(".ipyvram").first)


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_contrast_in_both_themes(lab, theme):
    lab.theme(theme)
    root = lab.page.locator(".ipyvram").first
    root.evaluate("e => e.querySelectorAll('details').forEach(d => d.open = true)")
    measured = texts(root)
    assert len(measured) > 60
    assert [pair for pair in measured if pair[1] < 4.5] == []
    assert [pair for pair in graphics(root) if pair[1] < 3] == []


def test_a_new_view_for_output_is_alive_too(lab):
    lab.theme("Light")
    lab.page.locator(".jp-Cell").nth(1).locator(".jp-InputArea-editor").click()
    lab.command("notebook:create-output-view")
    lab.page.wait_for_function("document.querySelectorAll('.ipyvram .w').length === 2")
    assert lab.page.locator(".ipyvram").count() == 2
    copy = lab.page.locator(".jp-LinkedOutputView .ipyvram")
    copy.locator(".w").focus()
    lab.page.keyboard.press("p")
    assert "allocated" in copy.locator(".w").get_attribute("aria-valuetext")


def test_saved_and_reopened_without_a_kernel_it_is_alive(browser, server, lab):
    lab.command("docmanager:save")
    lab.page.wait_for_timeout(1500)
    saved = server.read("one.ipynb")
    kept = [o.data for c in saved.cells for o in c.get("outputs", []) if o.data]
    assert sum(MIME_TYPE in data for data in kept) == 1
    with opened(browser, server, "one.ipynb", kernel=False) as again:
        again.page.wait_for_selector(".ipyvram .w")
        hover_zoom_and_keys(again.page, again.page.locator(".ipyvram").first)


def test_reopened_untrusted_the_sanitized_layer_tells_everything(browser, server):
    report = reports.training()
    server.write("untrusted.ipynb", notebook(LOAD, outputs=[bundle(report)]), trusted=False)
    with opened(browser, server, "untrusted.ipynb", kernel=False) as lab:
        root = lab.page.locator(".ipyvram")
        root.wait_for()
        assert lab.page.locator(".ipyvram .w, .ipyvram script, .ipyvram style, .ipyvram svg").count() == 0
        picture = root.locator("img")
        assert format_bytes(report.peak_bytes) in picture.get_attribute("alt")
        assert picture.evaluate("e => e.complete && e.naturalWidth") == 880
        told = root.inner_text()
        for fact in (
            "bs64",
            "Peak 3.13 GiB",
            "step 3, end of forward",
            "Optimizer state",
            "cuBLAS",
            *report.holders.values(),
        ):
            assert fact in told
        bar = root.locator("span[title^=Activations]").first.bounding_box()
        assert bar["height"] == 18
        assert bar["width"] > 100
        for theme in ("Light", "Dark"):
            lab.theme(theme)
            assert [pair for pair in texts(root) if pair[1] < 4.5] == []


def test_pictures_of_an_untrusted_notebook_read_in_both_themes(browser, server):
    """They have paper of their own, so that nothing of the page shines through; it is that of JupyterLab's theme."""
    outputs = [bundle(reports.training()), comparison.bundle(comparisons.measured())]
    server.write("pictures.ipynb", notebook(LOAD, outputs=outputs), trusted=False)
    with opened(browser, server, "pictures.ipynb", kernel=False) as lab:
        lab.page.add_style_tag(content="dialog{display:none!important}")  # it asks for a kernel, again and again
        pictures = lab.page.locator(".ipyvram img")
        pictures.nth(1).wait_for()
        for i in range(2):
            for scheme, theme in (("light", "Light"), ("dark", "Dark")):
                told, drawn, colour = inside(browser, pictures.nth(i), scheme)
                assert len(told) > 10
                assert [pair for pair in told if pair[1] < 4.5] == []
                assert [pair for pair in drawn if pair[1] < 3] == []
                lab.theme(theme)
                for of_browser in ("light", "dark"):
                    lab.page.emulate_media(color_scheme=of_browser)
                    assert paper(pictures.nth(i)) == colour


def test_pictures_of_a_trusted_notebook_follow_its_theme(browser, server):
    server.write("follow.ipynb", notebook(LOAD, outputs=[comparison.bundle(comparisons.measured())]), trusted=True)
    with opened(browser, server, "follow.ipynb", kernel=False) as lab:
        picture = lab.page.locator(".ipyvram img")
        picture.wait_for()
        lab.page.add_style_tag(content="dialog{display:none!important}")
        for scheme in ("light", "dark"):
            lab.page.emulate_media(color_scheme=scheme)
            for theme, colour in (("Light", (255, 255, 255)), ("Dark", (17, 17, 17))):
                lab.theme(theme)
                assert paper(picture) == colour


def test_sixty_reports_in_one_notebook(browser, server):
    """Each is small and waits for nobody: no listener on the page, no timer, no layout before it is looked at."""
    bundles = [bundle(reports.training(label=f"run {i}")) for i in range(60)]
    server.write("sixty.ipynb", notebook(LOAD, outputs=bundles), trusted=True)
    with opened(browser, server, "sixty.ipynb", kernel=False) as lab:
        lab.page.wait_for_selector(".ipyvram .w")
        frames = lab.page.evaluate(
            """async () => {
            const outer = document.querySelector('.jp-WindowedPanel-outer') ?? document.querySelector('.jp-Notebook');
            const last = () => [...document.querySelectorAll('.ipyvram strong')].find(e => e.textContent === 'run 59');
            const gaps = []; let before = performance.now();
            for (let k = 0; k < 3000 && !(last()?.getBoundingClientRect().top < innerHeight); k++) {
              outer.scrollTop += 200;
              await new Promise(requestAnimationFrame);
              gaps.push(performance.now() - before); before = performance.now();
            }
            return last() ? gaps.sort((a, b) => a - b) : []; }"""
        )
        assert frames
        print(f"{len(frames)} frames, median {frames[len(frames) // 2]:.0f} ms, worst {frames[-1]:.0f} ms")
        nodes = lab.page.locator(".ipyvram").last.evaluate("e => e.querySelectorAll('*').length")
        assert nodes < 900
        assert lab.page.locator(".ipyvram:not(:has(.w))").count() == 0


def test_notebook_7(browser, server):
    server.write("seven.ipynb", notebook(LOAD, SLOW.replace("range(8)", "range(5)"), TRAIN), trusted=True)
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(f"{error} {error.stack}"))
    page.goto(f"{server.url}/notebooks/seven.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=90_000)
    idle = "document.querySelector('.jp-Notebook-ExecutionIndicator, .jp-NotebookKernelStatus')"
    page.wait_for_function(f"{idle} !== null")
    page.wait_for_timeout(3000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    assert len(watch_meter(page)) >= 2
    page.wait_for_selector(".ipyvram .w", timeout=90_000)
    assert page.locator(".ipyvram").count() == 2  # the first, without tensors, has no picture
    hover_zoom_and_keys(page, page.locator(".ipyvram").last)
    assert not [error for error in errors if "ipyvram" in error]  # it has some of its own
    page.close()


def test_nbconvert_as_a_file(tmp_path, file_page):
    node = notebook(LOAD, outputs=[bundle(reports.training()), bundle(reports.cpu())])
    source = tmp_path / "converted.ipynb"
    source.write_text(nbformat.writes(node), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "nbconvert", "--to", "html", str(source)], check=True, capture_output=True)
    shown = file_page(source.with_suffix(".html").read_text(encoding="utf-8"))
    shown.wait_for_selector(".ipyvram .w")
    assert shown.locator(".ipyvram .w").count() == 2
    hover_zoom_and_keys(shown, shown.locator(".ipyvram").first)
    root = shown.locator(".ipyvram").first
    assert [pair for pair in texts(root) if pair[1] < 4.5] == []
    assert not any("ipyvram" in url for url in shown.refused)
