"""``%vram``, ``who``, ``free``, ``auto``, ``note`` and ``compare`` in real kernels."""

from __future__ import annotations

import pytest

from tests import kernels
from tests.kernels import Kernel

pytestmark = pytest.mark.kernel

TRAIN = """\
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 8))
optimizer = torch.optim.Adam(model.parameters())
def train(batch):
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(batch, 64)).square().mean().backward()
        optimizer.step()
"""
BROKEN = "def f():\n    big = torch.zeros(1_000_000)\n    raise KeyError('x')\nf()"


@pytest.fixture(scope="module", params=list(kernels.PYTHONS))
def process(request, tmp_path_factory):
    kernel = kernels.start(request.param, tmp_path_factory.mktemp("kernel"))
    kernel.run("import torch, pandas\n%load_ext ipyvram", timeout=120)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(process: Kernel) -> Kernel:
    process.run("__import__('ipyvram').journal.clear()")
    process.run("%vram auto off")
    kernel = process.fresh()
    kernel.run(TRAIN)
    return kernel


def shown(outcome) -> str:
    (content,) = outcome.contents("display_data")
    return content["data"]["text/plain"]


def test_vram_alone_and_who(kernel):
    kernel.run("train(16)")
    now, who = kernel.run("%vram"), kernel.run("%vram who")
    assert "cpu now: " in shown(now)
    assert "Optimizer state" in shown(now)
    assert {"model", "optimizer"} <= set(shown(who).split())
    assert now.status == who.status == "ok"


def test_an_error_and_out_are_found_and_freed(kernel):
    assert kernel.run(BROKEN).status == "error"
    number = kernel.run("torch.zeros(2_000_000)").reply["execution_count"]
    who = shown(kernel.run("%vram who"))
    assert "3.81 MiB" in who
    assert "traceback of KeyError" in who
    assert f"Out[{number}], _{number}" in who
    freed = kernel.run("%vram free --traceback --out").stdout
    assert "the frames of the last error, with reference cycles: freed 3.81 MiB" in freed
    assert "Out and _: freed 7.63 MiB" in freed
    again = shown(kernel.run("%vram who"))
    assert "traceback" not in again
    assert "Out[" not in again
    assert kernel.run("1 + 1").result == "2"  # and the machinery of both still works
    assert kernel.run(BROKEN).status == "error"
    assert "KeyError" in kernel.run("%tb").stdout + kernel.run("%tb").stderr + str(kernel.run("%tb").messages)


def test_what_an_out_of_memory_pins_is_what_free_gives_back(kernel):
    """Also through torch's closures and the cycles that IPython's traceback formatter leaves."""
    outcome = kernel.run("%%vram --budget 2MiB\ntrain(2048)")
    assert outcome.reply["ename"] == "OutOfMemoryError"
    assert len(outcome.our_frames) <= 1  # the budget's own, where a card's would be in C++
    pinned = outcome.report["oom"]["pinned_bytes"]
    assert pinned > 500_000
    total = "__import__('ipyvram.probes.residents').probes.residents.total_bytes('cpu')"
    before = int(kernel.value(total))
    freed = kernel.run("%vram free --traceback")
    assert freed.status == "ok"
    assert "freed 0 B" not in freed.stdout
    assert before - int(kernel.value(total)) >= pinned
    assert "traceback" not in shown(kernel.run("%vram who"))


@pytest.mark.parametrize("line", ["free", "free --everything", "auto maybe", "compare a b", "note", "who cares"])
def test_mistakes_are_usage_errors(kernel, line):
    outcome = kernel.run(f"%vram {line}")
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "UsageError"


def test_auto_measures_every_cell_until_off(kernel):
    assert "every cell" in kernel.run("%vram auto on").stdout
    outcome = kernel.run("train(16)\n40 + 2")
    assert outcome.result == "42"
    assert outcome.report["steps"] == 3
    assert "· peak" in shown(outcome)
    assert len(shown(outcome).splitlines()) == 1
    assert outcome.report["lines_at_peak"]["n"] > 0
    failed = kernel.run("keep = torch.zeros(1_000_000)\n1 / 0")
    assert failed.status == "error"
    assert "+3.81 MiB kept" in shown(failed)
    assert kernel.run("# only a comment").contents("display_data") == []
    assert kernel.run("%vram history").contents("display_data") == []
    assert len(kernel.run("%%vram named\nx = 1").reports) == 1
    kernel.run("%vram auto off")
    assert kernel.run("x = 1").contents("display_data") == []
    assert kernel.value("len(__import__('ipyvram').history())") == "3"


def test_auto_names_lines_of_the_cell(kernel):
    kernel.run("%vram auto on")
    outcome = kernel.run("a = 1\nkeep = torch.zeros(1_000_000)")
    kernel.run("%vram auto off")
    lines = outcome.report["lines_at_peak"]
    assert lines["key"][0] == "line 2"
    assert lines["source"][0] == "keep = torch.zeros(1_000_000)"


def test_auto_keeps_small_cells_to_itself(kernel):
    kernel.run("%vram auto on --min 2MiB")
    assert kernel.run("small = torch.zeros(1000)").contents("display_data") == []
    assert "kept" in shown(kernel.run("large = torch.zeros(1_000_000)"))
    kernel.run("%vram auto off")
    assert kernel.value("list(__import__('ipyvram').history().label.isna())") == "[True, True]"


def test_a_syntax_error_under_auto_is_the_users(kernel):
    kernel.run("%vram auto on")
    outcome = kernel.run("x = = 1")
    assert outcome.reply["ename"] == "SyntaxError"
    assert kernel.run("x = 1").status == "ok"
    kernel.run("%vram auto off")


def test_history_ranks(kernel):
    for label, batch in (("small", 4), ("large", 512), ("middle", 64)):
        kernel.run(f"%%vram {label}\ntrain({batch})")
    assert kernel.run("%vram history").result.split().index("large") < kernel.run("%vram history").result.split().index(
        "middle"
    )
    assert kernel.value("list(__import__('ipyvram').history().label)") == "['small', 'large', 'middle']"
    columns = kernel.value("list(get_ipython().run_line_magic('vram', 'history'))[:3]")
    assert columns == "['label', 'peak', 'peak_when']"  # what a narrow terminal shows


def test_compare_runs_and_steps(kernel):
    kernel.run("%%vram bs16\ntrain(16)")
    kernel.run("%%vram bs512\ntrain(512)")
    told = shown(kernel.run("%vram compare bs16 bs512"))
    assert "Peak against bs16" in told
    assert told.splitlines()[3].split()[1] in ("Activations", "Temporaries")
    assert "bs512" in shown(kernel.run("%vram compare 1 2"))
    assert "step 2" in shown(kernel.run("%vram compare bs512 --steps 1 2"))


def test_a_note_is_kept_in_the_notebook_too(kernel):
    kernel.run("%%vram bs16\ntrain(16)")
    outcome = kernel.run("%vram note less than I thought")
    assert outcome.report["note"] == "less than I thought"
    assert outcome.report["label"] == "bs16"
    assert kernel.value("__import__('ipyvram').last.note") == "'less than I thought'"
