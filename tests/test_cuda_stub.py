"""The stub of CUDA: with it, torch's own allocator runs where there is no card."""

from __future__ import annotations


def test_torch_sees_a_card_and_its_allocator_counts(run_on_stub):
    found = run_on_stub(
        """
        import torch
        x = torch.empty(1000, 1000, device="cuda")
        free, total = torch.cuda.mem_get_info()
        result = [torch.cuda.get_device_name(), torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), total]
        """,
        BYTES=8 << 30,
    )
    assert found == ["NVIDIA Stub", 4_000_256, 20 << 20, 8 << 30]


def test_every_number_on_the_card_is_zero(run_on_stub):
    assert run_on_stub("import torch\nresult = torch.arange(1, 5).cuda().cpu().tolist()") == [0, 0, 0, 0]


def test_the_card_can_be_full(run_on_stub):
    found = run_on_stub(
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


def test_another_process_is_seen_on_the_same_card(run_on_stub):
    found = run_on_stub(
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
