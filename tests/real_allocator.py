"""Runs torch's own caching allocator beside the model and prints where they differ; needs a card, or the stub of one.

    python -m tests.cuda_stub python -m tests.real_allocator '{"conf": "max_split_size_mb:32", "seed": 1}'

A random program allocates, frees, lends blocks to other streams, empties the cache and runs out of memory. After every
operation the new entries of the history, the counters, and every block of the snapshot are compared; at the end, the
replay of the whole history and of its later parts.
"""

from __future__ import annotations

import json
import random
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ipyvram.allocator.replay import replay_events
from ipyvram.caching_allocator import CachingAllocator, OutOfMemory, Settings
from ipyvram.recording import Action, Block, Segment
from ipyvram.snapshot_parts import events_of, private_pools_of, segments_of

MIB = 1 << 20
#: Bytes of a request, by how often: all classes of sizes, and the edges between them.
SIZES = [
    (3, lambda r: r.randint(1, 600)),
    (4, lambda r: r.randint(513, MIB)),
    (5, lambda r: r.randint(MIB, 10 * MIB)),
    (3, lambda r: r.randint(10 * MIB, 60 * MIB)),
    (1, lambda r: r.randint(60 * MIB, 400 * MIB)),
    (2, lambda r: r.choice([512, MIB, 2 * MIB, 10 * MIB, 12 * MIB, 20 * MIB, 24 * MIB, 32 * MIB]) + r.choice([-1, 0, 1, 512])),
]  # fmt: skip


@dataclass
class Plan:
    """What is run: settings of torch, of the program, and of the card."""

    conf: str = ""
    seed: int = 0
    operations: int = 300
    fraction: float | None = None
    outside: int = 500 * MIB  #: of the card, what others and the context take
    pools: bool = False  #: whether some blocks are of private pools, which come and go
    switched: bool = False  #: whether the program switches expandable segments on and off


class Device:
    """One card: torch's allocator, and the model that is to do the same."""

    def __init__(self, index: int, plan: Plan, streams: list[Any], ends_in_pools: bool) -> None:
        self.index, self.streams, self.pools_vary = index, streams, plan.pools
        self.ends_in_pools = ends_in_pools
        total = torch.cuda.get_device_properties(index).total_memory
        allowed = None if plan.fraction is None else int(plan.fraction * total)
        self.model = CachingAllocator(total - plan.outside, Settings.from_conf(plan.conf), allowed, self._record, total)
        self.rows: list[tuple[str, int, int, int, int]] = []
        self.history: list[dict[str, Any]] = []
        self.live: list[tuple[Any, int]] = []  # tensor and its address in the model
        self.waiting: list[int] = []
        self.pools: list[Any] = []
        self.shift: dict[int, int] = {}  # segment of the model → how far from it torch's lies
        self.starts: list[tuple[int, tuple[Segment, ...]]] = []

    def _record(self, action: Action, address: int, size: int, stream: int, private: tuple[int, int]) -> None:
        found = self.model.blocks.segment_of(address)
        start = address if found is None else found[0]
        self.rows.append((action.name.lower(), address, size, stream, start))

    # -- operations --------------------------------------------------------------------------------------------------

    def alloc(self, size: int, stream: Any, pool: Any = None) -> str | None:
        if pool is None or self.ends_in_pools:
            for address in self.waiting:
                self.model.complete_free(address)
            self.waiting.clear()
        tensor = address = None
        pooled = nullcontext() if pool is None else torch.cuda.use_mem_pool(pool, self.index)
        try:
            with torch.cuda.stream(stream), pooled:
                tensor = torch.empty(size, dtype=torch.uint8, device=f"cuda:{self.index}")
        except torch.cuda.OutOfMemoryError:
            pass
        try:
            address = self.model.alloc(size, stream.cuda_stream, (0, 0) if pool is None else pool.id)
        except OutOfMemory:
            pass
        if (tensor is None) != (address is None):
            return f"out of memory: torch {tensor is None}, model {address is None}"
        if tensor is not None:
            self.live.append((tensor, address))
        return None

    def free(self, at: int, lend_to: Any = None) -> None:
        tensor, address = self.live.pop(at)
        lent = lend_to is not None
        if lent:
            tensor.record_stream(lend_to)
        del tensor
        self.model.free(address, awaiting=lent)
        if lent:
            self.waiting.append(address)

    # -- comparing ---------------------------------------------------------------------------------------------------

    def differences(self, snapshot: dict[str, Any]) -> list[str]:
        entries = [e for e in snapshot["device_traces"][self.index] if e["action"] != "snapshot"]
        self.history += entries
        segments = segments_of(snapshot["segments"], self.index)
        return [*self._events(entries), *self._counters(), *self._blocks(segments)]

    def _events(self, entries: list[dict[str, Any]]) -> list[str]:
        rows, self.rows = self.rows, []
        want = [(e["action"], e.get("addr", e.get("device_free")), e["size"], e.get("stream", 0)) for e in entries]
        if [row[0] for row in rows] != [entry[0] for entry in want]:
            return [f"events: torch {[w[0::2] for w in want]}, model {[(r[0], r[2]) for r in rows]}"]
        have = []
        for (action, address, size, stream, start), entry in zip(rows, want, strict=True):
            if action in ("segment_alloc", "segment_map"):
                self.shift.setdefault(start, entry[1] - address)
            have.append((action, address + (0 if action == "oom" else self.shift[start]), size, stream))
        # In which order several streams are found to be done is not the model's business.
        done = next((i for i, entry in enumerate(want) if entry[0] != "free_completed"), len(want))
        have[:done], want[:done] = sorted(have[:done]), sorted(want[:done])
        if self.pools_vary and all(entry[0] != "alloc" for entry in want):  # torch keeps private pools in no order
            have, want = sorted(have), sorted(want)
        return [f"event: torch {w}, model {h}" for h, w in zip(have, want, strict=True) if h != w]

    def _counters(self) -> list[str]:
        stats, model = torch.cuda.memory_stats(self.index), self.model
        segments = model.segments()
        blocks = [b for s in segments for b in s.blocks]
        used = [b for b in blocks if b.state != "inactive"]
        live = [b for b in blocks if b.state == "active_allocated"]
        have = {
            "allocated_bytes.all.current": model.allocated,
            "allocated_bytes.all.peak": model.allocated_peak,
            "reserved_bytes.all.current": model.reserved,
            "reserved_bytes.all.peak": model.reserved_peak,
            "active_bytes.all.current": model.active,
            "inactive_split_bytes.all.current": model.inactive_split,
            "requested_bytes.all.current": sum(b.requested for b in used),
            "allocation.all.current": len(live),
            "active.all.current": len(used),
            "num_alloc_retries": model.retries,
            "num_ooms": model.ooms,
        }
        for kind in ("small", "large"):
            have[f"reserved_bytes.{kind}_pool.current"] = sum(s.size for s in segments if s.pool == kind)
        return [f"{name}: torch {stats[name]}, model {value}" for name, value in have.items() if stats[name] != value]

    def _blocks(self, segments: tuple[Segment, ...]) -> list[str]:
        model = []
        for s in self.model.segments():
            found = self.model.blocks.segment_of(s.address)
            by = self.shift.get(found[0], 0)
            moved = tuple(b._replace(address=b.address + by) for b in s.blocks)
            model.append(s._replace(address=s.address + by, blocks=moved))
        plain = [s._replace(blocks=tuple(map(_bare, s.blocks))) for s in segments]
        if plain == sorted(model):
            return []
        return [f"snapshot: only torch {set(plain) - set(model)}, only model {set(model) - set(plain)}"]


def run(plan: Plan) -> list[str]:
    """Differences found; stops at the first operation that has some."""
    random_ = random.Random(plan.seed)
    count = torch.cuda.device_count()
    torch.cuda.init()
    ends_in_pools = not plan.pools or _frees_end_in_pools()
    devices = []
    for index in range(count):
        with torch.cuda.device(index):
            streams = [torch.cuda.current_stream(), torch.cuda.Stream(), torch.cuda.Stream()]
            torch.cuda.synchronize()
        if plan.fraction is not None:
            torch.cuda.set_per_process_memory_fraction(plan.fraction, index)
        devices.append(Device(index, plan, streams, ends_in_pools))
    _clear()
    growing = True
    for step in range(plan.operations):
        device = random_.choice(devices)
        if random_.random() < 0.05:
            growing = not growing
        said, found = _operate(random_, plan, device, devices, growing)
        snapshot = torch.cuda.memory._snapshot()
        for each in devices:
            found += [f"cuda:{each.index}: {d}" for d in each.differences(snapshot)]
            if step in (plan.operations // 3, plan.operations // 3 * 2) or step == 20:
                each.starts.append((len(each.history), segments_of(snapshot["segments"], each.index)))
        _clear()
        if found:
            return [f"operation {step}: {said}", *found]
    # When expandable segments were switched is in no history: blocks served from the cache meanwhile leave it open.
    return [] if plan.switched else [d for device in devices for d in _replayed(device, plan)]


def _operate(
    r: random.Random, plan: Plan, device: Device, devices: list[Device], growing: bool
) -> tuple[str, list[str]]:
    chance = r.random()
    if plan.switched and 0.02 < chance < 0.03:
        expandable = not device.model.settings.expandable_segments
        text = ",".join(filter(None, [plan.conf, f"expandable_segments:{expandable}"]))
        torch.cuda.memory._set_allocator_settings(text)
        for each in devices:
            each.model.settings = Settings.from_conf(text)
        return text, []
    if plan.pools and 0.03 < chance < 0.06:
        if len(device.pools) < 2:
            with torch.cuda.device(device.index):
                device.pools.append(torch.cuda.MemPool())
            return "a new pool", []
        pool = device.pools.pop()
        device.model.release_pool(pool.id, at_once=True)
        device.waiting = [a for a in device.waiting if a in device.model.blocks.awaiting]
        return "a pool dropped", []
    if chance < 0.02:
        torch.cuda.empty_cache()
        for each in devices:
            each.model.empty_cache()
            each.waiting.clear()
        return "empty_cache", []
    if not device.live or chance < (0.75 if growing else 0.35):
        make = r.choices([m for _, m in SIZES], [w for w, _ in SIZES])[0]
        size, stream = make(r), r.choices(device.streams, [6, 2, 1])[0]
        pool = r.choice(device.pools) if device.pools and r.random() < 0.3 else None
        failed = device.alloc(size, stream, pool)
        return f"alloc {size} on {stream.cuda_stream:#x}", [failed] if failed else []
    at = r.randrange(len(device.live))
    lend_to = r.choice(device.streams) if r.random() < 0.15 else None
    own = device.model.blocks.live[device.live[at][1]].pool.stream
    if lend_to is not None and lend_to.cuda_stream == own:
        lend_to = None
    device.free(at, lend_to)
    return f"free, lent {lend_to is not None}", []


def _frees_end_in_pools() -> bool:
    """Whether torch looks for blocks that other streams are done with also before it serves a private pool.

    Torch 2.6 takes every private pool for a graph that is being captured, and puts it off.
    """
    _clear()
    lent = torch.empty(512, dtype=torch.uint8, device="cuda")
    lent.record_stream(torch.cuda.Stream())
    del lent
    pool = torch.cuda.MemPool()
    with torch.cuda.use_mem_pool(pool):
        torch.empty(512, dtype=torch.uint8, device="cuda")
    actions = [entry["action"] for entry in torch.cuda.memory._snapshot()["device_traces"][torch.cuda.current_device()]]
    done = "free_completed" in actions[: len(actions) - 1 - actions[::-1].index("alloc")]
    del pool
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return done


def _bare(block: Block) -> Block:
    """Without what the model does not know; a free block of torch still tells what was last requested of it."""
    return block._replace(stack=-1, requested=0 if block.state == "inactive" else block.requested)


def _clear() -> None:
    torch.cuda.memory._record_memory_history(None)
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=1000)


def _replayed(device: Device, plan: Plan) -> list[str]:
    """Mismatches of the replay, of everything and of what came after some instants."""
    found = []
    segments = segments_of(torch.cuda.memory._snapshot()["segments"], device.index)
    for first, before in [(0, ()), *device.starts]:
        events, private = events_of(device.history[first:]), private_pools_of(device.history[first:])
        baseline = {b.address: b for s in before for b in s.blocks if b.state != "inactive"}
        for hints in (baseline, {}):
            replayed = replay_events(events, segments, device.model.settings, hints, private)
            wrong = [replayed.address_mismatches, replayed.segment_mismatches, replayed.final_mismatches]
            wrong += [len({*map(_bare, baseline.values())} ^ {*replayed.baseline})] if hints else []
            if any(wrong):
                where = f"from event {first} of {len(device.history)}{' with hints' * bool(hints)}"
                found.append(
                    f"cuda:{device.index}: replay {where}: address, segment, final, baseline mismatches {wrong}"
                )
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    differences = run(Plan(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
    print("\n".join(differences) or "the same")
    sys.exit(bool(differences))
