"""``%%vram --batch`` and ``--max-batch`` in a real kernel."""

from __future__ import annotations

import time

import pytest

from ipyvram.comparison import Comparison
from tests import kernels
from tests.kernels import Kernel, Outcome

pytestmark = pytest.mark.kernel

COMPARISON_TYPE = "application/vnd.ipyvram.comparison.v1+json"

SETUP = """\
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
optimizer = torch.optim.Adam(model.parameters())
data = torch.randn(4096, 64)
"""

CELL = """\
batch_size = 32
loader = torch.utils.data.DataLoader(data, batch_size=batch_size)
for epoch in range(50):
    for x in loader:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
    print("epoch", epoch)
"""

#: Everything that the cell could have changed, as one text.
STATE = """__import__('hashlib').sha256(b''.join([
    *(p.detach().numpy().tobytes() for p in model.parameters()), repr(list(optimizer.state)).encode(),
    repr([p.grad for p in model.parameters()]).encode(), torch.get_rng_state().numpy().tobytes(),
    repr(sorted(n for n in get_ipython().user_ns if not n.startswith('_'))).encode()])).hexdigest()""".replace("\n", "")


@pytest.fixture(scope="module", params=list(kernels.PYTHONS))
def process(request, tmp_path_factory):
    kernel = kernels.start(request.param, tmp_path_factory.mktemp("kernel"))
    kernel.run("import torch, pandas\n%load_ext ipyvram", timeout=120)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(process: Kernel) -> Kernel:
    process.fresh().run(SETUP)
    return process


def comparison(outcome: Outcome) -> Comparison:
    found = [c["data"] for c in outcome.contents("display_data") if COMPARISON_TYPE in c["data"]]
    assert len(found) == 1, outcome.messages
    assert set(found[0]) == {"text/plain", "text/html", COMPARISON_TYPE}
    return Comparison.from_dict(found[0][COMPARISON_TYPE])


def progress(outcome: Outcome) -> list[str]:
    texts = [c["data"]["text/plain"] for c in outcome.contents("display_data") if COMPARISON_TYPE not in c["data"]]
    return texts + [c["data"]["text/plain"] for c in outcome.contents("update_display_data")]


def test_sizes_are_compared_and_nothing_has_changed(kernel):
    before = kernel.value(STATE)
    outcome = kernel.run("%%vram sweep --batch batch_size=8,16,32 --limit 64MiB --effective 128\n" + CELL)
    found = comparison(outcome)
    assert outcome.status == "ok"
    assert [row.batch for row in found.rows][:3] == [8, 16, 32]
    assert [row.seen for row in found.rows][:3] == [8, 16, 32]
    assert (found.label, found.name) == ("sweep", "batch_size")
    assert found.largest.status == "verified"
    assert outcome.stdout == outcome.stderr == ""
    assert kernel.value(STATE) == before


def test_progress_is_one_line_that_goes_away(kernel):
    outcome = kernel.run("%%vram --batch batch_size=8,16\n" + CELL)
    shown = progress(outcome)
    assert shown[0] == "trial 1 of 2 · batch_size = 8"
    assert shown[1].startswith("trial 2 of 2 · batch_size = 16 · before: 8 → ")
    assert shown[-1] == ""
    assert len({c["transient"]["display_id"] for c in outcome.contents("update_display_data")}) == 1


def test_the_largest_size_is_found_on_the_line_and_the_cell_form(kernel):
    outcome = kernel.run("%%vram --max-batch batch_size --limit 2MiB --multiple 4\n" + CELL)
    found = comparison(outcome)
    assert found.rule == "largest"
    assert found.largest.beyond == found.largest.batch + 4
    assert found.largest.needed_bytes <= 2 * 2**20
    assert found.trials <= 8


@pytest.mark.parametrize(
    ("line", "cell", "says"),
    [
        ("--batch size=8,16", CELL, "size is used nowhere in this cell"),
        ("--batch batch_size=8,x", CELL, "'x' is not a batch size"),
        ("--max-batch batch_size", CELL, "there is no card to fill"),
        ("--batch batch_size=8,16", CELL.replace("in loader", "in earlier"), "earlier was built in another cell"),
        ("--batch batch_size=8,16", CELL.replace("in loader", "in rows"), "rows is an iterator"),
        ("--batch batch_size=8,16", "batch_size = 3\nawait f()", "awaits at its top level"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_and_changes_nothing(kernel, line, cell, says):
    kernel.run("earlier = torch.utils.data.DataLoader(data, batch_size=10)\nrows = iter(earlier)")
    before = kernel.value(STATE)
    outcome = kernel.run(f"%%vram {line}\n{cell}")
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "UsageError"
    assert says in outcome.stderr + outcome.traceback
    assert kernel.value(STATE) == before


@pytest.mark.parametrize(
    ("line", "last"),
    [
        ("--batch size=2,4", "for x in rows:\n    model(x[:size])"),
        ("--estimate --card T4", "torch.ops.mine.strange(model(data[:4].to('cuda')))"),
    ],
)
def test_a_refusal_keeps_nothing_of_the_notebook(kernel, line, last):
    """IPython keeps the last error: what it came from stood in its context, with the frames that held the model."""
    kernel.run("lib = torch.library.Library('mine', 'DEF')\nlib.define('strange(Tensor x) -> Tensor')")
    kernel.run("import weakref\nkept = weakref.ref(model)\nrows = iter(torch.utils.data.DataLoader(data))")
    refused = kernel.run(f"%%vram {line}\nsize = 4\n{last}")
    assert refused.reply["ename"] == "UsageError"
    kernel.run("import gc\ndel model, optimizer\ngc.collect()")
    assert kernel.value("kept() is None") == "True"


def test_the_cells_own_error_is_shown_with_the_partial_table(kernel):
    before = kernel.value(STATE)
    cell = CELL.replace(
        "        loss.backward()", "        if batch_size > 16:\n            1 / 0\n        loss.backward()"
    )
    outcome = kernel.run("%%vram --batch batch_size=8,16,32\n" + cell)
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "ZeroDivisionError"
    assert "----> 9" in outcome.traceback
    assert outcome.our_frames == []
    assert [row.batch for row in comparison(outcome).rows] == [8, 16]
    assert kernel.value(STATE) == before


def test_ctrl_c_shows_the_partial_table_and_puts_everything_back(kernel):
    before = kernel.value(STATE)
    cell = CELL.replace(
        "        loss.backward()",
        "        import time; time.sleep(3 if batch_size > 16 else 0)\n        loss.backward()",
    )
    client = kernel.client
    request = client.execute("%%vram --batch batch_size=8,16,32\n" + cell)
    shown, deadline = [], time.monotonic() + 90
    while True:
        message = client.get_iopub_msg(timeout=deadline - time.monotonic())
        if message["parent_header"].get("msg_id") != request:
            continue
        shown.append((message["msg_type"], message["content"]))
        text = message["content"].get("data", {}).get("text/plain", "")
        if text.startswith("trial 3 of 3"):
            time.sleep(1)
            kernel.interrupt()
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            break
    outcome = Outcome(client.get_shell_msg(timeout=30)["content"], shown)
    assert outcome.reply["status"] == "error"
    assert outcome.reply["ename"] == "KeyboardInterrupt"
    found = comparison(outcome)
    assert found.ended == "interrupted"
    assert [row.batch for row in found.rows] == [8, 16]
    assert kernel.value(STATE) == before


def test_estimates_take_the_place_of_runs(kernel):
    cell = CELL.replace("batch_size = 32", "batch_size = 32\nmodel.cuda()").replace("model(x)", "model(x.cuda())")
    outcome = kernel.run("%%vram --batch batch_size=8,16,32 --estimate --card T4\n" + cell)
    found = comparison(outcome)
    assert found.kind == "estimated"
    assert {row.status for row in found.rows} == {"predicted"}
    assert all(row.peak_bytes for row in found.rows)


def test_an_ordinary_measurement_works_afterwards(kernel):
    kernel.run("%%vram --batch batch_size=8,16\n" + CELL)
    outcome = kernel.run("%%vram\n" + CELL.replace("range(50)", "range(1)"))
    assert outcome.report["steps"] == 128
