"""The parts of the check, each run in a process of its own: a card in, rows out as soon as they are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu import battery, estimates, limits, oddities, overhead, programs
from benchmarks.gpu.rows import Row, expect, note, written
from ipyvram.recording import Frame, Recording

RECORDINGS_BYTES = 1_500_000
_CHILD_S = 100.0
_CASE_S = 8.0  #: there should be so much time left for one more program


@dataclass(frozen=True)
class Work:
    """What a part needs.

    Attributes
    ----------
    card : RealCard, SimulatedCard or None
    out : Path
        The folder of all results.
    script : Path
        For processes that a part starts.
    left : callable
        Seconds until the part should have ended.
    """

    card: Any
    out: Path
    script: Path
    left: Callable[[], float]


Part = Callable[[Work], Iterator[Row]]


def of_battery(work: Work) -> Iterator[Row]:
    """Every program; recordings of as many as there is room for, those that differ most first."""
    folder = work.out / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    held: dict[str, Any] = {}
    for program in programs.every(work.card.simulated):
        if work.left() < _CASE_S:
            yield note("battery", program.name, "left out: no time left")
            continue
        try:
            m = battery.run(program, work.card.device)
            yield from battery.check(program, m, work.card.simulated)
            if m.error is None:
                held[program.name] = battery.figures(m.report)
                _keep(folder, program.name, m.recording)
                written(work.out / "figures.json", json.dumps(held, indent=1) + "\n")
            del m
        except Exception as error:  # one program's fault must not cost the others
            yield expect("the check itself", program.name, False, _line(error))
    count = sum(path.stat().st_size for path in folder.iterdir())
    yield expect(
        "recordings", "together", 0 < count <= RECORDINGS_BYTES, f"{count:,} bytes, {len(list(folder.iterdir()))} files"
    )


def _keep(folder: Path, name: str, recording: Recording) -> None:
    """Save a recording if there is room for it."""
    path = folder / f"{name}.ipyvram"
    portable(recording).save(path)
    if sum(p.stat().st_size for p in folder.iterdir()) > RECORDINGS_BYTES:
        path.unlink()


def portable(recording: Recording) -> Recording:
    """Without what belongs to the machine: where the files lie, the card's serial number, other people's processes."""
    root = f"{Path(__file__).resolve().parents[2]}/"

    def frame(f: Frame) -> Frame:
        return f._replace(file=f.file.removeprefix(root) if f.file.startswith(root) else Path(f.file).name)

    stacks = tuple(tuple(frame(f) for f in stack) for stack in recording.stacks)
    devices = tuple(replace(d, uuid=None) for d in recording.devices)
    observations = tuple(o for o in recording.observations if o.kind != "process")
    return replace(recording, stacks=stacks, devices=devices, observations=observations)


def of_oddities(work: Work) -> Iterator[Row]:
    yield from _each(oddities.checks(work.card), work)


def of_limits(work: Work) -> Iterator[Row]:
    device, simulated = work.card.device, work.card.simulated
    checks: dict[str, Callable[[], Iterator[Row]]] = {
        "out of memory": lambda: limits.out_of_memory(device, simulated),
        "sweep": lambda: limits.sweep(device, simulated),
    }
    yield from _each(checks, work)


def of_environments(work: Work) -> Iterator[Row]:
    checks: dict[str, Callable[[], Iterator[Row]]] = {
        name: lambda name=name: oddities.environment(  # type: ignore[misc]
            name, work.card, work.script, min(_CHILD_S, work.left()), _CHILD_S
        )
        for name in oddities.ENVIRONMENTS
    }
    yield from _each(checks, work)


def of_overhead(work: Work) -> Iterator[Row]:
    yield from _each(overhead.checks(work.card.device, work.card.simulated), work)


def of_estimates(work: Work) -> Iterator[Row]:
    """Of what the battery measured. Needs no card: it may be run later, on any machine, with the same folder."""
    about, held = (json.loads((work.out / name).read_text()) for name in ("about.json", "figures.json"))
    card = estimates.card_of(about["card"], about["card_bytes"])
    checks: dict[str, Callable[[], Iterator[Row]]] = {
        name: lambda name=name: estimates.compare(name, card, held[name], about["simulated"])  # type: ignore[misc]
        for name in held
    }
    yield from _each(checks, work)


def _each(checks: dict[str, Callable[[], Iterator[Row]]], work: Work) -> Iterator[Row]:
    """One check after the other while there is time; a fault in one does not cost the others."""
    for name, check in checks.items():
        if work.left() <= 0:
            yield note("left out", name, "no time left")
            continue
        try:
            yield from check()
        except Exception as error:
            yield expect("the check itself", name, False, _line(error))


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]


#: In the order of importance, each with the share of the time that it may take.
PARTS: dict[str, tuple[Part, float]] = {
    "battery": (of_battery, 0.40),
    "oddities": (of_oddities, 0.14),
    "limits": (of_limits, 0.12),
    "environments": (of_environments, 0.22),
    "overhead": (of_overhead, 0.22),
    "estimates": (of_estimates, 0.20),
}
