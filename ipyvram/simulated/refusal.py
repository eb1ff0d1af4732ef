"""The one way in which an estimate says that it cannot be made."""

from __future__ import annotations


class CannotEstimate(ValueError):
    """The cell does something that has no estimate; the message says what, and what would help."""
