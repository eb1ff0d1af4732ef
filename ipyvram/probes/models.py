"""A module comes in; the largest model that it is a part of goes out, with its path there: the name that says most.

Parts of a model are often called without it: by a method of it other than ``forward`` (``encode``, ``evaluate_actions``), or
one by one where it is made.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import nn

#: Of a name that stands for good: a variable of the notebook leads there.
FOR_GOOD = 1 << 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where a module is: the model, by its variable or class, and the path within, empty for the model itself."""

    model: str
    path: str
    weight: int  #: see `Models.add`

    def __str__(self) -> str:
        return f"{self.model}.{self.path}".rstrip(".")


class Models:
    """The models seen so far, each module in the one that says most. Keeps nothing alive."""

    def __init__(self) -> None:
        self._places: weakref.WeakKeyDictionary[nn.Module, Place] = weakref.WeakKeyDictionary()

    def add(self, root: nn.Module, label: str) -> int:
        """Note where the modules of a model are; how much its paths weigh.

        A model that a variable holds speaks for its parts, the first of several; else the one of most modules does.
        """
        parts = list(root.named_modules())
        weight = len(parts) if label == type(root).__name__ else FOR_GOOD
        for path, part in parts:
            known = self._places.get(part)
            if known is None or (weight > known.weight and path != known.path):
                self._places[part] = Place(label, path, weight)
        return weight

    def place(self, module: nn.Module) -> Place | None:
        """None for a module that is in no model seen so far."""
        return self._places.get(module)


def whole_first(modules: list[tuple[str, nn.Module]]) -> list[tuple[str, nn.Module]]:
    """The whole before its parts: the path within the model says more than the one within a part of it."""
    return sorted(modules, key=lambda named: -sum(1 for _ in named[1].modules()))
