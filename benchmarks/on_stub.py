"""Programs run with torch's own CUDA operators and allocator over the stub runtime of the tests; rows of figures come back.

`Card` in, `Runner.run(source)` → what was allocated. Every program runs in a fork of one process that has imported torch and not begun
CUDA, so each finds a card on which nothing happened. No kernel runs: every number on the card is 0, and cuDNN works in nothing.

    python -m benchmarks.on_stub     # the process itself: one JSON request a line in, one JSON answer a line out
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ipyvram.cards import Card
from ipyvram.simulated.refusal import CannotEstimate
from tests import cuda_stub

Estimated = Callable[[str], tuple[Any, Any, Any]]  #: text of a program → recording, report and estimation

ROOT = Path(__file__).resolve().parents[1]


class Runner:
    """The process with the stub; a context.

    Parameters
    ----------
    card : Card
        The stub answers with its memory, capability and multiprocessors.
    cudnn_workspace_bytes : int
        What every convolution of cuDNN works in.
    """

    def __init__(self, card: Card, cudnn_workspace_bytes: int = 0) -> None:
        self._card, self._workspace = card, cudnn_workspace_bytes

    def __enter__(self) -> Runner:
        self._folder = tempfile.TemporaryDirectory()
        settings = {
            "IPYVRAM_STUB_BYTES": self._card.total_bytes,
            "IPYVRAM_STUB_CAPABILITY": 10 * self._card.capability[0] + self._card.capability[1],
            "IPYVRAM_STUB_MULTIPROCESSORS": self._card.multiprocessors,
            "IPYVRAM_STUB_CUDNN_WORKSPACE": self._workspace,
        }
        stub = cuda_stub.build(Path(self._folder.name))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.on_stub"],
            cwd=ROOT,
            env={**os.environ, **stub, **{name: str(value) for name, value in settings.items()}},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def again(self, source: str, card: str) -> dict[str, Any]:
        """Peaks of a program that has run before in the same namespace: estimated there, and then of its second run.

        Returns
        -------
        dict
            ``allocated``, ``reserved`` (by torch's counters), ``predicted``, ``predicted_reserved``; bytes.

        Raises
        ------
        RuntimeError
            The program failed; its traceback.
        """
        return self._ask([source, card])

    def run(self, source: str) -> dict[str, Any]:
        """Figures of one program.

        Returns
        -------
        dict
            ``allocated``, ``reserved`` (peaks by torch's counters), ``peak`` (category → bytes, by ipyvram's measurement),
            ``requests`` (bytes asked of the allocator, in order), ``who`` (for each, the innermost line of Python, if any).

        Raises
        ------
        RuntimeError
            The program failed; its traceback.
        """
        return self._ask(source)

    def _ask(self, question: object) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("the process with the stub has died")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise RuntimeError(found["error"])
        return found


# -- beside the estimate ---------------------------------------------------------------------------------------------------


def sources(beginnings: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Name and text of every program, or of those whose name begins with one of ``beginnings``."""
    from benchmarks import more_programs, workloads
    from benchmarks.gpu import programs

    found = [(case.name, workloads.program(case)) for case in workloads.cases()]
    found += [(name, programs.text_of(name, small=False)) for name in programs.OTHERS]
    found += [(name, more_programs.text_of(name)) for name in more_programs.PROGRAMS]
    return ((name, text) for name, text in found if not beginnings or name.startswith(beginnings))


def compared(name: str, source: str, runner: Runner, estimated: Estimated) -> dict[str, Any]:
    """One program under torch's own CUDA operators and allocator, and estimated; where it fails, why."""
    try:
        real = runner.run(source)
    except RuntimeError as error:
        return {"case": name, "failed": str(error).strip().splitlines()[-1]}
    try:
        _, report, estimation = estimated(source)
    except CannotEstimate as error:
        return {"case": name, "refused": str(error)}
    asked = real["requests"]
    predicted = [row.size for row in estimation.memory.rows if row.alloc]
    blocks = difflib.SequenceMatcher(None, asked, predicted, autojunk=False).get_matching_blocks()
    apart = {
        c: report.peak.get(c, 0) - real["peak"].get(c, 0) for c in sorted(real["peak"].keys() | report.peak.keys())
    }
    return {
        "case": name,
        "allocated_bytes": real["allocated"],
        "allocated_error": report.peak_bytes / real["allocated"] - 1,
        "reserved_bytes": real["reserved"],
        "reserved_error": (report.peak_reserved_bytes or 0) / real["reserved"] - 1,
        "requests": len(asked),
        "ordered_match": sum(block.size for block in blocks) / max(len(asked), len(predicted)),
        "categories": {c: count / real["allocated"] for c, count in apart.items() if count},
    }


def compared_again(name: str, source: str, runner: Runner, card: str) -> dict[str, Any]:
    """The estimate of a cell that has run before, beside its second run; where that fails, why."""
    try:
        real = runner.again(source, card)
    except RuntimeError as error:
        return {"case": name, "failed": str(error).strip().splitlines()[-1]}
    return {
        "case": name,
        "allocated_bytes": real["allocated"],
        "allocated_error": real["predicted"] / real["allocated"] - 1,
        "reserved_bytes": real["reserved"],
        "reserved_error": real["predicted_reserved"] / real["reserved"] - 1,
    }


# -- in the process with the stub ------------------------------------------------------------------------------------------


def _serve() -> None:
    import torch
    import torchvision  # noqa: F401 - once, before the forks

    import ipyvram.measuring  # noqa: F401

    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a program prints is no answer
    for line in sys.stdin:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            with os.fdopen(writer, "w") as back:
                back.write(json.dumps(_answer(json.loads(line))))
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as back:
            answer = back.read()
        _, status = os.waitpid(child, 0)
        out.write((answer or json.dumps({"error": f"the program ended its process (status {status})"})) + "\n")
        out.flush()


def _answer(question: Any) -> dict[str, Any]:
    try:
        return _measured(question) if isinstance(question, str) else _again(*question)
    except BaseException:
        return {"error": traceback.format_exc()}


def _measured(source: str) -> dict[str, Any]:
    import torch

    from ipyvram.analysis import analyse
    from ipyvram.options import Options
    from ipyvram.recording import Action, Cell
    from ipyvram.run import Run

    code, namespace = compile(source, "<ipython-input-program>", "exec"), {"__name__": "__main__", "torch": torch}
    torch.cuda.init()
    run = Run(Options(trace_steps=1000), Cell(source, "<ipython-input-program>"), namespace)
    run.start()
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, namespace)
    recording = run.stop()
    report = analyse(recording)
    trace = next(t for t in recording.traces if t.device.startswith("cuda"))
    rows = [i for i, action in enumerate(trace.events.action) if action == Action.ALLOC]
    stacks = [recording.stacks[i] if i >= 0 else () for i in trace.events.stack[rows]]
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "measured_allocated": report.peak_bytes,
        "peak": {name: count for name, count in report.peak.items() if count},
        "requests": trace.events.size[rows].tolist(),
        "who": [str(stack[0]) if stack else "" for stack in stacks],
    }


def _again(source: str, card: str) -> dict[str, Any]:
    import gc

    import torch

    from ipyvram import cards
    from ipyvram.analysis import analyse
    from ipyvram.options import Options
    from ipyvram.recording import Cell
    from ipyvram.simulated.estimation import Estimation

    code, namespace = compile(source, "<ipython-input-program>", "exec"), {"__name__": "__main__", "torch": torch}
    torch.cuda.init()
    large = dataclasses.replace(cards.find(card), total_bytes=torch.cuda.get_device_properties(0).total_memory)

    def run() -> None:
        exec(code, namespace)
        gc.collect()
        torch.cuda.empty_cache()

    with contextlib.redirect_stdout(io.StringIO()):
        run()
        estimation = Estimation(Options(trace_steps=1000), large, namespace, Cell(source, "<ipython-input-program>"))
        report = analyse(estimation.run(lambda: exec(code, namespace), code=code))
        gc.collect()
        torch.cuda.reset_peak_memory_stats()
        run()
    return {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
        "predicted": report.peak_bytes,
        "predicted_reserved": report.peak_reserved_bytes or 0,
    }


if __name__ == "__main__":
    _serve()
