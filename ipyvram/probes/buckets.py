"""A model comes in; the sizes of the buffers in which it gathers gradients from several processes go out.

`DistributedDataParallel` makes them in C++, where no Python object holds them; it tells their sizes to its log.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def bucket_bytes(module: nn.Module) -> tuple[int, ...]:
    """Bytes of each bucket of a model that is trained by several processes, nothing for any other."""
    if not isinstance(module, DistributedDataParallel):
        return ()
    told = module._get_ddp_logging_data().get("bucket_sizes", "")
    return tuple(int(size) for size in str(told).split(",") if size.strip().isdigit())
