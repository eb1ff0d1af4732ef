"""A place among the outputs of a running cell that outlives the user's ``clear_output``: MIME bundles come in and are shown.

Knows ipykernel, not IPython. Everything that a kernel shows passes one thread, in the order in which front ends see it. There
a `Place` looks at each message of its cell, sends it on unchanged, and puts its own between them: right before the
cell's first text, and again where a clear took it away. It needs no lock, costs the cell's thread nothing, and never sets off a
clear that waits. `FixedPlace` is for kernels without such a thread: made when the cell begins, gone when it is cleared.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from ipyvram.render.standing import TOLD_BY_CONTENT, Standing

Data = dict[str, Any]

#: Takes no room in a page. An empty mapping would do, but nbconvert warns about each of those.
EMPTY: Data = {"text/plain": "", "text/html": ""}

_DELIMITER = b"<IDS|MSG>"  # of the messaging protocol: what follows is signature, header, parent, metadata, content
_ANSWER_S = 2.0  # for the kernel's thread to come round to us


class AnyPlace(Protocol):
    """Where something can be shown in place of what was shown before."""

    def show(self, data: Data) -> None:
        """Replace what was shown; from any thread."""

    def close(self) -> str | None:
        """Empty the place, on the cell's thread.

        Returns
        -------
        str or None
            The place's display id, left as it is, where the user's ``clear_output(wait=True)`` still waits: a new output would
            take away what the user left there, an update of this id would not.
        """


def place_for(ip: Any) -> AnyPlace:
    """A place under the cell that a kernel's shell is running."""
    thread = getattr(ip.kernel, "iopub_thread", None)
    known = all(hasattr(thread, name) for name in ("_really_send", "schedule")) and hasattr(ip.display_pub, "session")
    return Place(thread, ip.display_pub) if known else FixedPlace(ip.display_pub)


class Place:
    """From `__init__` to `close`, on the thread that sends for the kernel.

    Parameters
    ----------
    thread : ipykernel.iostream.IOPubThread
        Its ``_really_send`` is replaced until `close`; in a forked child the replacement does nothing of its own.
    publisher : ipykernel.zmqshell.ZMQDisplayPublisher
    """

    def __init__(self, thread: Any, publisher: Any) -> None:
        self._thread, self._session, self._topic = thread, publisher.session, publisher.topic
        self._parent = dict(publisher.parent_header)
        self._pid, self._id, self._data = os.getpid(), f"ipyvram-{uuid.uuid4().hex}", EMPTY
        self._standing, self._closing = Standing(), False
        self.send_multipart = thread._really_send  # with it this is the "socket" of our own messages
        self._restored = dict(thread.__dict__).get("_really_send")  # None: the method of its class
        self._observed: Callable[..., None] = self._observe  # one object: a method is a new one at each look
        thread._really_send = self._observed

    def show(self, data: Data) -> None:
        """Replace what is shown; the place is made now if that disturbs nothing, else with the cell's next output."""
        self._thread.schedule(lambda: self._guard(self._show, data))

    def close(self) -> str | None:
        """Empty the place and look at messages no longer."""
        self._closing = True  # what the cell has written and not yet sent needs no place any more
        answer: list[str | None] = []
        done = threading.Event()

        def end() -> None:
            self._guard(lambda: answer.append(self._end()))
            done.set()

        try:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
        finally:
            self._thread.schedule(end)
        done.wait(_ANSWER_S)
        return answer[0] if answer else None

    # -- on the kernel's sending thread ------------------------------------------------------------------------------

    def _observe(self, parts: Any, *more: Any, **options: Any) -> None:
        message = None if os.getpid() != self._pid else self._guard(self._read, parts)
        if message is not None and not self._closing and self._standing.wants_before(message[0]):
            self._guard(self._make)
        self.send_multipart(parts, *more, **options)
        if message is not None:
            self._guard(self._passed, *message)

    def _read(self, parts: list[bytes]) -> tuple[str, Mapping[str, Any]] | None:
        """Kind and content of a message of our cell; None for any other."""
        at, unpack = parts.index(_DELIMITER), self._session.unpack
        kind = str(unpack(parts[at + 2])["msg_type"])
        if unpack(parts[at + 3]).get("msg_id") != self._parent.get("msg_id"):
            return None
        return kind, unpack(parts[at + 5]) if kind in TOLD_BY_CONTENT else {}

    def _passed(self, kind: str, content: Mapping[str, Any]) -> None:
        wanted = self._standing.passed(kind, content, self._parent["msg_id"])
        if wanted and self._data is not EMPTY and not self._closing:
            self._make()

    def _show(self, data: Data) -> None:
        if self._closing:
            return
        self._data = data
        if self._standing.there:
            self._send("update_display_data")
        elif self._standing.free:
            self._make()

    def _make(self) -> None:
        self._send("display_data")
        self._standing.made()

    def _end(self) -> str | None:
        self._step_aside()
        if not self._standing.there:
            return None
        if self._standing.pending:
            return self._id
        self._data = EMPTY
        self._send("update_display_data")
        return None

    def _step_aside(self) -> None:
        if self._thread.__dict__.get("_really_send") is not self._observed:
            return  # somebody observes us in turn: from now on we only pass on
        if self._restored is None:
            del self._thread._really_send
        else:
            self._thread._really_send = self._restored

    def _send(self, kind: str) -> None:
        content = {"data": self._data, "metadata": {}, "transient": {"display_id": self._id}}
        self._session.send(self, self._session.msg(kind, content, parent=self._parent), ident=self._topic)

    def _guard(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """A fault of ours must not take the kernel's outputs with it."""
        with contextlib.suppress(Exception):
            return work(*arguments)
        self._closing = True
        return None


class FixedPlace:
    """A place made now and updated by its id."""

    def __init__(self, publisher: Any) -> None:
        self._publisher, self._id, self._filled = publisher, f"ipyvram-{uuid.uuid4().hex}", False
        self._publish(EMPTY, update=False)

    def show(self, data: Data) -> None:
        """Update the place."""
        self._filled = True
        self._publish(data, update=True)

    def close(self) -> None:
        """Empty the place."""
        if self._filled:
            self._publish(EMPTY, update=True)

    def _publish(self, data: Data, update: bool) -> None:
        self._publisher.publish(data=data, metadata={}, transient={"display_id": self._id}, update=update)
