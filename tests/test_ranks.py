"""Several devices in one process, and several processes: an account for each, together on rank 0."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ipyvram.analysis import analyse
from ipyvram.ranks import Ranks, gather
from ipyvram.recording import Action, Device, Events, Recording, Trace
from ipyvram.render.ranks import bundle
from ipyvram.render.text import text
from ipyvram.report import Report
from tests.made import MIB, report

ROOT = Path(__file__).resolve().parents[1]

TRAIN = """
import os
import sys
sys.path.insert(0, {root!r})
import torch
import torch.distributed as dist
import ipyvram

def work(rank):
    model = torch.nn.Linear(64, 64 * (rank + 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ipyvram.measure(f"rank {{rank}}") as m:
        for _ in range(3):
            model(torch.randn(8, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    return m.report
"""
GLOO = (
    TRAIN
    + """
rank, file, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method="file://" + file, rank=rank, world_size=2)
ranks = work(rank).gather()
assert (ranks is None) == (rank == 1)
missing = ipyvram.gather(work(rank) if rank == 0 else None)
if rank == 0:
    open(out, "w").write(ranks.to_frame().to_json(orient="index"))
    assert [r is None for r in missing.reports] == [False, True]
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # gloo's threads may abort a process that leaves in the ordinary way
"""
)


def test_two_processes_give_a_table_on_rank_0(tmp_path):
    (tmp_path / "work.py").write_text(GLOO.format(root=str(ROOT)))
    command = [sys.executable, str(tmp_path / "work.py")]
    shared = [str(tmp_path / "store"), str(tmp_path / "out.json")]
    running = [
        subprocess.Popen([*command, str(rank), *shared], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=150)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    table = json.loads((tmp_path / "out.json").read_text())
    weights = [64 * 64 * n * 4 + 64 * n * 4 for n in (1, 2)]
    assert [table[rank]["parameters"] for rank in ("0", "1")] == weights
    assert [table[rank]["steps"] for rank in ("0", "1")] == [3, 3]


LAUNCHED = (
    TRAIN
    + """
from accelerate import PartialState, notebook_launcher
def function(out):
    state = PartialState(cpu=True)
    ranks = work(state.process_index).gather()
    if ranks is not None:
        open(out, "w").write(str(len(ranks.reports)))
notebook_launcher(function, (sys.argv[1],), num_processes=2)
"""
)


@pytest.mark.extras
def test_accelerate_notebook_launcher(tmp_path):
    pytest.importorskip("accelerate")
    (tmp_path / "work.py").write_text(LAUNCHED.format(root=str(ROOT)))
    command = [sys.executable, str(tmp_path / "work.py"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (tmp_path / "out").exists(), done.stdout + done.stderr
    assert (tmp_path / "out").read_text() == "2"


def test_without_a_group_it_says_what_is_missing():
    with pytest.raises(RuntimeError, match="not initialised"):
        gather(report())


def ranks() -> Ranks:
    sizes = (100, 80)
    return Ranks((*(report({"activations": s * MIB}, device=f"cuda:{i}") for i, s in enumerate(sizes)), None))


def test_the_table_tells_who_needs_most():
    found = ranks()
    assert found.highest == 0
    assert found.spread == pytest.approx(0.2)
    data = bundle(found)
    for part in ("3 ranks: highest peak 100 MiB on rank 0, the lowest 20 % below", "cuda:1", "80.0 MiB", "no report"):
        assert part in data["text/plain"]
        assert part in data["text/html"]
    assert found.to_frame()["peak_bytes"].tolist()[:2] == [100 * MIB, 80 * MIB]
    json.dumps(data["application/vnd.ipyvram.ranks.v1+json"], allow_nan=False)


def test_hostile_ranks_are_inert():
    hostile = report(device="<img src=x>", peak_when="\x1b[2J", error="<script>x</script>: y")
    data = bundle(Ranks((hostile,)))
    assert "<img" not in data["text/html"]
    assert "<script" not in data["text/html"]
    assert "\x1b" not in data["text/plain"]


# -- several devices in one process ------------------------------------------------------------------------------------


def trace(device: str, sizes: list[int]) -> Trace:
    rows = [(Action.ALLOC, i + 1, size, 0, 1000 + i, -1, -1) for i, size in enumerate(sizes)]
    return Trace(device, "storages", 900, 2000, Events.from_rows(rows))


def test_every_device_has_an_account_of_its_own():
    """Model parallel: the busier card is the report, the other one stands in `others`, and both are shown."""
    devices = tuple(Device(f"cuda:{i}", "T4", 16 * 2**30) for i in range(2))
    traces = (trace("cpu", [5 * MIB]), trace("cuda:0", [10 * MIB]), trace("cuda:1", [10 * MIB, 20 * MIB]))
    made = analyse(Recording(900, 2000, devices=(*devices, Device("cpu", "CPU")), traces=traces))
    accounts = {r.device: r.peak_bytes for r in (made, *made.others)}
    assert accounts == {"cuda:1": 30 * MIB, "cuda:0": 10 * MIB, "cpu": 5 * MIB}
    assert made.device == "cuda:1"
    for one in (made, *made.others):
        assert sum(one.peak.values()) == one.peak_bytes
        assert all(np.diff([0, *one.timeline_data.allocated]) >= 0)
    assert {"cuda:0", "cuda:1"} <= set(text(made).replace("·", " ").split())
    assert Report.from_json(made.to_json()) == made
