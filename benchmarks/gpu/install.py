"""Takes what a check of a card found into the project: recordings for the tests, results, and the page about accuracy.

    python -m benchmarks.gpu.install FOLDER          # FOLDER: what gpu_check.py wrote with --out
    python -m benchmarks.gpu.install FOLDER --into ELSEWHERE --rehearse   # results of a simulated card, to try this out

Every recording is explained anew before it is taken, and must give the figures that were found on the card. What was found
with the stub of CUDA has places of its own, and no page.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu import accuracy, battery
from benchmarks.gpu.parts import RECORDINGS_BYTES
from benchmarks.gpu.rows import written
from ipyvram.analysis import analyse
from ipyvram.recording import Recording

ROOT = Path(__file__).resolve().parents[2]
RECORDINGS = Path("tests", "data", "recordings")
STUB_RECORDINGS = Path("tests", "data", "stub_recordings")
STUB_RECORDINGS_BYTES = 500_000  #: they can be made anew anywhere
RESULTS = Path("benchmarks", "results", "gpu_check.json")
STUB_RESULTS = Path("benchmarks", "results", "gpu_check_stub.json")
PAGE = Path("docs", "accuracy.md")
FEWEST = 8  #: recordings that there should be


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--into", type=Path, default=ROOT)
    parser.add_argument("--rehearse", action="store_true", help="allow a simulated card; needs --into")
    options = parser.parse_args(arguments)
    try:
        for line in install(options.folder, options.into, options.rehearse):
            print(line)
    except (OSError, ValueError) as error:
        print(f"nothing was installed: {error}", file=sys.stderr)
        return 1
    return 0


def install(folder: Path, into: Path, rehearse: bool) -> list[str]:
    """Check everything, then write everything; gives a line for each thing done.

    Raises
    ------
    ValueError
        The results are of a simulated card, or a recording does not give the figures that were found.
    """
    results = json.loads((folder / "results.json").read_text())
    stub = bool(results["about"].get("stub"))
    if results["about"]["simulated"] and (not rehearse or into.resolve() == ROOT):
        raise ValueError("the results are of a simulated card: nothing of them was measured")
    figures = json.loads((folder / "figures.json").read_text())
    recordings = sorted((folder / "recordings").glob("*.ipyvram"))
    if stub:
        recordings = _smallest(recordings, STUB_RECORDINGS_BYTES)
    problems = [problem for path in recordings for problem in differences(path, figures)]
    count = sum(path.stat().st_size for path in recordings)
    if len(recordings) < FEWEST or count > RECORDINGS_BYTES:
        problems.append(f"{len(recordings)} recordings of {count:,} bytes; {FEWEST} in {RECORDINGS_BYTES:,} are wanted")
    if problems:
        raise ValueError("; ".join(problems))
    to_recordings, to_results = (STUB_RECORDINGS, STUB_RESULTS) if stub else (RECORDINGS, RESULTS)
    text = "" if stub else accuracy.page(results)
    _replace_recordings(into / to_recordings, recordings, figures)
    written(into / to_results, (folder / "results.json").read_text())
    failed = sum(r["ok"] is False for r in results["rows"])
    done = [
        f"{len(recordings)} recordings, {count:,} bytes, in {to_recordings}",
        f"results in {to_results}: {failed} checks failed",
    ]
    if stub:
        return [*done, "of the stub of CUDA: nothing of them was measured on a GPU"]
    written(into / PAGE, text)
    return [
        *done, f"{PAGE}",
        "next: python -m pytest tests/test_gpu_recordings.py, read the page, name it in the README, commit all",
    ]  # fmt: skip


def _smallest(recordings: list[Path], limit: int) -> list[Path]:
    """As many as there is room for, the smallest first; in the order of their names."""
    sizes = sorted((path.stat().st_size, path) for path in recordings)
    room = itertools.accumulate(size for size, _ in sizes)
    return sorted(path for (_, path), end in zip(sizes, room, strict=True) if end <= limit)


def differences(path: Path, figures: dict[str, Any]) -> list[str]:
    """Where a recording, explained by the code of today, says other than what was found."""
    held = figures.get(path.stem)
    if held is None:
        return [f"{path.name}: no figures were written for it"]
    recording = Recording.load(path)
    report = analyse(recording)
    now = battery.figures(report)
    found = [
        f"{path.stem}: {name} is {now.get(name)}, was {held.get(name)}" for name in held if now.get(name) != held[name]
    ]
    if sum(report.peak.values()) != report.peak_bytes:
        found.append(f"{path.stem}: the categories do not add up")
    if report.peak_bytes + sum(report.card.values()) != report.card_bytes:
        found.append(f"{path.stem}: the card does not add up")
    found += [f"{path.stem}: {row.text}" for row in battery.replayed(path.stem, recording) if not row.ok]
    return found


def _replace_recordings(folder: Path, recordings: list[Path], figures: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    for path in recordings:
        (folder / path.name).write_bytes(path.read_bytes())
    kept = {path.stem: figures[path.stem] for path in recordings}
    written(folder / "figures.json", json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
