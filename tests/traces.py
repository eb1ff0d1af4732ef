"""Where the public allocator traces lie, for tests that use them; they are not part of the project."""

from __future__ import annotations

import functools
import gzip
import os
import pickle
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("IPYVRAM_TRACES") or Path(__file__).parents[2] / "shared" / "traces")
FILES = sorted(FOLDER.glob("*.pickle.gz"))

needs_traces = pytest.mark.skipif(not FILES, reason="the public allocator traces are not here (set IPYVRAM_TRACES)")


class _Builtins(pickle.Unpickler):
    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"{module}.{name}")


@functools.lru_cache(maxsize=2)
def load(path):
    with gzip.open(path) as file:
        return _Builtins(file).load()
