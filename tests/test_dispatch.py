"""The mode: results as without it, faults kept away, and gone when it is left."""

from __future__ import annotations

import torch
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
