"""A `Recording` as one compressed file, and back: a zip of JSON and ``.npy`` columns, nothing pickled."""

from __future__ import annotations

import io
import json
import os
import zipfile
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ipyvram.recording import (
    Block,
    Cell,
    Claim,
    Device,
    ErrorInfo,
    Events,
    Frame,
    Mark,
    Observation,
    OomEvent,
    Origin,
    Recording,
    Samples,
    Segment,
    Trace,
)

FORMAT_VERSION = 1


def save(recording: Recording, path: str | os.PathLike[str]) -> None:
    """Write the file; equal recordings give equal files."""
    arrays: dict[str, NDArray[Any]] = {}
    for i, trace in enumerate(recording.traces):
        arrays |= {f"trace{i}.{f.name}": getattr(trace.events, f.name) for f in fields(Events)}
    for i, samples in enumerate(recording.samples):
        arrays[f"samples{i}.time_ns"] = samples.time_ns
        arrays |= {f"samples{i}.{name}": column for name, column in samples.columns.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr(_entry("recording.json"), json.dumps(_header(recording), separators=(",", ":")))
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            archive.writestr(_entry(name + ".npy"), buffer.getvalue())


def load(path: str | os.PathLike[str]) -> Recording:
    """Read what `save` wrote.

    Raises
    ------
    ValueError
        The file is not a recording, is damaged, or was written by a newer version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            header = json.loads(archive.read("recording.json"))
            arrays = {
                name.removesuffix(".npy"): np.load(io.BytesIO(archive.read(name)), allow_pickle=False)
                for name in archive.namelist()
                if name.endswith(".npy")
            }
        version = header.pop("version")
        if version > FORMAT_VERSION:
            raise ValueError(f"written by a newer ipyvram (format {version}, this one reads {FORMAT_VERSION})")
        return _from_parts(header, arrays)
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{Path(path).name} is not a readable ipyvram recording: {error}") from error


def _header(recording: Recording) -> dict[str, Any]:
    header: dict[str, Any] = {"version": FORMAT_VERSION}
    for f in fields(recording):
        if f.name not in ("traces", "samples"):
            value = getattr(recording, f.name)
            header[f.name] = asdict(value) if f.name in ("cell", "error", "oom") and value is not None else value
    header["observations"] = [asdict(o) for o in recording.observations]
    header["devices"] = [asdict(d) for d in recording.devices]
    header["traces"] = [
        {f.name: getattr(t, f.name) for f in fields(Trace) if f.name != "events"} for t in recording.traces
    ]
    header["samples"] = [
        {f.name: getattr(s, f.name) for f in fields(Samples) if f.name not in ("time_ns", "columns")}
        | {"columns": list(s.columns)}
        for s in recording.samples
    ]
    return header


def _from_parts(header: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Recording:
    def shape(value: list[int] | None) -> tuple[int, ...] | None:
        return None if value is None else tuple(value)

    def block(row: list[Any]) -> Block:
        return Block(*row)

    def segment(row: list[Any]) -> Segment:
        address, size, stream, pool, expandable, blocks, private = row
        found = tuple(block(b) for b in blocks)
        return Segment(address, size, stream, pool, expandable, found, (private[0], private[1]))

    def trace(i: int, row: dict[str, Any]) -> Trace:
        events = Events(*(arrays[f"trace{i}.{f.name}"] for f in fields(Events)))
        row["baseline"] = tuple(block(b) for b in row["baseline"])
        row["segments_end"] = tuple(segment(s) for s in row["segments_end"])
        row["private_pools"] = {int(k): (v[0], v[1]) for k, v in row.get("private_pools", {}).items()}
        return Trace(events=events, **row)

    def samples(i: int, row: dict[str, Any]) -> Samples:
        columns = {name: arrays[f"samples{i}.{name}"] for name in row.pop("columns")}
        return Samples(time_ns=arrays[f"samples{i}.time_ns"], columns=columns, **row)

    def device(row: dict[str, Any]) -> Device:
        capability = row.pop("capability")
        return Device(**row, capability=None if capability is None else (capability[0], capability[1]))

    header["cell"] = Cell(**header["cell"])
    header["error"] = None if header["error"] is None else ErrorInfo(**header["error"])
    header["devices"] = tuple(device(d) for d in header["devices"])
    header["traces"] = tuple(trace(i, t) for i, t in enumerate(header["traces"]))
    header["samples"] = tuple(samples(i, s) for i, s in enumerate(header["samples"]))
    header["claims"] = tuple(Claim(*c)._replace(shape=shape(c[7])) for c in header["claims"])
    header["marks"] = tuple(Mark(*m) for m in header["marks"])
    header["stacks"] = tuple(tuple(Frame(*f) for f in s) for s in header["stacks"])
    header["origins"] = tuple(Origin(o[0], shape(o[1]), o[2]) for o in header["origins"])
    header["limit"] = tuple(header["limit"])
    header["notes"] = tuple(header["notes"])
    header["observations"] = tuple(Observation(**o) for o in header.get("observations", ()))
    header["oom"] = OomEvent(**header["oom"]) if header.get("oom") else None
    return Recording(**header)


def _entry(name: str) -> zipfile.ZipInfo:
    """An archive member with a fixed date, so that equal recordings are equal files."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_DEFLATED
    return info
