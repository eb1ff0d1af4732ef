"""Notebooks of this folder come in, the same notebooks with fresh outputs go out: ``python examples/execute.py [NAME…]``.

What is written holds nothing of the machine it ran on: no paths and no times of day in the cells' metadata.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

import nbformat

from ipyvram.headless import execute

FOLDER = Path(__file__).resolve().parent
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def main(names: list[str]) -> int:
    """Execute the named notebooks, or all; the exit code is the number of those that failed."""
    paths = [FOLDER / Path(name).with_suffix(".ipynb").name for name in names] or sorted(FOLDER.glob("*.ipynb"))
    failed = 0
    for path in paths:
        with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
            done = execute(path, Path(folder), out=log)
            if done.error is None:
                path.write_text(cleaned(done.notebook.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"{path.name}: {done.error or f'{path.stat().st_size / 1e3:.0f} kB'}", flush=True)
        failed += done.error is not None
    return failed


def cleaned(text: str) -> str:
    """A notebook without what only this machine knows; a path below one of its folders becomes relative to that."""
    notebook = nbformat.reads(text, as_version=4)
    notebook.metadata.kernelspec = KERNEL
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    text = nbformat.writes(notebook)
    for place in (*sys.path, sys.prefix, sys.base_prefix, str(Path.home())):
        if len(place) > 1:
            text = text.replace(place + "/", "")
    return re.sub(r"/tmp/ipykernel_\d+/\d+\.py", "<cell>", text) + "\n"


def _names() -> list[str]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a notebook of this folder, with or without .ipynb (default: all)"
    )
    parsed = parser.parse_args()
    if missing := [name for name in parsed.names if not (FOLDER / Path(name).with_suffix(".ipynb").name).exists()]:
        parser.error(f"no such notebook here: {', '.join(missing)}")
    return list(parsed.names)


if __name__ == "__main__":
    sys.exit(main(_names()))
