"""What models offer by themselves to save memory: a notebook's variables come in, the calls go out. Nothing is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ipyvram.probes.namespace import DEEP, holdings
from ipyvram.recording import Observation

#: What libraries of models call the method that sets checkpoints around a model's blocks, the newer name first …
CHECKPOINTING = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
#: … and the attribute that denies it.
SUPPORTED = "supports_gradient_checkpointing"


def checkpointing(namespace: Mapping[str, Any]) -> Iterator[Observation]:
    """Models that can set their checkpoints themselves: ``name`` is the call, ``holder`` the path of the part that has it."""
    for name, model in holdings(namespace, *DEEP):
        if isinstance(model, nn.Module):
            for path, part in model.named_modules():
                kind = type(part)
                call = next((call for call in CHECKPOINTING if callable(getattr(kind, call, None))), "")
                if call and getattr(kind, SUPPORTED, True):
                    owner = f"{name}.{path}" if path else name
                    yield Observation("checkpointing", name=f"{owner}.{call}()", holder=path)
                    break  # of its parts the outermost
