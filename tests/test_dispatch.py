"""The mode: results as without it, faults kept away, and gone when it is left."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from ipyvram.probes.dispatch import Mode


class Notes:
    """A recorder that writes down operators."""

    def __init__(self):
        self.active, self.seen, self.faults = True, [], []

    def record(self, func, args, kwargs, result):
        self.seen.append(str(func))

    def failed(self, func, error):
        self.faults.append(error)
        self.active = False


def entered(recorder) -> Mode:
    mode = Mode(recorder)
    mode.enter()
    return mode


def test_operators_are_told_and_their_results_unchanged():
    notes = Notes()
    mode = entered(notes)
    result = torch.ones(2) + 1
    assert mode.leave()
    torch.ones(2)
    assert result.tolist() == [2, 2]
    assert notes.seen == ["aten.ones.default", "aten.add.Tensor"]


def test_an_inactive_recorder_is_told_nothing():
    notes = Notes()
    mode = entered(notes)
    notes.active = False
    torch.ones(2)
    mode.leave()
    assert notes.seen == []


def test_the_programs_own_error_passes():
    notes = Notes()
    mode = entered(notes)
    try:
        torch.ones(2) @ torch.ones(3)
    except RuntimeError as error:
        text = str(error)
    finally:
        mode.leave()
    assert "inconsistent tensor size" in text
    assert notes.faults == []


def test_tensors_made_of_tensors_are_seen_by_their_parts():
    class Twice(torch.Tensor):
        @staticmethod
        def __new__(cls, inner):
            return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

        def __init__(self, inner):
            self.inner = inner

        @classmethod
        def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
            return cls(func(*[a.inner if isinstance(a, Twice) else a for a in args]))

    notes = Notes()
    x = Twice(torch.ones(2))
    mode = entered(notes)
    y = x + 1
    mode.leave()
    assert isinstance(y, Twice)
    assert notes.seen == ["aten.add.Tensor"]


def test_it_does_not_leave_from_below_another():
    class Other(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    mode = entered(Notes())
    with Other():
        assert not mode.leave()
    assert mode.leave()
    assert _get_current_dispatch_mode() is None


def test_it_does_not_leave_in_the_middle_of_a_backward():
    """Whose end would bring it back, for good."""
    mode, left = entered(Notes()), []
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    y.register_hook(lambda gradient: left.append(mode.leave()))
    y.sum().backward()
    assert left == [False]
    assert mode.leave()
    assert _get_current_dispatch_mode() is None


def test_torchs_compiler_is_not_loaded_by_it():
    import subprocess
    import sys

    code = (
        "import sys, torch; from ipyvram.probes.dispatch import Mode\n"
        "class R:\n  active = True\n  def record(self, *a): pass\n"
        "m = Mode(R()); m.enter(); torch.ones(2) + 1; m.leave()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_tensors_without_memory_are_made_and_used_as_without_it():
    from torch._subclasses import FakeTensorMode

    rows = torch.ones(4, 3)[1:]  # of a view, which has a base that is made too
    mode = entered(Notes())
    try:
        with FakeTensorMode() as fake:
            made = fake.from_tensor(rows)
            total = (made + 1).sum(0)
    finally:
        mode.leave()
    assert tuple(total.shape) == (3,)
    assert type(total) is type(made)


@pytest.mark.filterwarnings("ignore")
def test_a_traced_graph_with_constants_is_printed_as_without_it():
    notes = Notes()
    mode = entered(notes)
    try:
        traced = torch.jit.trace(lambda x: x * 2 + 1, torch.ones(3))
        text, norm = str(traced.graph), torch.jit.trace(nn.BatchNorm1d(3), torch.ones(2, 3))
    finally:
        mode.leave()
    assert "prim::Constant" in text
    assert norm(torch.ones(2, 3)).shape == (2, 3)
    assert notes.faults == []


def test_an_operator_that_fails_with_a_number_runs_once_and_has_one_error():
    """Of ``x.add_(2.5)`` the number is not the operator's first argument: nothing stands for a tensor there."""
    mode = entered(Notes())
    try:
        with pytest.raises(RuntimeError, match="can't be cast") as found:
            torch.ones(3, dtype=torch.long).add_(2.5)
    finally:
        mode.leave()
    assert found.value.__context__ is None
