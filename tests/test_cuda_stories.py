"""Programs of research on torch's own CUDA allocator with the stub, cell after cell: what each byte is called."""

from __future__ import annotations

from tests.networks import needs_saved_tensors
from tests.on_card import HEAD


@needs_saved_tensors
def test_what_transforms_leave_is_read(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
from torch.func import functional_call, jvp
net = nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 10)).cuda()
x = torch.randn(64, 512, device="cuda")
value, tangent = jvp(net, (x,), (x,))  # the tangent of a bias is a zero that has no memory
fast = {name: p * 2 for name, p in net.named_parameters()}
with warnings.catch_warnings(record=True) as caught, ipyvram.measure() as m:
    warnings.simplefilter("always")
    functional_call(net, fast, (x,)).sum().backward()
said("after", m.report)
result["warnings"] = [str(w.message) for w in caught]
"""
    )
    after = found["after"]
    assert after["notes"] == []
    assert found["warnings"] == []
    assert after["start"]["activations"] > 0
    assert after["start"]["other"] == after["peak"]["other"] == 0


def test_a_model_that_only_a_loss_or_an_error_keeps_is_a_model(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
def built():
    net = nn.Sequential(nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 10)).cuda()
    return net, torch.optim.Adam(net.parameters())

net, optimizer = built()
loss = net(torch.randn(64, 512, device="cuda")).sum()
loss.backward()
result["whole"] = [on_card(net.parameters()), on_card(net.buffers())]
del net, optimizer
with ipyvram.measure() as m:
    torch.ones(8, device="cuda")
said("loss", m.report)
del loss

def train():
    net, optimizer = built()
    for step in range(2):
        net(torch.randn(64, 512, device="cuda")).sum().backward()
        optimizer.step()
    raise ValueError("not ready")

def prepare():
    net = built()[0]
    raise ValueError("not ready")

for name, broken in (("train", train), ("prepare", prepare)):
    try:
        with ipyvram.measure() as m:
            broken()
    except ValueError as error:
        sys.last_value, sys.last_traceback = error, error.__traceback__
    said(name, m.report)
    with ipyvram.measure() as m:
        torch.ones(8, device="cuda")
    said("after " + name, m.report)
    del sys.last_value, sys.last_traceback
"""
    )
    parameters, buffers = found["whole"]
    assert [found["loss"]["start"][c] for c in ("parameters", "gradients")] == [parameters, parameters]
    trained = [parameters, buffers, parameters, 2 * parameters]
    for name, expected in {"train": trained, "prepare": [parameters, buffers, 0, 0]}.items():
        for account in (found[name]["end"], found["after " + name]["start"]):
            held = [account[c] for c in ("parameters", "buffers", "gradients", "optimizer_state")]
            assert held == expected
            assert account["other"] == 0


def test_predictions_that_an_evaluation_keeps_are_results(run_on_stub):
    found = run_on_stub(
        HEAD
        + '''
class Metric:
    def __init__(self):
        self.kept = []

net = nn.Linear(512, 4096).cuda()
metric = Metric()
loop = """
for _ in range(6):
    pixels = torch.randint(0, 255, (64, 512), device="cuda")
    metric.kept.append(net(pixels / 255).softmax(-1))
"""
with ipyvram.measure() as m, torch.inference_mode():
    exec(compile(loop, "evaluate.py", "exec"))
said("metric", m.report)
result["kept"] = on_card(metric.kept)
with ipyvram.measure() as m:
    metric.kept = [net(torch.randn(64, 512, device="cuda")).exp() for _ in range(6)]
said("graphs", m.report)
'''
    )
    metric = found["metric"]
    assert metric["end"]["outputs"] == found["kept"]
    assert metric["end"]["inputs"] == 64 * 512 * 8
    assert found["graphs"]["findings"]["graphs"].startswith("`metric.kept` keeps 6 autograd graphs alive")


def test_what_was_there_before_is_no_matter_of_the_batch(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).cuda()
optimizer = torch.optim.SGD(net.parameters(), 0.1)
def steps():
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(32, 256, device="cuda")).sum().backward()
        optimizer.step()
memory = torch.zeros(20_000, 1000, device="cuda")
steps()
with ipyvram.measure() as m:
    del memory
    steps()
said("data", m.report)
kept = [net(torch.randn(32, 256, device="cuda")).repeat(1, 10_000) for _ in range(4)]
with ipyvram.measure() as m:
    steps()
said("results", m.report)
stages = [nn.Linear(256, 256).cuda() for _ in range(2)]
with ipyvram.measure() as m:
    outs = [stages[1](stages[0](torch.randn(32, 256, device="cuda"))) for _ in range(4)]
    sum(o.sum() for o in outs).backward()
said("stages", m.report)
"""
    )
    assert "lever" not in found["data"]["findings"]
    assert "lever" not in found["results"]["findings"]
    assert "graphs" not in found["stages"]["findings"]  # the stages' own parameters are all that they keep
    assert {"stages[0].weight", "net.0.weight"} <= set(found["stages"]["names"])


def test_what_a_loader_copies_on_its_own_thread_is_batch(run_on_stub):
    found = run_on_stub(
        HEAD
        + '''
import threading
code = """
import queue, threading, torch
def fill(waiting, batches):
    for _ in range(batches):
        waiting.put(torch.randn(1024, 512).to("cuda"))
        turn.wait()
        turn.clear()
    waiting.put(None)
def load(batches):
    waiting = queue.Queue()
    threading.Thread(target=fill, args=(waiting, batches), daemon=True).start()
    while (batch := waiting.get()) is not None:
        yield batch
"""
turn = threading.Event()
space = {"turn": turn}
exec(compile(code, "loader.py", "exec"), space)
net = nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512)).cuda()
def following(*_):  # the thread loads while the model runs
    before = torch.cuda.memory_allocated()
    turn.set()
    while torch.cuda.memory_allocated() == before:
        pass
net[1].register_forward_pre_hook(following)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
steps = 0
with ipyvram.measure() as m:
    for x in space["load"](9):
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
        steps += 1
        if steps == 6:
            break
said("loader", m.report)
with ipyvram.measure() as m:
    torch.ones(8, device="cuda")
said("after", m.report)
'''
    )
    batch = 1024 * 512 * 4
    assert found["loader"]["peak"]["inputs"] == 2 * batch
    assert found["loader"]["peak"]["outputs"] <= 1024
    for account in (found["loader"]["peak"], found["loader"]["end"], found["after"]["start"]):
        assert account["other"] == 0


def test_ways_of_training(run_on_stub):
    found = run_on_stub(
        HEAD
        + """
from torch.utils.checkpoint import checkpoint

blocks = nn.ModuleList(nn.Sequential(nn.Linear(512, 512), nn.Tanh(), nn.Linear(512, 512)) for _ in range(6)).cuda()
sgd = torch.optim.SGD(blocks.parameters(), 0.1)
with ipyvram.measure() as m:
    for _ in range(3):
        h = torch.randn(8192, 512, device="cuda")
        for block in blocks:
            h = checkpoint(block, h, use_reentrant=False)
        h.sum().backward()
        sgd.step()
        sgd.zero_grad()
said("checkpoints", m.report)

of_each = {p: torch.optim.AdamW([p], foreach=False) for p in blocks.parameters()}
def update(p):
    of_each[p].step()
    of_each[p].zero_grad()
for p in of_each:
    p.register_post_accumulate_grad_hook(update)
with ipyvram.measure() as m:
    for _ in range(4):
        h = torch.randn(64, 512, device="cuda")
        for block in blocks:
            h = block(h)
        h.sum().backward()
said("in backward", m.report)

class Momentum:
    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.flat = torch.cat([p.detach().float().flatten() for p in self.parameters])
        self.velocity = torch.zeros_like(self.flat)
    @torch.no_grad()
    def step(self):
        self.velocity.mul_(0.9).add_(torch.cat([p.grad.float().flatten() for p in self.parameters]))
    def zero_grad(self):
        for p in self.parameters:
            p.grad = None

half = nn.Linear(2048, 2048).cuda().bfloat16()
mine = Momentum(half.parameters())
with ipyvram.measure() as m:
    for _ in range(2):
        half(torch.randn(8, 2048, device="cuda", dtype=torch.bfloat16)).sum().backward()
        mine.step()
        mine.zero_grad()
said("own", m.report)
result["flat"] = on_card([mine.flat, mine.velocity])
result["of_each"] = on_card(t for o in of_each.values() for s in o.state.values() for t in s.values() if t.is_cuda)
"""
    )
    checkpoints, layer = found["checkpoints"], 8192 * 512 * 4
    assert checkpoints["peak"]["activations"] >= 5 * layer  # where each checkpoint begins
    assert checkpoints["peak"]["outputs"] <= layer + 512  # the variable, and the loss
    within = found["in backward"]
    assert within["steps"] == 3
    assert (
        within["end"]["gradients"] == within["end"]["activations"] == 0
    )  # the trace ends with the backward, not within
    assert found["own"]["peak"]["optimizer_state"] == found["flat"] + found["of_each"]
    assert "mine.velocity" in found["own"]["names"]
