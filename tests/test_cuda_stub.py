"""The stub of CUDA: with it, torch's own allocator runs where there is no card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests import cuda_stub

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    if why := cuda_stub.missing():
        pytest.skip(why)
    return cuda_stub.build(tmp_path_factory.mktemp("cuda_stub"))


@pytest.fixture
def run(environment):
    """Run lines of Python with the stub; what they leave in ``result`` comes back as JSON would give it."""

    def call(code, **settings):
        program = textwrap.dedent(code) + "\nimport json\nprint('\\n' + json.dumps(result))\n"
        variables = {f"IPYVRAM_STUB_{name}": str(value) for name, value in settings.items()}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **environment, **variables},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return call


def test_torch_sees_a_card_and_its_allocator_counts(run):
    found = run(
        """
        import torch
        x = torch.empty(1000, 1000, device="cuda")
        free, total = torch.cuda.mem_get_info()
        result = [torch.cuda.get_device_name(), torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total]
        """,
        BYTES=8 << 30,
    )
    assert found == ["NVIDIA Stub", 4_000_256, 20 << 20, 8 << 30]


def test_every_number_on_the_card_is_zero(run):
    assert run("import torch\nresult = torch.arange(1, 5).cuda().cpu().tolist()") == [0, 0, 0, 0]


def test_the_card_can_be_full(run):
    found = run(
        """
        import torch
        kept = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        try:
            torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        except torch.cuda.OutOfMemoryError as error:
            result = str(error).splitlines()[0]
        """,
        BYTES=2 << 30,
    )
    assert found.startswith("CUDA out of memory. Tried to allocate 1024.00 MiB.")


def test_another_process_is_seen_on_the_same_card(run, environment):
    found = run(
        """
        import subprocess, sys, pynvml, torch
        code = "import torch; x = torch.empty(64 << 20, dtype=torch.uint8, device='cuda'); print('here', flush=True); input()"
        other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        other.stdout.readline()
        torch.cuda.init()
        torch.empty(1, device="cuda")
        pynvml.nvmlInit()
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(0))
        result = {"other": [p.usedGpuMemory for p in processes if p.pid == other.pid], "all": len(processes)}
        other.communicate("\\n")
        """
    )
    assert found == {"other": [(300 + 64) << 20], "all": 2}
