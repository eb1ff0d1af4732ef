"""Promise 1 on programs nobody thought of: sums close at every instant, and the peak is the profiler's to the byte."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ipyvram.analysis import analyse
from ipyvram.attribution import attribute
from ipyvram.ledger import build
from ipyvram.recording import CATEGORIES
from tests.measured import recorded
from tests.oracle import peak_bytes

WIDTHS = (8, 24, 64)
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, foreach=True),
    "Adam": lambda p: torch.optim.Adam(p, foreach=False),
    "Adam foreach": lambda p: torch.optim.Adam(p, foreach=True, amsgrad=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p),
}


@dataclass(frozen=True)
class Program:
    """A training loop, small enough to run often."""

    layers: tuple[tuple[str, int], ...]  # kind and width of the output
    loss: str
    optimizer: str
    batch: int
    steps: int
    micro_batches: int
    frozen: int  # so many layers from the front
    set_to_none: bool
    checkpointed: bool
    evaluates: bool
    keeps: bool  # a list of losses, graphs and all

    def build(self):
        """The loop as a function, and the variables that a notebook would hold."""
        torch.manual_seed(0)
        model = Model(self.layers, self.checkpointed)
        for part in model.parts[: self.frozen]:
            part.requires_grad_(False)
        optimizer = OPTIMIZERS[self.optimizer]([p for p in model.parameters() if p.requires_grad])
        kept: list[torch.Tensor] = []

        def loop():
            for _ in range(self.steps):
                optimizer.zero_grad(set_to_none=self.set_to_none)
                for _ in range(self.micro_batches):
                    x, y = torch.randn(self.batch, 16), torch.randint(0, 4, (self.batch,))
                    loss = self.loss_of(model(x), y) / self.micro_batches
                    loss.backward()
                    if self.keeps:
                        kept.append(loss)
                optimizer.step()
                if self.evaluates:
                    with torch.no_grad():
                        kept.append(model(torch.randn(self.batch, 16)).argmax(1))

        return loop, {"model": model, "optimizer": optimizer, "kept": kept}

    def loss_of(self, out, y):
        if self.loss == "cross entropy":
            return functional.cross_entropy(out, y)
        if self.loss == "squares":
            return functional.mse_loss(out, functional.one_hot(y, 4).float())
        return (out.exp().sum(1).log() - out.gather(1, y[:, None])[:, 0]).mean() + out.pow(2).mean()


class Model(nn.Module):
    """Layers in a row from 16 features to 4; ``residual`` adds what came in, ``twice`` goes through one layer twice."""

    def __init__(self, layers, checkpointed):
        super().__init__()
        self.checkpointed, self.kinds = checkpointed, []
        self.parts, width = nn.ModuleList(), 16
        for kind, out in layers:
            same = kind in ("residual", "twice", "norm", "batch norm", "dropout")
            out = width if same else out
            self.parts.append(
                nn.LayerNorm(width) if kind == "norm"
                else nn.BatchNorm1d(width) if kind == "batch norm"
                else nn.Dropout(0.5) if kind == "dropout"
                else nn.Sequential(nn.Linear(width, out), nn.GELU() if kind == "gelu" else nn.ReLU(inplace=True))
            )  # fmt: skip
            self.kinds.append(kind)
            width = out
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        for kind, part in zip(self.kinds, self.parts, strict=True):
            if self.checkpointed and kind in ("linear", "gelu"):
                x = checkpoint(part, x, use_reentrant=False)
            elif kind == "residual":
                x = x + part(x)
            elif kind == "twice":
                x = part(part(x))
            elif kind == "square":
                x = torch.tanh(part(x)) ** 2
            else:
                x = part(x)
        return self.head(x)


KINDS = ("linear", "gelu", "residual", "twice", "norm", "batch norm", "dropout", "square")
programs = st.builds(
    Program,
    layers=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(WIDTHS)), max_size=4).map(tuple),
    loss=st.sampled_from(("cross entropy", "squares", "by hand")),
    optimizer=st.sampled_from(sorted(OPTIMIZERS)),
    batch=st.sampled_from((4, 33)),
    steps=st.integers(1, 3),
    micro_batches=st.integers(1, 2),
    frozen=st.integers(0, 2),
    set_to_none=st.booleans(),
    checkpointed=st.booleans(),
    evaluates=st.booleans(),
    keeps=st.booleans(),
)
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@given(programs)
@few
def test_sums_close_at_every_instant_and_nothing_is_left_over(program):
    loop, namespace = program.build()
    recording = recorded(loop, namespace, trace_steps=10)
    assert not recording.notes
    (trace,) = recording.traces
    ledger = build(trace)
    accounts = attribute(recording, ledger, "cpu").accounts(ledger)
    assert set(accounts) == set(CATEGORIES)
    assert all((column >= 0).all() for column in accounts.values())
    total = sum(accounts.values(), np.zeros(ledger.instants, np.int64))
    assert (total == ledger.allocated()).all()
    assert accounts["other"].max() == 0
    report = analyse(recording)
    assert sum(report.peak.values()) == report.peak_bytes == total.max()


@given(programs)
@few
def test_what_belongs_to_the_model_is_exact(program):
    loop, namespace = program.build()
    model, optimizer = namespace["model"], namespace["optimizer"]
    report = analyse(recorded(loop, namespace, trace_steps=10))
    parameters = sum(p.nbytes for p in model.parameters())
    assert report.start["parameters"] == report.end["parameters"] == parameters
    assert report.end["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    assert report.end["optimizer_state"] == sum(v.untyped_storage().nbytes() for v in state)
    assert report.end["buffers"] == sum(b.nbytes for b in model.buffers())


@given(programs)
@few
def test_the_peak_is_the_profilers(program):
    loop, _ = program.build()
    (trace,) = recorded(loop, trace_steps=10).traces
    measured = int(build(trace).allocated().max()) - sum(block.size for block in trace.baseline)
    del loop
    gc.collect()
    loop, _ = program.build()
    assert measured == peak_bytes(loop)


@pytest.mark.parametrize("kind", ["conv", "recurrent", "attention"])
def test_the_peak_is_the_profilers_in_larger_models(kind):
    def build_one():
        torch.manual_seed(0)
        model = {
            "conv": lambda: nn.Sequential(
                nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
            ),
            "recurrent": lambda: nn.LSTM(14, 8, num_layers=2),
            "attention": lambda: nn.TransformerEncoderLayer(14, 2, 32, batch_first=True),
        }[kind]()
        optimizer = torch.optim.Adam(model.parameters())
        shape = (4, 3, 14, 14) if kind == "conv" else (4, 6, 14)

        def loop():
            for _ in range(3):
                optimizer.zero_grad()
                out = model(torch.randn(shape))
                (out[0] if isinstance(out, tuple) else out).pow(2).sum().backward()
                optimizer.step()

        return loop

    (trace,) = recorded(build_one(), trace_steps=10).traces
    measured = int(build(trace).allocated().max()) - sum(block.size for block in trace.baseline)
    gc.collect()
    assert measured == peak_bytes(build_one())
