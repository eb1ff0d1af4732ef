"""Programs with the stub for a card, each in a process of its own that torch is in already: a server imports it and forks."""

from __future__ import annotations

import json
import multiprocessing
import os
import textwrap
import traceback
from collections.abc import Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")


def serve(environment: Mapping[str, str]) -> None:
    """Start the server, with ``environment`` added to this process's, unless it runs."""
    _CONTEXT.set_forkserver_preload(["torch", "ipyvram"])
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def run(code: str, variables: Mapping[str, str], *, timeout: float = 300) -> Any:
    """What lines of Python leave in ``result``, as JSON would give it; an error of theirs fails with its traceback."""
    ours, theirs = _CONTEXT.Pipe()
    process = _CONTEXT.Process(target=_program, args=(textwrap.dedent(code), dict(variables), theirs))
    process.start()
    theirs.close()
    try:
        error, result = ours.recv() if ours.poll(timeout) else (f"no answer in {timeout:.0f} s", "")
    except EOFError:
        process.join()
        error, result = f"the process ended with {process.exitcode}", ""
    finally:
        process.kill()
        process.join()
    assert not error, error
    return json.loads(result)


def _program(code: str, variables: dict[str, str], answer: Connection) -> None:
    os.environ.update(variables)
    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(code, "<program>", "exec"), names)
        answer.send(("", json.dumps(names["result"])))
    except BaseException:
        answer.send((traceback.format_exc(), ""))
