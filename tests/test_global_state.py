"""Random numbers, flags, hooks, environment and figures are what they were."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest
import torch
from torch.nn.modules import module as module_hooks

from ipyvram.global_state import GlobalState


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1).item()])
def test_the_next_random_number_is_the_same_again(draw):
    state = GlobalState()
    first = [draw() for _ in range(3)]
    for _ in range(2):
        state.restore()
        assert [draw() for _ in range(3)] == first


def test_seeds_set_by_a_trial_are_forgotten():
    state = GlobalState()
    first = torch.rand(1).item()
    state.restore()
    torch.manual_seed(0)
    state.restore()
    assert torch.rand(1).item() == first


@pytest.mark.parametrize(
    ("read", "change"),
    [
        (lambda: torch.backends.cudnn.benchmark, lambda: setattr(torch.backends.cudnn, "benchmark", True)),
        (lambda: torch.backends.cudnn.deterministic, lambda: setattr(torch.backends.cudnn, "deterministic", True)),
        (lambda: torch.backends.cudnn.enabled, lambda: setattr(torch.backends.cudnn, "enabled", False)),
        (torch.get_default_dtype, lambda: torch.set_default_dtype(torch.float64)),
        (torch.is_grad_enabled, lambda: torch.set_grad_enabled(False)),
        (torch.is_anomaly_enabled, lambda: torch.autograd.set_detect_anomaly(True)),
        (torch.are_deterministic_algorithms_enabled, lambda: torch.use_deterministic_algorithms(True)),
        (torch.get_float32_matmul_precision, lambda: torch.set_float32_matmul_precision("high")),
        (os.getcwd, lambda: os.chdir("/")),
        (lambda: os.environ.get("IPYVRAM_TEST"), lambda: os.environ.update(IPYVRAM_TEST="1")),
        (
            lambda: len(module_hooks._global_forward_hooks),
            lambda: module_hooks.register_module_forward_hook(lambda *args: None),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_each_setting_is_put_back(read, change):
    before, state = read(), GlobalState()
    change()
    assert read() != before
    state.restore()
    assert read() == before


def test_figures_of_a_trial_are_closed():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    mine = pyplot.figure()
    state = GlobalState()
    pyplot.figure()
    state.restore()
    assert pyplot.get_fignums() == [mine.number]
    pyplot.close("all")


def test_matplotlib_is_not_imported_for_it():
    import subprocess

    code = "import sys, ipyvram.global_state as g; g.GlobalState().restore(); print('matplotlib' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
