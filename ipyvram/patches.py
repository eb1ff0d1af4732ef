"""Attributes of other modules, replaced for a while and put back in reverse order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MISSING = object()


class Patches:
    """What was replaced; `undo` puts everything back, whatever happened in between."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace ``owner.name``; a name that this version does not have is left out."""
        if isinstance(owner, dict):
            before = owner.get(name, _MISSING)
            owner[name] = value
            self.later(lambda: owner.pop(name, None) if before is _MISSING else owner.__setitem__(name, before))
            return
        own = vars(owner).get(name, _MISSING)  # not `getattr`: plain functions and static methods stay as they are
        if own is _MISSING:
            return
        setattr(owner, name, value)
        self.later(lambda: setattr(owner, name, own))

    def later(self, action: Callable[[], Any]) -> None:
        """Run ``action`` when everything is undone."""
        self._undo.append(action)

    def undo(self) -> None:
        """Put back, newest first; one failure does not keep the others, and is raised at the end."""
        failure: Exception | None = None
        while self._undo:
            action = self._undo.pop()
            try:
                action()
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure
