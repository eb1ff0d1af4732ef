"""A function compiled by torch in a measured block: it compiles as it would without us, and its account closes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.optim import optimizer as optimizer_hooks

import ipyvram
from tests.measured import measured

dynamo_utils = pytest.importorskip("torch._dynamo.utils")


def compile_and_train(steps: int = 3) -> tuple[list[float], dict[str, int], set[str]]:
    """Losses, graph breaks by reason, and warnings of a small training with a compiled model."""
    torch.compiler.reset()
    dynamo_utils.counters.clear()
    torch.manual_seed(0)
    model = torch.compile(nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), backend="aot_eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ResourceWarning)  # of what other tests left to the collector
        for _ in range(steps):
            loss = model(torch.ones(16, 64)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses, dict(dynamo_utils.counters["graph_break"]), {str(w.message) for w in caught}


def test_what_the_compiler_makes_is_the_same():
    alone = compile_and_train()
    with ipyvram.measure() as m:
        measured = compile_and_train()
    assert measured == alone
    assert m.report.measurement.notes == ()
    assert m.report.steps == 3
    assert sum(m.report.peak.values()) == m.report.peak_bytes
    assert m.report.peak["parameters"] == 4 * (64 * 64 + 64 + 64 * 4 + 4)


def test_a_model_compiled_before_is_not_broken_up():
    torch.compiler.reset()
    model = torch.compile(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), backend="aot_eager")
    x = torch.ones(2, 8)
    before = model(x)
    dynamo_utils.counters.clear()
    with ipyvram.measure() as m:
        assert torch.equal(model(x), before)
    assert dict(dynamo_utils.counters["graph_break"]) == {}
    assert m.report.peak["parameters"] == 4 * (64 + 8)


def compile_whole_steps() -> tuple[list[float], dict[str, int], int]:
    """Losses, graph breaks and compiled functions of a training whose whole step is given to the compiler."""
    torch.compiler.reset()
    dynamo_utils.counters.clear()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters())

    @torch.compile(backend="aot_eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    losses = [step(torch.ones(4, 8)).item() for _ in range(5)]
    return losses, dict(dynamo_utils.counters["graph_break"]), dynamo_utils.counters["stats"]["unique_graphs"]


def test_a_whole_step_is_compiled_as_without_us_and_nothing_of_ours():
    """Its backward is no part of what is made: around that the compiler looks at every function that Python calls.

    Without us, and with somebody's hook on optimizers: where there is any, the compiler leaves their `step` alone from Python 3.13 on.
    """
    handle = optimizer_hooks.register_optimizer_step_pre_hook(lambda *args: None)
    alone = compile_whole_steps()
    handle.remove()
    with ipyvram.measure(trace_steps=10) as m:  # not ending within: the compiler has guards on what hooks there are
        measured = compile_whole_steps()
    assert measured[0] == pytest.approx(alone[0], rel=1e-4)
    if measured[2]:  # an older torch compiles nothing under a mode
        assert measured == alone
    assert m.report.measurement.notes == ()
    assert sum(m.report.peak.values()) == m.report.peak_bytes > 0


@pytest.mark.parametrize("traced", [2, 3], ids=["ends inside", "ends and begins inside"])
def test_a_trace_may_begin_or_end_within_a_compiled_function(traced):
    """Its end puts torch's flags back as they were at its begin, whatever mode has come or gone meanwhile."""
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = torch.optim.Adam(model.parameters())
    seen = []

    @torch.compiler.disable
    def update() -> None:
        optimizer.step()
        if len(seen) == 3 and traced == 3:
            ipyvram.retrace()

    @torch.compile(backend="aot_eager")
    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        update()
        return loss

    with ipyvram.measure(trace_steps=2) as m:
        for _ in range(6):
            step(torch.ones(4, 8)).item()
            seen.append(flags())
    assert [there for there, _, _ in seen] == [True, False, False, traced == 3, False, False]
    assert all(there == python == snapshot for there, python, snapshot in seen)
    assert flags() == (False, False, False)
    assert m.report.steps == 6
    assert m.report.traced_steps == traced
    assert m.report.measurement.notes == ()


def flags() -> tuple[bool, bool, bool]:
    """Whether there is a mode, and whether torch asks one."""
    included = torch._C._dispatch_tls_is_dispatch_key_included
    return torch._C._len_torch_dispatch_stack() > 0, included("Python"), included("PythonTLSSnapshot")


def test_the_warning_about_hooks_of_the_user_stays():
    torch.compiler.reset()
    model = torch.compile(nn.Linear(4, 4), backend="eager")
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: None)
    try:
        with warnings.catch_warnings(record=True) as alone:
            warnings.simplefilter("always")
            model(torch.ones(1, 4))
        if not any("global hooks" in str(warning.message) for warning in alone):
            pytest.skip("this torch does not warn about global hooks")
        with ipyvram.measure(), pytest.warns(UserWarning, match="global hooks"):
            model(torch.ones(1, 4))
    finally:
        handle.remove()


def operators(traced) -> list[str]:
    return [node.kind() for node in traced.inlined_graph.nodes()]


def convolutions() -> nn.Module:
    """Operators that torch makes of others, for which it excludes its tracer meanwhile."""
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("model", "sizes"),
    [(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), (8,)), (convolutions(), (3, 8, 8))],
    ids=["linear", "convolutions"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_traced_program_is_the_same_and_the_report_plain(model, sizes):
    alone = operators(torch.jit.trace(model, torch.ones(2, *sizes)))
    with warnings.catch_warnings(), ipyvram.measure() as m:
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, torch.ones(2, *sizes))
        traced(torch.ones(3, *sizes))
    assert operators(traced) == alone
    assert ipyvram.Report.from_json(m.report.to_json()) == m.report
    assert m.report.measurement.notes == ()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_a_frozen_programs_constants_are_its_parameters():
    """Of a trace that begins when it is made already; it has neither parameters nor buffers any more."""
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
    frozen = torch.jit.freeze(torch.jit.trace(model, torch.ones(2, 64)))
    weights = sum(p.untyped_storage().nbytes() for p in model.parameters())
    del model
    report = measured(lambda: frozen(torch.ones(3, 64)), {"frozen": frozen})
    assert report.peak["parameters"] == weights
    assert report.peak["other"] == 0
