"""Cells as people write and run them again, on torch's own CUDA allocator with the stub: truths by plain torch."""

from __future__ import annotations

import sys

import pytest

from ipyvram.devices import keeps_workspaces
from tests.kernels import Kernel
from tests.networks import needs_saved_tensors
from tests.on_card import HEAD


def test_models_that_move_and_what_earlier_cells_left(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
net = nn.Sequential(nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 10))
with ipyvram.measure() as m:
    net.to("cuda")
said("moved", m.report)
result["whole"] = [on_card(net.parameters()), on_card(net.buffers())]
with ipyvram.measure() as m:
    net.half()
said("halved", m.report)
result["half"] = [on_card(net.parameters()), on_card(net.buffers())]
net.float()

for name in ("first", "again"):
    torch.cuda.reset_peak_memory_stats()
    with ipyvram.measure() as m:
        for _ in range(2):
            out = net(torch.randn(256, 512, device="cuda"))
    said(name, m.report)
    result[name]["true"] = torch.cuda.max_memory_allocated()
del out

result["compiler"] = "torch._inductor" in sys.modules
optimizer = torch.optim.SGD(net.parameters(), 0.1)
net(torch.randn(8, 512, device="cuda")).sum().backward()
result["gradients"] = on_card(p.grad for p in net.parameters())
del net
with ipyvram.measure() as m:
    net = None
said("model_gone", m.report)

"""
    )
    moved, halved, again = (found[name] for name in ("moved", "halved", "again"))
    assert [moved["end"]["parameters"], moved["end"]["buffers"]] == found["whole"]
    assert [halved["end"]["parameters"], halved["end"]["buffers"]] == found["half"]
    assert again["bytes"] == again["true"] == sum(again["peak"].values())
    assert again["start"]["activations"] == found["first"]["end"]["activations"] > 1 << 20
    assert found["model_gone"]["start"]["gradients"] == found["gradients"]
    for name in ("moved", "halved", "first", "again", "model_gone"):
        assert found[name]["start"]["other"] == found[name]["peak"]["other"] == found[name]["end"]["other"] == 0
        assert found[name]["notes"] == []
    assert found["compiler"] is False  # a snapshot would have loaded it


@needs_saved_tensors
def test_what_an_error_of_an_earlier_cell_holds(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
net = nn.Sequential(nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 10)).cuda()

def step(x):
    hidden = net(x).exp()
    raise ValueError("not ready")

try:
    step(torch.randn(4096, 512, device="cuda"))
except ValueError as error:
    sys.last_value, sys.last_traceback = error, error.__traceback__
with ipyvram.measure() as m:
    y = torch.empty(1000, device="cuda")
said("after_error", m.report)

"""
    )
    failed = found["after_error"]
    assert failed["start"]["activations"] >= 2 * 4096 * 1024 * 4  # what normalisation and ReLU saved
    assert {"traceback: graph of hidden in step()", "traceback: x in step()"} <= set(failed["names"])
    assert failed["start"]["other"] == failed["peak"]["other"] == failed["end"]["other"] == 0
    assert failed["notes"] == []


def test_a_batch_that_doubles_until_the_card_is_full(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64 * 64, 10)).cuda()
optimizer = torch.optim.Adam(net.parameters())
sizes = []
try:
    with ipyvram.measure() as m:
        size = 16
        while True:
            x = torch.randn(size, 3, 64, 64, device="cuda")
            optimizer.zero_grad()
            net(x).sum().backward()
            optimizer.step()
            sizes.append(size)
            size *= 2
except torch.cuda.OutOfMemoryError:
    pass
said("doubled", m.report)
result["doubled"]["true"] = torch.cuda.max_memory_allocated()
result["sizes"] = sizes
""",
        BYTES=2 << 30,
    )
    doubled = found["doubled"]
    assert len(found["sizes"]) > 4
    assert doubled["steps"] == len(found["sizes"])
    assert doubled["bytes"] == doubled["true"] == sum(doubled["peak"].values())
    assert doubled["peak"]["other"] == 0
    assert sum(doubled["oom"].values()) > 0
    assert doubled["oom"]["other"] == 0


def test_the_tutorial_that_catches_its_out_of_memory(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
with ipyvram.measure() as m:
    x = torch.empty(16, 3, 64, 64).to("cuda")
said("loaded", m.report)
net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()).cuda()
with ipyvram.measure() as m:
    for size in (64, 128, 256, 512, 1024, 2048):
        try:
            net(torch.randn(size, 3, 64, 64, device="cuda")).sum().backward()
        except torch.cuda.OutOfMemoryError:
            break
said("caught", m.report)
result["true"] = torch.cuda.max_memory_allocated()

mixed = torch.rand(64, 3, 64, 64, device="cuda", requires_grad=True)
loss = net(mixed).sum()
loss.backward()
result["leaf"] = [on_card([mixed]), on_card([mixed.grad])]
del mixed
with ipyvram.measure() as m:
    pass
said("after", m.report)
""",
        BYTES=2 << 30,
    )
    assert found["loaded"]["end"]["inputs"] == 16 * 3 * 64 * 64 * 4  # as the next cell says, where a model runs
    caught = found["caught"]
    assert caught["bytes"] == found["true"]
    assert caught["peak"]["activations"] > 0.9 * caught["bytes"]  # all but the batch
    assert caught["peak"]["other"] == caught["peak"]["temporaries"] == 0
    data, gradient = found["leaf"]  # which the graph of `loss` still leads to
    assert found["after"]["start"]["inputs"] >= data
    assert found["after"]["start"]["gradients"] >= gradient
    assert found["after"]["start"]["other"] == 0


def test_one_out_of_memory_after_the_other(run_on_stub):
    """What IPython frees of an error that another one followed waits for the garbage collector: it is named, and given back."""
    found = run_on_stub(
        HEAD
        + """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell()
result["said"] = {}

def cell(name, code):
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    shell.run_cell(f"%%vram {name} --quiet" + chr(10) + code)
    report, oom = ipyvram.last, ipyvram.last.oom
    result["said"][name] = {
        "other": report.peak["other"], "peak": report.peak_bytes, "true": torch.cuda.max_memory_allocated(),
        "ways": {r.kind: [r.text, r.saves_bytes, r.enough] for r in oom.remedies} if oom else {},
        "notes": report.measurement.notes,
    }

shell.run_line_magic("load_ext", "ipyvram")
shell.run_cell("import torch; from torch import nn")
cell("whole", "images = torch.empty(3000, 3, 256, 256); moved = images.to('cuda')")
cell("list", '''data = []
while True:
    data.append(torch.empty(64, 3, 256, 256).to('cuda'))''')
shell.run_cell("data = data[:10]" + chr(10) + "%vram free --traceback")
cell("model", "big = nn.Sequential(*[nn.Linear(8192, 8192, device='meta') for _ in range(8)]); big.to_empty(device='cuda')")
shell.run_cell("del big" + chr(10) + "%vram free --traceback")
shell.run_cell('''
net = nn.Sequential(*[nn.Conv2d(8, 8, 3, padding=1) for _ in range(8)]).cuda()
def run(size):
    x = torch.empty(size, 8, 256, 256, device="cuda")
    for layer in net:
        x = layer(x)
''')
for name, size in (("first", 200), ("second", 100), ("third", 100)):
    cell(name, f"run({size})")
before = torch.cuda.memory_allocated()
shell.run_line_magic("vram", "free --traceback")
result["traceback"] = before - torch.cuda.memory_allocated()
cell("fits", "run(40)")
before = torch.cuda.memory_allocated()
shell.run_cell("del data")
result["data"] = before - torch.cuda.memory_allocated()
""",
        BYTES=2 << 30,
    )
    said = found["said"]
    for cell in said.values():
        assert cell["notes"] == []
        assert cell["peak"] == cell["true"]
        assert cell["other"] <= 0.01 * cell["peak"]
    assert said["whole"]["ways"]["in_parts"][2]
    assert "`data`" in said["list"]["ways"]["in_parts"][0]
    assert said["list"]["ways"]["in_parts"][2]
    assert said["model"]["ways"]["half_weights"][2]
    ways = said["third"]["ways"]  # two errors before it
    assert list(ways)[:2] == ["traceback", "unused"]
    assert ways["traceback"][1] == pytest.approx(found["traceback"], rel=0.1)
    assert ways["traceback"][2]
    assert ways["unused"][0].startswith("del data:")
    assert ways["unused"][1] == found["data"]
    assert said["fits"]["ways"] == {}


def test_optimizers_around_others_and_what_is_as_large_as_a_workspace(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
class Around(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1, momentum=0.9)
    def step(self, closure=None):
        self.base.step()

net = nn.Conv2d(512, 512, 3, padding=1).cuda()  # its weight is as large as a workspace in a block that was not split
around = Around(net.parameters())
x = torch.randn(8, 512, 16, 16, device="cuda")
net(x).mean().backward()
around.step()
deeper = {"than": {"any": {"look": {"goes": {"into": {"this": {"one": torch.empty_like(net.weight)}}}}}}}
result["state"] = on_card([net.weight, net.bias])
with ipyvram.measure() as m:
    for _ in range(6):
        net(x).mean().backward()
        around.step()
        around.zero_grad()
said("around", m.report)
"""
    )
    around = found["around"]
    assert around["start"]["optimizer_state"] == found["state"]
    assert around["start"]["workspaces"] <= 2 * 8519680
    assert around["notes"] == []


def test_a_model_whose_parameters_are_of_a_transform_runs(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
from torch.func import functional_call, grad
net = nn.Linear(64, 1).cuda()
weights = {n: p.detach() for n, p in net.named_parameters()}
x = torch.randn(32, 64, device="cuda")
with ipyvram.measure() as m:
    gradients = grad(lambda w: functional_call(net, w, (x,)).sum())(weights)
said("functional", m.report)
"""
    )
    assert found["functional"]["notes"] == []
    assert found["functional"]["peak"]["other"] == 0


@pytest.mark.kernel
def test_graphs_that_a_cell_lets_go_of_are_its_peak(run_on_stub):
    """Evaluated anew without gradients, the peak is what the first evaluation left; a backward of the cell before is no waste."""
    found = run_on_stub(
        """
import torch, ipyvram
from torch import nn

net = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10)).cuda()
result = {}
for name, cell in {
    "eval": "outputs = [net(torch.randn(512, 1000, device='cuda')) for _ in range(5)]",
    "again": "outputs = []\\nwith torch.no_grad():\\n    net(torch.randn(512, 1000, device='cuda'))",
    "forward": "loss = net(torch.randn(512, 1000, device='cuda')).sum()",
    "backward": "loss.backward()\\nloss = net(torch.randn(8, 1000, device='cuda')).sum()",
}.items():
    with ipyvram.measure() as m:
        exec(cell)
    result[name] = [f.text for f in m.report.findings if f.kind == "let_go_graph"]
"""
    )
    assert "`outputs` of an earlier cell kept" in found.pop("again")[0]
    assert found == {"eval": [], "forward": [], "backward": []}


@pytest.mark.kernel
def test_a_trial_is_no_leftover_where_the_same_tensors_lie_in_larger_blocks(run_on_stub):
    """A block of the large pool may be larger than asked for by up to a mebibyte: no memory that a trial left."""
    found = run_on_stub(
        """
import torch
from ipyvram.sweep.isolation import Baseline

def tensors():
    return [torch.empty(59 << 19, dtype=torch.uint8, device="cuda") for _ in range(3)]

whole = torch.empty(120 << 20, dtype=torch.uint8, device="cuda")
del whole
kept = tensors()
before, baseline = torch.cuda.memory_allocated(), Baseline()
kept.clear()
torch.cuda.empty_cache()
kept += tensors()
more = torch.cuda.memory_allocated() - before
none = baseline.leftover()
left = torch.empty(3 << 20, dtype=torch.uint8, device="cuda")
result = [more, none, baseline.leftover().bytes]
"""
    )
    assert found[0] > 10**6
    assert found[1:] == [None, 3 << 20]


def test_a_cell_in_a_real_kernel(stub_environment, tmp_path):
    kernel = Kernel(sys.executable, tmp_path, stub_environment)
    try:
        kernel.run("import torch\nfrom torch import nn\nnet = nn.Linear(256, 256, device='cuda')")
        kernel.run("optimizer = torch.optim.Adam(net.parameters())\n%load_ext ipyvram")
        body = (
            "for _ in range(3):\n    net(torch.randn(64, 256, device='cuda')).sum().backward()\n    optimizer.step()\n"
        )
        outcome = kernel.run(
            "%%vram on a card\n" + body + "    optimizer.zero_grad()\ntorch.cuda.max_memory_allocated()"
        )
        assert outcome.status == "ok", outcome.messages
        report = outcome.report
        assert (report["device"], report["device_name"], report["label"]) == ("cuda:0", "NVIDIA Stub", "on a card")
        assert report["peak_bytes"] == int(outcome.result or 0)
        assert report["peak"]["parameters"] == 256 * 257 * 4
        assert report["peak"]["optimizer_state"] == 2 * 256 * 257 * 4
        assert report["peak"]["other"] == 0
        assert report["card"]["context"] == 300 << 20
        named = zip(report["tensors_at_peak"]["name"], report["tensors_at_peak"]["category"], strict=True)
        kind = "workspaces" if keeps_workspaces() else "temporaries"  # the latter: of the product that is the peak
        assert {c for t, c in named if t == "cuBLAS workspace"} == {kind}
        assert (report["peak"]["workspaces"] > 0) == keeps_workspaces()
        outcome = kernel.run("%%vram\nother = nn.Linear(8, 8, device='cuda')")
        assert "In[3], line 4" in outcome.report["lines_at_peak"]["key"]  # the step of the cell above
    finally:
        kernel.close()


@pytest.mark.parametrize(
    "workspaces",
    [
        {},
        {"TORCH_CUBLAS_WORKSPACE_CACHE": "1"},
        {"TORCH_CUBLAS_WORKSPACE_CACHE": "1", "TORCH_CUBLASLT_UNIFIED_WORKSPACE": "0"},
    ],
    ids=["as it is", "kept", "kept apart"],
)
def test_without_a_history_a_measured_step_takes_what_the_bare_one_takes(run_on_stub, workspaces):
    """Storages are traced then, also on the engine's thread, and nothing of that keeps a tensor until the next collection."""
    found = run_on_stub(
        f"import os; os.environ.update({workspaces!r})\n"
        + HEAD
        + """
torch.cuda.get_allocator_backend = lambda: "cudaMallocAsync"
net = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 10)).to("cuda")
optimizer = torch.optim.Adam(net.parameters())
def step():
    x, y = torch.randn(256, 512, device="cuda"), torch.zeros(256, dtype=torch.long, device="cuda")
    F.cross_entropy(net(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    return torch.cuda.memory_allocated()
with ipyvram.measure() as m:
    result["measured"] = [step() for _ in range(3)]
said("report", m.report)
result["true"] = torch.cuda.max_memory_allocated()
result["bare"] = [step() for _ in range(3)]
result["one"] = sum(p.nbytes for p in net.parameters())
"""
    )
    report = found["report"]
    assert found["measured"] == found["bare"]
    assert report["bytes"] == found["true"]
    assert report["peak"]["gradients"] == report["peak"]["parameters"] == found["one"]
    assert report["peak"]["other"] < 1 << 16  # rounding
    assert "keeps none" in report["notes"][0]


def test_a_model_that_runs_on_the_cpu_first_takes_on_the_card_what_it_takes_bare(run_on_stub):
    """The trace of the CPU has a dispatch mode, under which torch adds a bias out of place."""
    found = run_on_stub(
        HEAD
        + """
x = torch.randn(16, 48, 64, device="cuda").transpose(1, 2)
def train():
    net = nn.Linear(48, 256)
    net(torch.randn(2, 3, 48))  # to see the shapes
    net.cuda()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        net(x)
    return torch.cuda.max_memory_allocated()
result["bare"] = train()
with ipyvram.measure() as m:
    result["measured"] = train()
said("report", m.report)
result["modes"] = len(torch.utils._python_dispatch._get_current_dispatch_mode_stack())
"""
    )
    assert found["measured"] == found["bare"] == found["report"]["bytes"]
    assert found["report"]["peak"]["other"] == 0
    assert found["modes"] == 0


@pytest.mark.parametrize("downward", [0, 1])
def test_a_replay_explains_every_event_wherever_the_driver_puts_segments(run_on_stub, downward):
    """Of free blocks of one size torch takes the one at the lowest address, or, from 2.12 on, the one made first."""
    found = run_on_stub(
        HEAD
        + """
net = nn.Sequential(*[nn.Sequential(nn.Linear(512, 2048), nn.GELU(), nn.Linear(2048, 512)) for _ in range(12)]).cuda()
optimizer = torch.optim.Adam(net.parameters())
with ipyvram.measure() as m:
    for _ in range(3):
        net(torch.randn(64, 512, device="cuda")).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
result["notes"] = m.report.measurement.notes
result["figures"] = m.report.peak_bytes, m.report.peak_reserved_bytes
result["true"] = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
""",
        DOWNWARD=downward,
    )
    assert found["notes"] == []
    assert found["figures"] == found["true"]
