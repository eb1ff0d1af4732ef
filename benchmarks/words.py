"""The command line of a row that runs in a process of its own: what its words are called comes in, their values go out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection
from typing import Any


def words(doc: str | None, **wanted: Collection[str] | Callable[[str], Any]) -> list[Any]:
    """The values of the words, in their order; ``--help`` tells them.

    Parameters
    ----------
    doc : str
        The program's ``__doc__``.
    **wanted
        The name of each word → what it may be, or what makes its value of it.
    """
    spec = sys.modules["__main__"].__spec__
    prog = None if spec is None else f"python -m {spec.name}"
    parser = argparse.ArgumentParser(prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in wanted.items():
        if callable(kind):
            parser.add_argument(name, type=kind, metavar=name.upper())
        else:
            parser.add_argument(name, choices=kind, metavar=name.upper(), help="; ".join(kind))
    return list(vars(parser.parse_args()).values())
