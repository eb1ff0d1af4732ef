"""Real kernels for tests: start one, run cells in it, see every message that a front end would see."""

from __future__ import annotations

import os
import queue
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

REPORT_TYPE = "application/vnd.ipyvram.report.v1+json"

#: Name → python that runs the kernel; the second is IPython 7.34 with ipykernel 6.17.1, where a path is given.
PYTHONS = {"current": sys.executable, "floor": os.environ.get("IPYVRAM_FLOOR_PYTHON", "")}


def until_closed(terminal: int) -> bytes:
    """All that a process writes to a pseudo-terminal, until its end is closed."""
    written = b""
    try:
        while chunk := os.read(terminal, 65536):
            written += chunk
    except OSError:
        pass  # the other end is closed
    return written


@dataclass
class Outcome:
    """What one execute request came to."""

    reply: dict[str, Any]
    messages: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    meter: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  #: what the live meter shows, kept apart
    order: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  #: both, as they came

    @property
    def status(self) -> str:
        return self.reply["status"]

    def contents(self, kind: str) -> list[dict[str, Any]]:
        return [content for name, content in self.messages if name == kind]

    def stream(self, name: str) -> str:
        return "".join(c["text"] for c in self.contents("stream") if c["name"] == name)

    @property
    def stdout(self) -> str:
        return self.stream("stdout")

    @property
    def stderr(self) -> str:
        return self.stream("stderr")

    @property
    def result(self) -> str | None:
        """The text of ``Out[n]``; None when nothing was shown."""
        results = self.contents("execute_result")
        return results[0]["data"]["text/plain"] if results else None

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [c["data"][REPORT_TYPE] for c in self.contents("display_data") if REPORT_TYPE in c["data"]]

    @property
    def report(self) -> dict[str, Any]:
        """The only report under the cell."""
        assert len(self.reports) == 1, self.messages
        return self.reports[0]

    @property
    def notes(self) -> list[str]:
        """Displayed texts that are not reports."""
        return [c["data"]["text/plain"] for c in self.contents("display_data") if REPORT_TYPE not in c["data"]]

    @property
    def our_frames(self) -> list[str]:
        """Files of the package that the traceback names (the folder around it may be called the same)."""
        return re.findall(r"ipyvram[/\\](?:\w+[/\\])*\w+\.py", self.traceback)

    @property
    def traceback(self) -> str:
        errors = self.contents("error")
        return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(errors[0]["traceback"])) if errors else ""


class Kernel:
    """A running kernel and a client of it."""

    def __init__(self, python: str, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        # Sockets in a folder instead of ports: two kernels that start at once may be given the same port.
        self._sockets = tempfile.TemporaryDirectory(prefix="k")
        where = {"transport": "ipc", "ip": os.path.join(self._sockets.name, "k")} if os.name == "posix" else {}
        self.manager = KernelManager(**where)
        argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager._kernel_spec = KernelSpec(argv=argv, display_name="test", language="python")
        root = str(Path(__file__).resolve().parents[1])
        env = (
            os.environ
            | dict(environment or {})
            | {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
                "IPYTHONDIR": str(directory / "ipython"),
            }
        )
        self.manager.start_kernel(cwd=str(directory), env=env)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, code: str, *, timeout: float = 60, on_stdout: Callable[[str], None] | None = None) -> Outcome:
        """Run a cell to its end; ``on_stdout`` sees each text as it arrives."""
        deadline = time.monotonic() + timeout
        outcome = self._run(code, deadline, on_stdout)
        while outcome.status == "aborted":  # the kernel still drops what was queued behind an error
            outcome = self._run(code, deadline, on_stdout)
        return outcome

    def _run(self, code: str, deadline: float, on_stdout: Callable[[str], None] | None) -> Outcome:
        request = self.client.execute(code)
        outcome, idle = Outcome({}), False
        while not idle:
            message = self._next(self.client.get_iopub_msg, deadline, code)
            if message["parent_header"].get("msg_id") != request:
                continue
            kind, content = message["msg_type"], message["content"]
            idle = kind == "status" and content["execution_state"] == "idle"
            ours = str(content.get("transient", {}).get("display_id", "")).startswith("ipyvram-")
            outcome.order.append((kind, content))
            (outcome.meter if ours else outcome.messages).append((kind, content))
            if kind == "stream" and on_stdout is not None:
                on_stdout(content["text"])
        while not outcome.reply:
            message = self._next(self.client.get_shell_msg, deadline, code)
            if message["parent_header"].get("msg_id") == request:
                outcome.reply = message["content"]
        return outcome

    def _next(self, get: Callable[..., dict[str, Any]], deadline: float, code: str) -> dict[str, Any]:
        try:
            return get(timeout=max(0.1, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError(f"no answer from the kernel to:\n{code}") from None

    def value(self, expression: str) -> str:
        """``repr`` of an expression in the kernel, without a trace in its history."""
        deadline, content = time.monotonic() + 60, {"status": "aborted"}
        while content["status"] == "aborted":  # as in `run`
            request = self.client.execute("", silent=True, user_expressions={"value": expression})
            message = self._next(self.client.get_shell_msg, deadline, expression)
            while message["parent_header"].get("msg_id") != request:
                message = self._next(self.client.get_shell_msg, deadline, expression)
            content = message["content"]
        answer = content["user_expressions"]["value"]
        assert answer["status"] == "ok", answer
        return answer["data"]["text/plain"]

    def complete(self, code: str) -> list[str]:
        reply = self.client.complete(code, reply=True, timeout=60)
        return reply["content"]["matches"]

    def interrupt(self) -> None:
        self.manager.interrupt_kernel()

    def fresh(self) -> Kernel:
        """The same process with an empty namespace and the extension loaded anew."""
        outcome = self.run("%reset -f\n%reload_ext ipyvram")
        assert outcome.status == "ok", outcome.messages
        return self

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        self._sockets.cleanup()


def start(name: str, directory: Path) -> Kernel:
    """A kernel of the environment ``name`` of `PYTHONS`; skips the test where that is not set up."""
    if not PYTHONS[name]:
        pytest.skip("IPYVRAM_FLOOR_PYTHON does not name a python with IPython 7.34 and ipykernel 6.17.1")
    return Kernel(PYTHONS[name], directory)
