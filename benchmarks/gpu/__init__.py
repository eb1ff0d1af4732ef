"""The checks that `benchmarks.gpu_check` runs on a card, and `tests/gpu` one by one."""
