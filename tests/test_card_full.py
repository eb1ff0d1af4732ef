"""A full card under torch's own allocator, with the stub of CUDA: the largest batch that fits really fits, and the next does not."""

from __future__ import annotations

SEARCH = """
    import torch
    import ipyvram
    from torch import nn

    def program(batch):
        model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU())
        model.cuda()
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(12):
            loss = model(torch.randn(batch, 3, 224, 224, device="cuda")).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def retries_at(batch):  # None where it runs out of memory
        torch.cuda.empty_cache()
        before = torch.cuda.memory_stats()["num_alloc_retries"]
        try:
            program(batch)
        except torch.OutOfMemoryError:
            return None
        return torch.cuda.memory_stats()["num_alloc_retries"] - before

    torch.cuda.init()
    torch.cuda.set_per_process_memory_fraction(FRACTION)
    found = ipyvram.compare_batches(program, limit="80%", progress=lambda text: None)
    kept, live = torch.cuda.get_per_process_memory_fraction(), torch.cuda.memory_allocated()
    free, total = torch.cuda.mem_get_info()
    outside = total - free - torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(FRACTION, (found.limit_bytes - outside) / total))
    fits, beyond = retries_at(found.largest.batch), retries_at(found.largest.beyond)
    width = found.largest.beyond - found.largest.batch
    result = [found.largest.status, fits, beyond != 0, width <= 0.05 * found.largest.batch, round(kept, 6), live]
"""


def test_the_batch_that_is_found_runs_and_the_next_does_not(run_on_stub):
    found = run_on_stub(SEARCH.replace("FRACTION", "1.0"), BYTES=4 << 30)
    assert found == ["verified", 0, True, True, 1.0, 0]


def test_a_limit_that_the_user_has_set_holds_in_the_trials(run_on_stub):
    found = run_on_stub(SEARCH.replace("FRACTION", "0.3"), BYTES=4 << 30)
    assert found == ["verified", 0, True, True, 0.3, 0]
