"""``%%vram --estimate`` in real kernels: the report under the cell, the notebook as before."""

import pytest

from tests import kernels

SETUP = """
import torch
from torch import nn
torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)).to(device)
optimizer = torch.optim.Adam(model.parameters())
data = torch.utils.data.TensorDataset(torch.randn(256, 64), torch.randint(0, 10, (256,)))
loader = torch.utils.data.DataLoader(data, 32, shuffle=True)
before = [p.clone() for p in model.parameters()]
"""

CELL = """%%vram tiny net --estimate --card RTX 4090
for epoch in range(100):
    for x, y in loader:
        x, y = x.to(device), y.to(device)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last_loss = loss.item()
"""


@pytest.fixture(scope="module", params=list(kernels.PYTHONS))
def kernel(request, tmp_path_factory):
    kernel = kernels.start(request.param, tmp_path_factory.mktemp("kernel"))
    kernel.run("%load_ext ipyvram\n" + SETUP, timeout=120)
    yield kernel
    kernel.close()


pytestmark = pytest.mark.kernel


def test_the_report_is_under_the_cell_and_marked_predicted(kernel):
    outcome = kernel.run(CELL, timeout=120)
    assert outcome.status == "ok", outcome.traceback
    report = outcome.report
    assert (report["kind"], report["label"], report["steps"]) == ("estimated", "tiny net", 3)
    assert report["device_name"] == "NVIDIA GeForce RTX 4090"
    assert set(report["provenance"].values()) == {"predicted"}
    texts = [c["data"]["text/plain"] for c in outcome.contents("display_data")]
    assert "predicted" in "\n".join(texts)


def test_the_notebook_is_as_before(kernel):
    kernel.run(CELL, timeout=120)
    outcome = kernel.run(
        "same = all(torch.equal(a, b) for a, b in zip(before, model.parameters()))\n"
        "same, next(model.parameters()).device.type, len(optimizer.state), 'loss' in globals(), torch.cuda.is_available()"
    )
    assert outcome.result == "(True, 'cpu', 0, False, False)"


def test_lines_are_those_of_the_cell_as_it_stands(kernel):
    kernel.run("# a comment above\n" + CELL, timeout=120)
    outcome = kernel.run(
        "import ipyvram\n{t.name: (t.line, t.source) for t in ipyvram.last.tensors_at_peak}.get('loss')"
    )
    assert outcome.result == "(6, 'loss = nn.functional.cross_entropy(model(x), y)')"


def test_an_error_of_the_cell_shows_its_own_line(kernel):
    outcome = kernel.run(
        "%%vram --estimate\nx = torch.zeros(2, 3, device='cuda')\n\nraise KeyError('mine')", timeout=120
    )
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "KeyError"
    assert "4 raise KeyError" in outcome.traceback
    assert outcome.our_frames == []
    assert "In[0]" not in outcome.traceback


def test_a_refusal_is_one_line_without_a_traceback(kernel):
    outcome = kernel.run("%%vram --estimate --card RTX 4091\nx = 1", timeout=60)
    assert outcome.status == "error"
    assert "RTX 4090" in outcome.reply["evalue"] or "RTX 4090" in outcome.stderr


def test_a_cell_that_awaits_is_refused_in_one_line(kernel):
    outcome = kernel.run("%%vram --estimate --card T4\nimport asyncio\nawait asyncio.sleep(0)", timeout=60)
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "UsageError"
    assert "awaits at its top level has no estimate" in outcome.reply["evalue"]
