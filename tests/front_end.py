"""A front end that follows the messaging protocol: the messages of a cell come in, what stands under it goes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: Stands for the live meter's place among the outputs.
PLACE = "place"


@dataclass
class FrontEnd:
    """What is under one cell, as JupyterLab and nbclient keep it.

    Attributes
    ----------
    outputs : list of [kind, text or MIME bundle]
    widget : list of (kind, content)
        What an ``ipywidgets.Output`` took instead.
    """

    outputs: list[list[Any]] = field(default_factory=list)
    widget: list[Any] = field(default_factory=list)
    clear_next: bool = False
    captured: bool = False

    def take(self, kind: str, content: dict[str, Any]) -> None:
        """See one message."""
        if kind == "comm_msg":
            state = content["data"].get("state", {})
            self.captured = bool(state.get("msg_id", self.captured))
        elif self.captured:
            self.widget.append((kind, content))
        elif kind == "clear_output":
            self.clear_next = self.clear_next or content["wait"]
            if not content["wait"]:
                self.outputs.clear()
        elif kind == "update_display_data":
            for output in self.outputs:
                if output[0] == PLACE:
                    output[1] = content["data"]
        elif kind in ("stream", "display_data", "execute_result", "error"):
            self._add(kind, content)

    def _add(self, kind: str, content: dict[str, Any]) -> None:
        if self.clear_next:
            self.outputs.clear()
        self.clear_next = False
        last = self.outputs[-1] if self.outputs else [None]
        if kind == "stream" and last[0] == "stream":
            last[1] += content["text"]
        elif str(content.get("transient", {}).get("display_id", "")).startswith("ipyvram-"):
            self.outputs.append([PLACE, content["data"]])
        else:
            self.outputs.append([kind, content.get("text") or content.get("data")])

    @property
    def users(self) -> list[list[Any]]:
        """All but the meter's place."""
        return [output for output in self.outputs if output[0] != PLACE]

    @property
    def places(self) -> list[Any]:
        """What the meter's places show."""
        return [output[1] for output in self.outputs if output[0] == PLACE]
