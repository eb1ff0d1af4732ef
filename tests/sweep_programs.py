"""Programs for tests of the sweep, and a way to compare a namespace with itself before, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ipyvram.sweep.reachable import walk

#: A cell that trains what an earlier cell made, with all that is usual around it.
OUTER_SETUP = """\
import random
import numpy as np
import torch
torch.manual_seed(3)
data = torch.randn(256, 12)
labels = torch.randint(0, 4, (256,))
model = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
optimizer = torch.optim.AdamW(model.parameters())
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
scaler = torch.amp.GradScaler("cpu")
history = {"loss": [], "best": None}
generator = np.random.default_rng(5)
sampler = torch.Generator().manual_seed(9)
for _ in range(3):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(data[:8]), labels[:8]).backward()
    optimizer.step()
    scheduler.step()
"""

OUTER_CELL = """\
batch_size = 8
for epoch in range(9):
    for start in range(0, 128, batch_size):
        rows = torch.randperm(len(data), generator=sampler)[:batch_size]
        noise = torch.randn(batch_size, 12) + generator.normal() + np.random.normal() + random.random()
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(data[rows] + 0.1 * noise.float()), labels[rows])
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
        history["loss"].append(loss.item())
        history["best"] = min(history["loss"])
        data += 1e-3
        model.new_attribute = loss
"""


def fingerprint(namespace: dict[str, Any]) -> dict[str, Any]:
    """Everything the variables lead to, by path: bytes of tensors, their gradients and places, and plain values."""
    found: dict[str, Any] = {"names": sorted(namespace)}
    for path, value in walk([n for n in namespace if not n.startswith("__")], namespace):
        key = f"{path} {type(value).__name__}"
        if isinstance(value, Tensor):
            found[key] = _tensor(value)
        elif isinstance(value, np.ndarray):
            found[key] = value.tobytes()
        elif isinstance(value, torch.Generator):
            found[key] = value.get_state().numpy().tobytes()
        elif isinstance(value, np.random.Generator):
            found[key] = repr(value.bit_generator.state)
        elif isinstance(value, dict):
            found[key] = [(repr(k) if not isinstance(k, Tensor) else id(k), _plain(v)) for k, v in value.items()]
        elif isinstance(value, (list, tuple, set)):
            found[key] = [_plain(item) for item in value]
        elif isinstance(getattr(value, "__dict__", None), dict):
            found[key] = [(name, _plain(item)) for name, item in vars(value).items()]
    return found


def global_fingerprint() -> dict[str, Any]:
    """Random numbers and flags of the process."""
    import random

    return {
        "torch": torch.get_rng_state().numpy().tobytes(),
        "numpy": repr(np.random.get_state()),
        "random": random.getstate(),
        "flags": (
            torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic,
            torch.is_grad_enabled(),
            torch.get_default_dtype(),
        ),
    }


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    if tensor.layout is not torch.strided:
        return (id(tensor), *_tensor(tensor.detach().to_dense())[1:])
    content = tensor.detach().clone().contiguous().view(-1).view(torch.uint8) if tensor.numel() else torch.empty(0)
    grad = None if not tensor.is_leaf or tensor.grad is None else _tensor(tensor.grad)[1:]
    return (
        id(tensor),
        tensor.shape,
        tensor.stride(),
        tensor.dtype,
        content.numpy().tobytes(),
        tensor.requires_grad,
        grad,
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)
