"""The live meter in JupyterLab, frame by frame as painted: through clears, plots and progress bars, in both themes."""

from __future__ import annotations

import itertools

import pytest

from tests.browser.contrast import texts
from tests.browser.jupyter import LOAD, notebook, opened

CLEAR = "import time\nfrom IPython.display import clear_output\n"

CELLS = {
    "plots": "%%vram plots\nimport matplotlib.pyplot as plt\n"
    + CLEAR
    + "for i in range(12):\n    clear_output(wait=True)\n"
    "    plt.figure(figsize=(3, 1))\n    plt.plot([0, i])\n    plt.show()\n    print('frame', i)\n    time.sleep(0.25)",
    "at once": "%%vram at once\n"
    + CLEAR
    + "for i in range(7):\n    clear_output()\n    print('frame', i)\n    time.sleep(0.4)",
    "at the end": "%%vram at the end\n" + CLEAR + "for i in range(7):\n    print('frame', i)\n    time.sleep(0.4)\n"
    "    clear_output(wait=True)",
    "text bar": "%%vram text bar\nimport time\nfrom tqdm import tqdm\nfor i in tqdm(range(7)):\n    time.sleep(0.35)",
    "widget bar": "%%vram widget bar\nimport time\nfrom tqdm.notebook import tqdm\nfor i in tqdm(range(7)):\n    time.sleep(0.35)",
    "captured": "%%vram captured\nimport time, ipywidgets\nfrom IPython.display import clear_output\n"
    "out = ipywidgets.Output()\ndisplay(out)\nfor i in range(7):\n    with out:\n        clear_output(wait=True)\n"
    "        print('frame', i)\n    time.sleep(0.35)",
}

WATCH = """() => { window.painted = {};
const look = () => {
  for (const cell of document.querySelectorAll('.jp-CodeCell')) {
    const name = cell.querySelector('.cm-line')?.textContent.match(/%%vram (.*)/)?.[1], output = cell.querySelector('.jp-Cell-outputArea');
    if (!name || !output) continue;
    (window.painted[name] ??= []).push([
      [...output.querySelectorAll('strong')].filter(e => e.textContent === name && !e.closest('.ipyvram')).length,
      output.querySelectorAll('.ipyvram').length,
      output.textContent.match(/frame \\d+/g)?.join() ?? '',
      output.querySelectorAll('img[src^="data:image/png"]').length]);
  }
  requestAnimationFrame(look); };
look(); }"""


@pytest.fixture(scope="module")
def run(browser, server):
    """Every cell run once: name → what was painted, name → what was saved."""
    pytest.importorskip("ipywidgets")
    load = "%matplotlib inline\nimport matplotlib.pyplot, tqdm.notebook\n" + LOAD
    server.write("clears.ipynb", notebook(load, *CELLS.values()), trusted=True)
    with opened(browser, server, "clears.ipynb") as lab:
        lab.page.evaluate(WATCH)
        lab.run_all()
        lab.wait_until_run()
        lab.page.wait_for_timeout(800)
        painted = lab.page.evaluate("window.painted")
        lab.command("docmanager:save")
        lab.page.wait_for_timeout(1500)
        saved = dict(zip(CELLS, server.read("clears.ipynb").cells[1:], strict=True))
        yield painted, saved


def while_shown(frames: list[list]) -> list[list]:
    """From the first frame with a meter to the last before the report."""
    first = next(i for i, frame in enumerate(frames) if frame[0])
    last = max(i for i, frame in enumerate(frames) if frame[0])
    return frames[first : last + 1]


@pytest.mark.parametrize("name", CELLS)
def test_there_is_never_more_than_one_meter_and_in_the_end_there_is_only_the_report(run, name):
    painted, saved = run
    assert {frame[0] for frame in painted[name]} == {0, 1}
    assert painted[name][-1][:2] == [0, 1]
    assert not any(meter and report for meter, report, *_ in painted[name])
    kinds = [list(output.get("data", {})) for output in saved[name].outputs]
    assert sum("application/vnd.ipyvram.report.v1+json" in kind for kind in kinds) == 1
    assert all(output.get("data", {"any": 1}) for output in saved[name].outputs)  # of {} nbconvert would warn


@pytest.mark.parametrize("name", ["at the end", "text bar", "widget bar", "captured"])
def test_it_does_not_flicker(run, name):
    frames = while_shown(run[0][name])
    assert len(frames) > 10
    assert [frame for frame in frames if not frame[0]] == []


def test_a_loop_of_plots_does_not_flicker(run):
    """There is a plot in every painted frame, as without the meter; the meter may follow each a little late, and never goes between."""
    frames = while_shown(run[0]["plots"])
    assert {frame[3] for frame in frames} == {1}
    gone = [before for before, after in itertools.pairwise(frames) if before[0] and not after[0]]
    assert len(gone) <= 12 < len(frames)
    assert sum(not frame[0] for frame in frames) < len(frames) / 4
    seen = list(dict.fromkeys(frame[2] for frame in frames if frame[2]))
    assert seen == sorted(seen, key=lambda text: int(text.split()[1]))
    assert len(seen) >= 5


def test_after_a_clear_at_once_it_is_back_before_the_next_frame(run):
    frames = while_shown(run[0]["at once"])
    assert [frame for frame in frames if frame[2] and not frame[0]] == []


def test_the_last_frame_stays(run):
    for name, last in (("plots", "frame 11"), ("at once", "frame 6"), ("at the end", "frame 6")):
        assert run[0][name][-1][2] == last
        assert [output.text for output in run[1][name].outputs if output.output_type == "stream"] == [last + "\n"]


def test_the_text_bar_is_one_line_and_whole(run):
    streams = [output.text for output in run[1]["text bar"].outputs if output.output_type == "stream"]
    assert len(streams) == 1
    assert "7/7" in streams[0]


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_contrast_while_it_runs(browser, server, theme):
    cell = "%%vram a growing list --card 2GiB\nimport time\nkept = []\nmodel = torch.nn.Linear(2000, 2000)\n"
    cell += "optimizer = torch.optim.Adam(model.parameters())\nfor i in range(30):\n    model(torch.randn(8, 2000)).sum().backward()\n"
    cell += "    optimizer.step()\n    kept.append(torch.ones(2**22))\n    time.sleep(0.4)"
    server.write(f"growing-{theme}.ipynb", notebook(LOAD, cell), trusted=True)
    with opened(browser, server, f"growing-{theme}.ipynb") as lab:
        lab.theme(theme)
        lab.run_all()
        ready = r"/to the limit · step \d+.*Optimizer state/.test(document.querySelector('.jp-Notebook').textContent)"
        lab.page.wait_for_function(ready, timeout=90_000)
        root = lab.page.locator(".jp-OutputArea-output:has(strong)").first
        told = root.inner_text()
        for fact in (
            "a growing list",
            "cpu process",
            "of 2.00 GiB",
            "peak",
            "step",
            "to the limit",
            "Parameters 15",
            "Limit 1.60 GiB",
        ):
            assert fact in told
        assert [pair for pair in texts(root) if pair[1] < 4.5] == []
