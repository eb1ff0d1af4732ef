"""Where the meter's place stands among a cell's outputs: messages to the front end come in, when to make the place goes out.

Pure. Front ends agree on what is modelled here: ``clear_output(wait=False)`` removes every output at once,
``clear_output(wait=True)`` does so when the next output arrives, and an update in place is no output.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Messages that add to what is shown under a cell, and so set off a clear that waits.
OUTPUTS = frozenset({"stream", "display_data", "execute_result", "error"})

#: Messages that have to be looked into.
TOLD_BY_CONTENT = frozenset({"clear_output", "comm_msg", "comm_close"})


class Standing:
    """Follows the messages of one cell.

    Attributes
    ----------
    there : bool
        The place is among the outputs.
    pending : bool
        A clear of the user's waits for the next output.
    """

    def __init__(self) -> None:
        self.there = self.pending = False
        self._captors: set[str] = set()  # comm ids of the widgets that take the cell's outputs (``ipywidgets.Output``)

    @property
    def free(self) -> bool:
        """Whether the place could be made now: it would set off no clear and land in no widget."""
        return not self.pending and not self._captors

    def wants_before(self, kind: str) -> bool:
        """Whether the place has to be made right before this message: before text, which a place in its middle would cut in two."""
        return kind == "stream" and not self._captors and (self.pending or not self.there)

    def made(self) -> None:
        """The place was made, as an output of its own."""
        self.there, self.pending = True, False

    def passed(self, kind: str, content: Mapping[str, Any], parent: str) -> bool:
        """A message of the cell ``parent`` went out; ``content`` is read only for kinds of `TOLD_BY_CONTENT`.

        Returns
        -------
        bool
            Whether the place is to be made right behind it: it took the place away, or set off the clear that kept it from being
            made. Not so at the end of a cell, which a result and an error are.
        """
        if kind.startswith("comm_"):
            self._heed_widget(content, parent)
            return False
        if self._captors:
            return False  # it went into a widget: nothing under the cell has changed
        could_be = self.there or self.pending
        if kind == "clear_output":
            self.pending = bool(content.get("wait"))
            self.there = self.there and self.pending
        elif kind in OUTPUTS and self.pending:
            self.there = self.pending = False
        return could_be and not self.there and not self.pending and kind in ("clear_output", "display_data")

    def _heed_widget(self, content: Mapping[str, Any], parent: str) -> None:
        comm, state = str(content.get("comm_id")), (content.get("data") or {}).get("state") or {}
        if state.get("msg_id") == parent:
            self._captors.add(comm)
        elif "msg_id" in state or not content.get("data"):  # it takes no more, or was closed
            self._captors.discard(comm)
