"""The few functions of psutil that ipyvram calls, from procfs, for a GPU machine that has not got psutil."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any


class Error(Exception):
    """As psutil's: no such process, or no right to look at it."""


class Process:
    def __init__(self, pid: int | None = None) -> None:
        self.pid = os.getpid() if pid is None else pid

    def _read(self, name: str) -> str:
        try:
            return Path(f"/proc/{self.pid}/{name}").read_text()
        except OSError as error:
            raise Error(str(error)) from error

    def name(self) -> str:
        return self._read("comm").strip()

    def memory_info(self) -> Any:
        return SimpleNamespace(rss=int(self._read("statm").split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    def children(self, recursive: bool = False) -> list[Process]:
        parent: dict[int, int] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
        found, last = [], [self.pid]
        while last:
            last = [pid for pid, of in parent.items() if of in last]
            found += [Process(pid) for pid in last]
            if not recursive:
                break
        return found


def virtual_memory() -> Any:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return SimpleNamespace(available=int(lines["MemAvailable"].split()[0]) * 1024)
