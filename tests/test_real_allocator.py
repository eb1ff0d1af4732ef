"""The model of the allocator does what torch's own does, block by block; torch's runs on a stub of the CUDA runtime."""

from __future__ import annotations

import pytest

MIB = 1 << 20

#: Setting of torch → what else the program does, see `tests.real_allocator.Plan`.
CASES = {
    "": {},
    "max_split_size_mb:32": {},
    "max_split_size_mb:40,expandable_segments:True": {"seed": 11},
    "roundup_power2_divisions:4": {},
    "roundup_power2_divisions:[1:2,4:8,16:4,>:4]": {},
    "expandable_segments:True": {"pools": True},
    "garbage_collection_threshold:0.5": {"fraction": 0.6},
    "max_split_size_mb:64,max_non_split_rounding_mb:40,garbage_collection_threshold:0.4": {"fraction": 0.5},
    "pinned_use_cuda_host_register:True,pinned_num_register_threads:2": {"switched": True},
    "large_segment_size_mb:40,max_split_size_mb:48,expandable_segments:True": {"seed": 11},
}
_NEWER = ("large_segment_size_mb",)  # options that older torch refuses


@pytest.mark.parametrize("conf", CASES)
def test_blocks_events_and_counters_are_those_of_torch(run_on_stub, conf):
    pools = CASES[conf].get("pools")  # a full card within a private pool is another matter
    program = f"""
        import os
        os.environ["PYTORCH_CUDA_ALLOC_CONF"] = {conf!r}
        from tests.real_allocator import Plan, run
        result = run(Plan(**{ {"conf": conf, "seed": 1, "operations": 300, **CASES[conf]} }))
    """
    try:
        differences = run_on_stub(program, BYTES=(16_000 if pools else 2_000) * MIB, DEVICES=2)
    except AssertionError as error:
        if any(name in conf for name in _NEWER) and "Unrecognized" in str(error):
            pytest.skip("this torch does not know the option")
        raise
    assert differences == []
