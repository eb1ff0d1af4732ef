"""Tensors of earlier cells, made on a machine without a GPU, in an estimate of a cell that uses them on the card."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import ipyvram
from ipyvram.simulated.host import HostTensors

LAYER = 256 * 256 * 4


def estimated(cell: str, **variables: object) -> ipyvram.Report:
    return ipyvram.estimate(cell, card="T4", namespace={"torch": torch, "nn": nn, "F": F, **variables})


def trained(**more: object) -> dict[str, object]:
    net = nn.Linear(256, 256)
    return {"net": net, "optimizer": torch.optim.SGD(net.parameters(), 0.1), "device": "cpu", **more}


def test_data_of_a_setup_cell_is_on_the_card_once():
    x = torch.randn(512, 256)
    values = x.clone()
    report = estimated(
        "for _ in range(3):\n    optimizer.zero_grad(); F.mse_loss(net(x), x).backward(); optimizer.step()",
        **trained(x=x),
    )
    assert report.peak["inputs"] == x.nbytes
    assert any("512×256" in note for note in report.measurement.notes)
    assert x.device.type == "cpu"
    assert torch.equal(x, values)


def test_what_torchs_compiler_keeps_is_no_data():
    """Tensors without memory, which answer through whatever mode is there."""
    with FakeTensorMode() as mode:
        kept = torch.empty(3)
    x = torch.randn(512, 256)
    report = estimated("net(x).sum().backward(); optimizer.step()", **trained(x=x))
    assert report.peak["inputs"] == x.nbytes
    assert (kept.fake_mode, kept.device.type) == (mode, "cpu")


def test_what_the_code_moves_itself_stays_on_the_host():
    x = torch.randn(4096, 256)
    report = estimated(
        "for i in range(3):\n    net(x[512 * i : 512 * (i + 1)].to(device)).sum().backward(); optimizer.step()",
        **trained(x=x),
    )
    assert report.peak["inputs"] == 512 * 256 * 4


def test_a_mask_of_a_setup_cell_selects_what_it_selects():
    """As of the nodes of a graph that are trained on: labels and results have to be as many."""
    x, y = torch.randn(2000, 256), torch.randint(0, 256, (2000,))
    mask = torch.arange(2000) % 3 == 0
    report = estimated(
        "for _ in range(3):\n    F.cross_entropy(net(x)[mask], y[mask].to(device)).backward(); optimizer.step()",
        **trained(x=x, y=y, mask=mask),
    )
    assert report.steps == 3
    assert not any("as large as it can be" in note for note in report.measurement.notes)


def test_a_state_that_a_model_returned_is_on_the_card():
    gru = nn.GRUCell(8, 16)
    state = gru(torch.randn(4, 8), torch.zeros(4, 16))
    report = estimated(
        """
h = state.detach()
for _ in range(3):
    h = gru(torch.randn(4, 8, device=device), h.detach())
    h.sum().backward()
    optimizer.step()
""",
        gru=gru,
        state=state,
        device="cpu",
        optimizer=torch.optim.SGD(gru.parameters(), 0.1),
    )
    assert report.steps == 3
    assert state.grad_fn is not None
    assert state.device.type == "cpu"


def test_a_weight_whose_memory_is_replaced_lets_go_of_it():
    """As SAM does, which goes back to a copy: what lay there before the cell ends."""
    report = estimated(
        """
copy = net.weight.data.clone()
net(torch.ones(8, 256, device=device)).sum().backward()
net.weight.data = copy
del copy
net(torch.ones(8, 256, device=device)).sum().backward()
""",
        **trained(),
    )
    assert LAYER <= report.end["parameters"] < 1.1 * LAYER


def test_packed_sequences_pass_and_host_memory_need_not_be_pinned():
    report = estimated(
        """
from torch.autograd.graph import save_on_cpu
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
rnn = nn.LSTM(64, 128, 2, batch_first=True, bidirectional=True).to("cuda")
gru = nn.GRU(256, 32, batch_first=True).to("cuda")
optimizer = torch.optim.SGD(rnn.parameters(), 0.1)
for _ in range(3):
    x, n = torch.randn(32, 50, 64, device="cuda"), torch.arange(19, 51)
    packed = pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False)
    with save_on_cpu(pin_memory=True):
        out, (h, c) = rnn(packed)
        assert out.data.shape == (int(n.sum()), 256) and h.shape == (4, 32, 128)
        out, _ = gru(out)
        out, lengths = pad_packed_sequence(out, batch_first=True)
        assert out.shape == (32, 50, 32)
    out.sum().backward()
    optimizer.step()
"""
    )
    assert report.steps == 3


def test_a_memory_that_fills_before_the_training_is_waited_for():
    class Agent:
        def __init__(self) -> None:
            self.net = nn.Linear(256, 4)
            self.optimizer = torch.optim.Adam(self.net.parameters())

        def act(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                return self.net(x)

        def learn(self, x: torch.Tensor) -> None:
            self.net(x).sum().backward()
            self.optimizer.step()

    loop = """
for step in range(200):
    agent.act(torch.zeros(1, 256, device=device))
    if step > 100:
        agent.learn(torch.zeros(64, 256, device=device))
"""
    report = estimated(loop, agent=Agent(), device="cpu", __name__=__name__)
    assert report.steps == 3
    report = estimated(
        loop.replace("agent.learn(", "agent.act("), agent=type("Runs", (), {"act": Agent().act})(), device="cpu"
    )
    assert report.steps == 0


def test_jagged_tensors_are_refused_in_words():
    with pytest.raises(ValueError, match="jagged tensors cannot be on the simulated card"):
        estimated(
            """
net = nn.Sequential(nn.Embedding(500, 64), nn.Linear(64, 64)).to("cuda")
tokens = torch.nested.nested_tensor([torch.ones(n, dtype=torch.long) for n in range(5, 37)], layout=torch.jagged)
net(tokens.to("cuda")).values().sum().backward()
"""
        )


def test_hooks_of_all_modules_and_optimizers_end_with_the_estimate():
    calls: list[int] = []
    estimated(
        """
torch.nn.modules.module.register_module_forward_hook(lambda module, args, output: calls.append(1))
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda optimizer, args, kwargs: calls.append(1))
net(torch.ones(8, 256, device=device)).sum().backward()
optimizer.step()
assert len(calls) == 2
""",
        calls=calls,
        **(variables := trained()),
    )
    variables["net"](torch.ones(8, 256)).sum().backward()
    variables["optimizer"].step()
    assert calls == []


def test_a_lazy_model_may_be_made_in_the_cell():
    source = """
model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4))
model(torch.ones(2, 1, 5, 5))
model.cuda()(torch.ones(2, 1, 5, 5, device="cuda")).sum().backward()
"""
    report = ipyvram.estimate(source, card="T4", namespace={"torch": torch, "nn": nn})
    layers = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Linear(72, 4)
    assert report.peak["parameters"] == sum(-(-p.nbytes // 512) * 512 for layer in layers for p in layer.parameters())


@pytest.mark.parametrize("moved", ["lazy", "lazy.cuda()", "lazy.to('cuda')"])
def test_a_lazy_model_and_one_that_gets_a_parametrization_stay_what_they_were(moved):
    """Both change their class: a lazy layer when it first runs, any other with its first parametrization."""
    torch.manual_seed(0)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4))
    net, other = nn.Linear(16, 8), nn.Linear(16, 8)
    before = repr((lazy, net, other)), [type(t) for t in (*lazy.parameters(), *lazy.buffers())]
    report = estimated(
        f"""
from torch.nn.utils.parametrizations import weight_norm
{moved}(torch.randn(2, 3, 8, 8, device="cuda")).sum().backward()
weight_norm(net)
net(torch.randn(4, 16, device="cuda")).sum().backward()
""",
        lazy=lazy,
        net=net,
    )
    assert report.peak["parameters"] >= (4 * 8 * 6 * 6 + 8 * 3 * 3 * 3) * 4
    assert before == (repr((lazy, net, other)), [type(t) for t in (*lazy.parameters(), *lazy.buffers())])
    assert net(torch.ones(1, 16)).shape == (1, 8)
    assert lazy(torch.ones(2, 1, 5, 5)).shape == (2, 4)  # another shape than in the estimate
    with pytest.raises(ZeroDivisionError):
        estimated("lazy(torch.ones(2, 1, 5, 5, device='cuda')); 1 / 0", lazy=nn.LazyLinear(4))


def test_what_lies_where_earlier_memory_has_ended_is_new():
    """Else a parameter of the cell's own model went to the card twice, now and then."""
    host, storage = HostTensors(), torch.zeros(3).untyped_storage()
    host.exists(storage)
    key = storage._cdata
    del storage
    made = [torch.zeros(3) for _ in range(100)]
    assert key in [tensor.untyped_storage()._cdata for tensor in made]
    assert not any(map(host.existed, made))
