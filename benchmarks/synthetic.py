"""Recordings of any size, made and not measured: what `analyse` and the renderers take at a million events."""

from __future__ import annotations

import numpy as np

from ipyvram.recording import (
    SAMPLE_COLUMNS,
    Action,
    Block,
    Claim,
    Device,
    Events,
    Frame,
    Mark,
    Origin,
    Recording,
    Samples,
    Trace,
)  # fmt: skip

SECOND = 1_000_000_000
LAYERS = 40


def recording(events: int, live: int = 10_000, samples: int = 0, devices: int = 1, hours: float = 0.01) -> Recording:
    """A training run of three steps with this many events and live tensors on each device, and samples over the hours.

    Half of the live tensors are parameters, half activations; all other events are temporaries between them.
    """
    stop_ns = int(hours * 3600 * SECOND)
    names = ["cpu"] if devices == 1 else [f"cuda:{i}" for i in range(devices)]
    marks = _marks(steps=3, length_ns=stop_ns // 10)
    traces, claims = [], []
    for name in names:
        trace, claimed = _trace(name, events, live, stop_ns // 10)
        traces.append(trace)
        claims += claimed
    return Recording(
        start_ns=0,
        stop_ns=stop_ns,
        label="synthetic",
        devices=tuple(Device(name, name, 80 * 2**30 if name != "cpu" else None) for name in names),
        traces=tuple(traces),
        claims=tuple(sorted(claims)),
        marks=marks,
        stacks=tuple((Frame("cell", line, "<module>"),) for line in range(1, 60)),
        origins=tuple(Origin(f"aten.op{i}", (64, i + 1, 32), "float32") for i in range(500)),
        samples=tuple(_samples(name, samples, stop_ns) for name in names) if samples else (),
        steps=100_000,
        traced_steps=3,
    )


def _marks(steps: int, length_ns: int) -> tuple[Mark, ...]:
    marks = []
    for step in range(1, steps + 1):
        begin, third = (step - 1) * length_ns // steps, length_ns // steps // 3
        marks.append(Mark(begin + 1, "forward", True, step, "net"))
        for layer in range(LAYERS):
            at = begin + 2 + layer * (third - 10) // LAYERS
            marks.append(Mark(at, "module", True, step, f"layers.{layer}"))
            marks.append(Mark(at + (third - 10) // LAYERS - 1, "module", False, step, f"layers.{layer}"))
        marks.append(Mark(begin + third - 1, "forward", False, step, "net"))
        marks.append(Mark(begin + third, "backward", True, step))
        marks.append(Mark(begin + 2 * third, "backward", False, step))
        marks.append(Mark(begin + 2 * third + 1, "optimizer", True, step, "Adam"))
        marks.append(Mark(begin + 3 * third - 1, "optimizer", False, step, "Adam"))
    return tuple(marks)


def _trace(device: str, count: int, live: int, length_ns: int) -> tuple[Trace, list[Claim]]:
    """Parameters as baseline; then steps whose activations are freed in reverse, between temporaries that come and go."""
    rng = np.random.default_rng(0)
    weights, saved = live // 2, live - live // 2
    baseline = tuple(Block(i + 1, 4096, 4096) for i in range(weights))
    brief = max(1, (count // 6 - saved) // (2 * saved))  # temporaries for each activation, in forward and in backward
    block = 1 + brief
    forward = np.repeat(np.arange(saved) * block, 1 + 2 * brief).reshape(saved, -1)
    forward += np.r_[0, np.repeat(np.arange(1, block), 2)]
    backward = (saved * block + np.repeat(np.arange(saved) * brief, 1 + 2 * brief)).reshape(saved, -1)
    backward += np.r_[np.repeat(np.arange(brief), 2), 0]
    backward[:, -1] = (np.arange(saved) * block)[::-1]
    kinds = np.tile([int(Action.ALLOC), int(Action.FREE_REQUESTED)], brief)
    one = np.r_[
        np.tile(np.r_[int(Action.ALLOC), kinds], saved), np.tile(np.r_[kinds, int(Action.FREE_REQUESTED)], saved)
    ]
    ids = np.r_[forward.ravel(), backward.ravel()]
    each = saved * (block + brief)
    action = np.tile(one, 3).astype(np.uint8)
    serial = np.concatenate([weights + 1 + step * each + ids for step in range(3)])
    size = rng.integers(1, 1000, 3 * each) * 512
    n = len(action)
    events = Events(
        action=action,
        address=serial.astype(np.int64),
        size=size[serial - weights - 1].astype(np.int64),
        stream=np.zeros(n, np.int64),
        time_ns=np.linspace(2, length_ns, n).astype(np.int64),
        stack=(serial % 59).astype(np.int32),
        origin=(serial % 500).astype(np.int32),
    )
    claims = [Claim(2, device, i + 1, 4096, "parameters", f"layers.{i % LAYERS}.weight", "net") for i in range(weights)]
    kept = np.concatenate([step * len(one) + np.arange(saved) * (1 + 2 * brief) for step in range(3)])
    claims += [Claim(int(events.time_ns[i]) + 1, device, int(serial[i]), 0, "activations", "relu.result") for i in kept]
    return Trace(device, "storages", 0, length_ns, events, baseline, ended_by="3 steps"), claims


def _samples(device: str, count: int, stop_ns: int) -> Samples:
    rng = np.random.default_rng(1)
    used = np.cumsum(rng.integers(-(2**20), 2**20, count)).astype(np.float64) + 8 * 2**30
    columns = {name: used + i for i, name in enumerate(SAMPLE_COLUMNS[:10])}
    return Samples(device, np.linspace(0, stop_ns, count).astype(np.int64), columns, count, 0.05, 0.05)
