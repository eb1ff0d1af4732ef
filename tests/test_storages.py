"""The storage trace: every storage that operators make, to the byte, and nothing about the program changed."""

from __future__ import annotations

import contextlib
import os
import threading

import numpy as np
import pytest
import torch
from torch import nn

from ipyvram.ledger import build
from ipyvram.probes.clock import Clock
from ipyvram.probes.stacks import Interner, StackReader
from ipyvram.probes.storages import StorageTrace
from ipyvram.probes.tensors import plain_tensors
from ipyvram.recording import Action


def new_trace(**options) -> StorageTrace:
    return StorageTrace(Clock(), StackReader(Interner()), Interner(), **options)


@contextlib.contextmanager
def tracing(**options):
    trace = new_trace(**options)
    trace.start()
    try:
        yield trace
    finally:
        trace.stop()
        trace.traces()


def rows(trace: StorageTrace, device: str = "cpu") -> list[tuple[str, int]]:
    """``("+", bytes)`` for an allocation and ``("-", bytes)`` for a free, in order."""
    found = next((t for t in trace.traces() if t.device == device), None)
    if found is None:
        return []
    signs = {Action.ALLOC: "+", Action.FREE_REQUESTED: "-"}
    return [(signs[a], int(s)) for a, s in zip(found.events.action, found.events.size, strict=True)]


def rows_since(trace: StorageTrace, before: int) -> list[tuple[str, int]]:
    trace.stop()
    return rows(trace)[before:]


def test_an_allocation_and_its_free():
    with tracing() as trace:
        x = torch.zeros(10)
        del x
    assert rows(trace) == [("+", 40), ("-", 40)]


def test_views_share_their_storage():
    with tracing() as trace:
        x = torch.zeros(10)
        y = x.view(2, 5)[0]
        x.add_(1)
        del x
        assert trace.live.event_count == 1
        del y
    assert rows(trace) == [("+", 40), ("-", 40)]


def test_what_autograd_saved_lives_until_the_graph_goes():
    w = torch.ones(10, requires_grad=True)
    with tracing() as trace:
        y = (w * 2).exp()  # exp saves its result
        z = y.sum()
        del y
        before = trace.live.event_count
        del z
        assert trace.live.event_count == before + 2  # the sum and the result of exp
    assert sum(size if sign == "+" else -size for sign, size in rows(trace)) == 0


def test_a_resized_storage_is_counted_at_its_new_size():
    with tracing() as trace:
        x = torch.zeros(10)
        x.resize_(20)
        del x
    assert rows(trace) == [("+", 40), ("-", 40), ("+", 80), ("-", 80)]


def test_times_are_in_order_and_within_the_trace():
    with tracing() as trace:
        kept = [torch.zeros(10) for _ in range(20)]
        del kept
    found = trace.traces()[0]
    assert (np.diff(found.events.time_ns) > 0).all()
    assert found.start_ns < found.events.time_ns[0]
    assert found.events.time_ns[-1] <= found.stop_ns


def test_parameters_that_were_there_before_count_from_the_start_once_they_are_used():
    used, unused = nn.Parameter(torch.zeros(10)), nn.Parameter(torch.zeros(100))
    with tracing() as trace, torch.no_grad():
        used + 1
    found = trace.traces()[0]
    assert [b.size for b in found.baseline] == [40]
    assert build(found).allocated().tolist() == [40, 80, 40]
    assert unused.numel() == 100


def test_data_that_no_operator_made_appears_when_it_is_used():
    with tracing() as trace:
        x = torch.from_numpy(np.zeros(10, np.float32))
        y = x + 1
        del x, y
    assert not trace.traces()[0].baseline
    assert rows(trace) == [("+", 40), ("+", 40), ("-", 40), ("-", 40)]


def test_gradients_are_accumulated_in_place_as_without_a_trace():
    w = torch.ones(1000, requires_grad=True)
    (w * 1).sum().backward()
    flat = w.grad  # the program keeps the buffer, as flat optimizers do
    with tracing() as trace:
        (w * 3).sum().backward()
        assert w.grad is flat
    assert flat.tolist() == [4.0] * 1000
    peak = build(trace.traces()[0]).allocated().max()
    # w, w.grad, and of the second graph: w * 3, its gradient through mul, and two scalars
    assert peak <= 4 * 4000 + 16


def test_a_sum_of_gradients_takes_the_place_of_its_first_operand():
    """Without a mode the engine adds the second gradient of ``h`` to the first in place."""

    def program():
        x = torch.ones(1000, requires_grad=True)
        h = x * 2
        a, b = h * 3, h * 4
        (a.sum() + b.sum()).backward()

    with tracing() as trace:
        program()
    made = [size for sign, size in rows(trace) if sign == "+" and size == 4000]
    # x, h, a, b, and the gradients of h through a, of h through b and of x; those of a and b are views of a scalar
    assert len(made) == 7


def test_a_node_that_feeds_one_place_twice_sums_in_place():
    x = torch.ones(1000, requires_grad=True)
    with tracing() as trace:
        h = x * 2
        (h * h).sum().backward()
        del h
    made = [size for sign, size in rows(trace) if sign == "+" and size == 4000]
    assert len(made) == 5  # h, h * h, two gradients of h and the one of x


def test_sums_of_views_take_memory_of_their_own():
    """The gradient of a weight used twice: ``t()`` of a product, which keeps the product alive, so autograd must not reuse it."""
    layer, x = nn.Linear(16, 16, bias=False), torch.ones(4, 16)
    with tracing() as trace:
        layer(layer(x)).sum().backward()
    made = [size for sign, size in rows(trace) if sign == "+" and size == 4 * 16 * 16]
    assert len(made) == 3  # two gradients and their sum


def test_zeros_that_a_formula_fills_are_filled_in_place():
    x = torch.rand(8, 100, requires_grad=True)
    with tracing() as trace:
        x.max(1).values.sum().backward()
    made = [size for sign, size in rows(trace) if sign == "+" and size == 4 * 800]
    assert len(made) == 1  # the gradient: zeros, and the ones scattered into them


def test_a_sum_inside_a_formula_takes_memory_of_its_own():
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, grad):
            return grad * 2 + grad * 3

    x = torch.ones(1000, requires_grad=True)
    with tracing() as trace:
        Function.apply(x).sum().backward()
    made = [size for sign, size in rows(trace) if sign == "+" and size == 4000]
    assert len(made) == 4  # x * 1, two products and their sum


def test_a_budget_ends_in_out_of_memory_before_it_is_counted():
    with tracing(budget={"cpu": 1000}) as trace:
        x = torch.zeros(200)
        with pytest.raises(
            torch.OutOfMemoryError, match=r"^CPU out of memory\. Tried to allocate 400 bytes\. "
        ) as error:
            torch.zeros(100)
        assert "total capacity of 1000 bytes of which 200 bytes is free" in str(error.value)
        y = torch.zeros(50)
        del x, y
    assert [size for sign, size in rows(trace) if sign == "+"] == [800, 200]


def test_a_budget_is_noticed_inside_backward():
    x = torch.ones(100, requires_grad=True)
    with tracing(budget={"cpu": 900}):
        y = x.exp()
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            y.backward(torch.ones(100))
    assert x.grad is None


def test_gradients_summed_in_place_need_no_room_in_the_budget():
    def program():
        h = torch.ones(1000, requires_grad=True) * 1
        ((h * 2).sum() + (h * 3).sum() + (h * 4).sum()).backward()

    with tracing() as trace:
        program()
    live = peak = 0
    for sign, size in rows(trace):
        live += size if sign == "+" else -size
        peak = max(peak, live)
    with tracing(budget={"cpu": peak}):
        program()
    with tracing(budget={"cpu": peak - 1}), pytest.raises(torch.OutOfMemoryError):
        program()


def test_meta_tensors_are_presented_as_the_device_they_stand_for():
    with tracing(device_names={"meta": "cuda:0"}, budget={"cuda:0": 2**30}) as trace:
        x = torch.zeros(1000, device="meta")
        assert trace.logs.name(x.device) == "cuda:0"
        y = x + x
        with pytest.raises(
            torch.OutOfMemoryError, match=r"^CUDA out of memory\. Tried to allocate 2\.00 GiB\. GPU 0 has"
        ):
            torch.zeros(2**29, device="meta")
        del x, y
    assert rows(trace, "cuda:0") == [("+", 4000), ("+", 4000), ("-", 4000), ("-", 4000)]


def test_meta_tensors_take_no_memory_by_themselves():
    with tracing() as trace:
        torch.zeros(1000, device="meta")
    assert trace.traces() == ()


def test_other_threads_are_not_followed_and_do_no_harm():
    kept = []
    with tracing() as trace:
        worker = threading.Thread(target=lambda: kept.append(torch.zeros(10)))
        worker.start()
        worker.join()
        kept[0] + 1
        threading.Thread(target=kept.clear).start()
    assert rows(trace)[:3] == [("+", 40), ("+", 40), ("-", 40)]


def test_storages_of_sparse_tensors_are_their_parts():
    layer = nn.Embedding(100, 8, sparse=True)
    with tracing() as trace:
        layer(torch.tensor([1, 2])).sum().backward()
        assert layer.weight.grad.is_sparse
        before = trace.live.event_count
        size = layer.weight.grad._values().untyped_storage().nbytes()
        layer.weight.grad = None
        assert rows_since(trace, before).count(("-", size)) == 1
    assert not trace.notes


def test_a_view_of_a_sparse_tensor_that_was_there_before_is_nothing_new():
    matrix = torch.eye(50).to_sparse_csr()
    storages = [part.untyped_storage() for part in plain_tensors(matrix)]
    with tracing() as trace:
        for storage in storages:
            trace.live.identify(storage, before=True)
        matrix.t()
    (found,) = trace.traces()
    assert len(found.events) == 0
    assert [block.size for block in found.baseline] == [storage.nbytes() for storage in storages]


def test_rows_of_several_sizes_end_no_trace():
    with tracing() as trace:
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]) * 2
        torch.ones(7)
    assert not trace.notes
    assert rows(trace)[-2:] == [("+", 28), ("-", 28)]


def test_the_zeros_of_forward_mode_derivatives_take_no_memory():
    with tracing() as trace:
        zeros = torch._efficientzerotensor(100)
        assert zeros[:50]._is_zerotensor()
    assert rows(trace) == []


def test_a_mode_entered_by_the_cell_outlives_the_trace():
    from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    trace = new_trace()
    trace.start()
    with Mode() as theirs:
        torch.zeros(10)
        trace.stop("1 step")
        torch.zeros(10)
        assert _get_current_dispatch_mode() is theirs
    trace.traces()
    assert _get_current_dispatch_mode() is None
    assert rows(trace) == [("+", 40), ("-", 40)]


def test_the_trace_ends_when_its_bound_is_reached():
    texts = iter(["", "20 s without an optimizer step"])
    with tracing(expired=lambda: next(texts)) as trace:
        for _ in range(3000):
            torch.zeros(1)
        assert not trace.active
    found = trace.traces()[0]
    assert found.ended_by == "20 s without an optimizer step"
    assert 2 * 2000 < len(found.events) < 2 * 2100


def test_a_fault_of_ours_costs_the_trace_and_not_the_cell(monkeypatch):
    monkeypatch.setattr(StorageTrace, "record", lambda *_: 1 / 0)
    with tracing() as trace:
        assert torch.zeros(3).tolist() == [0, 0, 0]
        assert torch.ones(3).tolist() == [1, 1, 1]
    assert len(trace.notes) == 1
    assert "ZeroDivisionError" in trace.notes[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no processes are forked here")
def test_a_forked_worker_records_nothing():
    with tracing() as trace:
        (process_id := os.fork()) or os._exit(int(trace.active))
        assert os.waitstatus_to_exitcode(os.waitpid(process_id, 0)[1]) == 0
        assert trace.active
