"""Is "what batch fits" true? The answers against bisection, on torch's own CUDA allocator over the stub: not on a GPU.

    python -m benchmarks.batch_answers [NAME …] [--cards 4,8,24] [--out FILE]

The truth of a program (`batch_programs`) on a card of so many GiB is found by bisection: every size in a fork of a process that has
not begun CUDA, `STEPS` steps, until one size runs without the allocator's having to give back its cache and the next does not.
Against it: ``%%vram --max-batch`` with ``--limit 100%``, the bounds that a report of one run with a small batch says, and the answer of
an estimate for a card of which only the size is given, with as much room beside context and driver.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401 - once, before the forks

import ipyvram.analysis
import ipyvram.measuring
import ipyvram.run
import ipyvram.simulated.estimation
from benchmarks.batch_programs import PROGRAMS, STEPS, Program
from ipyvram.cards import TYPICAL_CONTEXT
from ipyvram.findings.batch import batch_bounds
from ipyvram.options import parse
from ipyvram.recording import Cell
from ipyvram.sweep import comparing
from tests import cuda_stub

GIB = 1 << 30
RESULTS = Path(__file__).with_name("results") / "batch_answers.json"
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; all unless given")
    parser.add_argument("--cards", default="4,8,24", help="GiB")
    parser.add_argument("--only", default="search,report,estimate")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    if not os.environ.get("IPYVRAM_STUB_BYTES"):
        _with_each_card(options)
        return
    card = int(os.environ["IPYVRAM_STUB_BYTES"]) // GIB
    for name in (n for n in PROGRAMS if not options.names or n.startswith(tuple(options.names))):
        stored = _stored(options.out)
        known = next((r for r in stored if (r["program"], r["card_gib"]) == (name, card)), {})
        row = answers(name, card, tuple(filter(None, options.only.split(","))), known)
        print(_line(row), flush=True)
        rows = sorted([*(r for r in stored if r is not known), row], key=lambda r: (r["program"], r["card_gib"]))
        table = {
            "command": "python -m benchmarks.batch_answers",
            "what": "torch's own CUDA allocator over a stub of the CUDA runtime: not a GPU",
            "torch": str(torch.__version__),
            "ipyvram": ipyvram.__version__,
            "python": platform.python_version(),
            "steps": STEPS,
            "rows": rows,
        }
        options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _with_each_card(options: argparse.Namespace) -> None:
    """A process for each card: the stub reads its size once."""
    with tempfile.TemporaryDirectory() as folder:
        stub = cuda_stub.build(Path(folder))
        for card in options.cards.split(","):
            subprocess.run(
                [sys.executable, "-m", "benchmarks.batch_answers", *sys.argv[1:]],
                env={**os.environ, **stub, "IPYVRAM_STUB_BYTES": str(int(card) * GIB)},
                check=True,
            )
    summary(_stored(options.out))


def _stored(path: Path) -> list[Row]:
    return list(json.loads(path.read_text(encoding="utf-8"))["rows"]) if path.exists() else []


def _line(row: Row) -> str:
    return "  ".join(f"{k} {v}" for k, v in row.items())


def answers(name: str, card: int, only: tuple[str, ...], known: Row) -> Row:
    """All answers for one program and card; the truth is kept where it is known."""
    program = PROGRAMS[name]
    row = {**known, "program": name, "card_gib": card}
    ways = {"search": _searched, "report": _said_by_a_report, "estimate": _estimated}
    for way in only:
        row = {k: v for k, v in row.items() if not k.startswith(way)}
        begin = time.perf_counter()
        row |= {f"{way}_{k}": v for k, v in forked(ways[way], program, card).items()}
        row[f"{way}_s"] = round(time.perf_counter() - begin, 2)
    if row.get("true", 0) < (row.get("search_batch") or 1):  # not known yet, or what fits does so up to a gap
        row |= truth(program, row.get("search_batch") or row.get("estimate_batch") or program.batch)
    return row


# -- in forks ---------------------------------------------------------------------------------------------------------------


def forked(function: Callable[..., Row], *arguments: Any) -> Row:
    """What ``function`` gives in a fork, in which nothing has happened on the card."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # torch warns of each failed allocation
        torch.set_num_threads(1)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                found = function(*arguments)
        except BaseException as error:
            found = {"failed": f"{type(error).__name__}: {error}"[:300], "traceback": traceback.format_exc()[-1500:]}
        with os.fdopen(writer, "w") as back:
            back.write(json.dumps(found))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as back:
        text = back.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if text else {"failed": f"the process ended with status {status}"}


def _set(program: Program) -> None:
    if program.conf:
        torch._C._accelerator_setAllocatorSettings(program.conf)


def _run(program: Program, batch: int) -> Row:
    """Whether the plain cell runs, and how often the allocator had to make room."""
    _set(program)
    try:
        exec(compile(program.at(batch), "<cell>", "exec"), {"__name__": "__main__"})
    except torch.cuda.OutOfMemoryError:
        return {"fits": False, "retries": 1}
    stats = torch.cuda.memory_stats()
    return {"fits": True, "retries": stats["num_alloc_retries"], "reserved": stats["reserved_bytes.all.peak"]}


def truth(program: Program, guess: int) -> Row:
    """The largest size that runs, and the largest for which the allocator need not make room; by bisection."""
    seen: dict[int, Row] = {}

    def ran(batch: int) -> Row:
        if batch not in seen:
            seen[batch] = forked(_run, program, batch)
            if "failed" in seen[batch]:
                raise RuntimeError(seen[batch])
        return seen[batch]

    easy = _largest(lambda b: ran(b)["fits"] and not ran(b)["retries"], guess)
    most = _largest(lambda b: bool(ran(b)["fits"]), max(easy, 1))
    return {"true": easy, "true_with_retries": most, "true_runs": len(seen)}


def _largest(good: Callable[[int], bool], guess: int) -> int:
    low, high, stride = 0, 0, 1
    at = max(1, guess)
    if good(at):
        low = at
        while not high:
            if good(low + stride):
                low, stride = low + stride, stride * 4
            else:
                high = low + stride
    else:
        high = at
        while not low and high > 1:
            trial = max(1, high - stride)
            if good(trial):
                low = trial
            else:
                high, stride = trial, stride * 4
        if high == 1 and not low:
            return 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def _compared(program: Program, more: str, limit: int | str = "100%") -> Any:
    namespace: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    cell = Cell(program.at(program.batch, 40), "<cell>")
    comparison, error = comparing.compare_cell(
        parse(f"--max-batch batch_size --limit {limit} {more}"), cell, namespace, lambda tree: compile(tree, "<cell>", "exec"), lambda text: None,
        contextlib.nullcontext,
    )  # fmt: skip
    if error is not None:
        raise error
    return comparison


def _searched(program: Program, card: int) -> Row:
    _set(program)
    torch.cuda.init()
    return _answer(_compared(program, ""))


def _answer(c: Any) -> Row:
    tried = [r.batch for r in c.rows]
    found = {"batch": None, "trials": c.trials, "tried": tried, "wall_s": round(c.duration_s, 2)}
    if c.largest is None:
        return found
    return found | {
        "batch": c.largest.batch,
        "status": c.largest.status,
        "beyond": c.largest.beyond,
        "fixed": None if c.fit is None else round(c.fit.fixed_bytes),
    }


def _estimated(program: Program, card: int) -> Row:
    """With as much room for tensors as there is: what an estimate takes for the context is a typical value, and not the stub's."""
    room = card * GIB - forked(_outside)["bytes"]
    return _answer(_compared(program, f"--estimate --card {card}GiB", room + TYPICAL_CONTEXT))


def _outside() -> Row:
    """What is on the card beside the allocator, in a process that uses it."""
    torch.empty(1, device="cuda")
    free, total = torch.cuda.mem_get_info()
    return {"bytes": total - free - torch.cuda.memory_reserved()}


def _said_by_a_report(program: Program, card: int) -> Row:
    _set(program)
    torch.cuda.init()
    with ipyvram.measuring.measure(limit="100%") as m:
        exec(compile(program.at(program.batch), "<cell>", "exec"), {"__name__": "__main__"})
    report = m.report
    lever = next((f for f in report.findings if f.kind == "lever"), None)
    said = {"lever": lever.text if lever else "", "peak_when": report.peak_when, "at": report.batch}
    bounds = batch_bounds(report) if "--max-batch" in said["lever"] else None
    return said if bounds is None else said | {"low": bounds[0], "high": bounds[1]}


# -- in short ----------------------------------------------------------------------------------------------------------------


def summary(rows: list[Row]) -> None:
    for way in ("search", "estimate"):
        pairs = [(r[f"{way}_batch"], r["true"], r) for r in rows if r.get(f"{way}_batch") and r.get("true")]
        if not pairs:
            continue
        errors = sorted((said / true - 1, r["program"], r["card_gib"]) for said, true, r in pairs)
        exact = sum(said == true for said, true, _ in pairs)
        median = statistics.median(e for e, *_ in errors)
        print(
            f"{way}: {len(pairs)} answers, exact {exact}, median {median:+.2%}, lowest {errors[0]}, highest {errors[-1]}"
        )
        trials = [r[f"{way}_trials"] for r in rows if f"{way}_trials" in r]
        if trials:
            print(f"   trials: median {statistics.median(trials)}, most {max(trials)}")
    bounded = [r for r in rows if r.get("report_low") and r.get("true")]
    if bounded:
        inside = sum(r["report_low"] <= r["true"] <= r["report_high"] for r in bounded)
        below, above = (
            min(r["report_low"] / r["true"] for r in bounded),
            max(r["report_high"] / r["true"] for r in bounded),
        )
        print(
            f"report: {len(bounded)} pairs of bounds, {inside} with the truth inside, from {below - 1:+.0%} to {above - 1:+.0%}"
        )
    failed = [(r["program"], r["card_gib"], k, v) for r in rows for k, v in r.items() if k.endswith("_failed")]
    for failure in failed:
        print(*failure)


if __name__ == "__main__":
    main()
