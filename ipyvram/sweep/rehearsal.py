"""What a program asked of the allocator at two batch sizes comes in; the largest size that would fit comes out. Pure.

At another size a program nearly always asks for the same blocks in the same order, each of a size that is a straight line in
the batch. Played through the model of the allocator, they tell what no line through two peaks tells: how much is *reserved*,
which grows in steps, and from which size on the allocator would have to make room.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray

from ipyvram.allocator.blocks import Blocks
from ipyvram.allocator.replay import settings_of
from ipyvram.allocator.rules import Settings
from ipyvram.allocator.undo import undo
from ipyvram.caching_allocator import CachingAllocator, OutOfMemory
from ipyvram.recording import Action, Mark, Recording, Trace

#: The last recorded step is played so many times more: what is reserved may still grow after the second step.
MORE_STEPS = 3
#: A longer script is not played: each size would take seconds.
MAX_EVENTS = 40_000
#: More blocks are not matched where their numbers differ: that takes the square of it.
MAX_MATCHED = 5_000
#: Where a larger share of the blocks has no counterpart at another size, they are not the same program's.
MOST_ALONE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class Script:
    """What a program asked of the allocator.

    Attributes
    ----------
    asked : int64
        Bytes of each block, in the order in which they were asked for; the first ones were there before.
    streams : tuple of int
        The stream of each block.
    acts : tuple of int
        ``n``: block ``n`` is asked for; ``~n``: it is let go.
    step : int
        Index of the first act of the last step.
    places : tuple of int
        Addresses of the blocks that were there before.
    blocks : Blocks
        The allocator's state before.
    """

    asked: NDArray[np.int64]
    streams: tuple[int, ...]
    acts: tuple[int, ...]
    step: int
    places: tuple[int, ...]
    blocks: Blocks
    settings: Settings


def script_of(recording: Recording, device: str) -> Script | None:
    """The script of a trial; None where the allocator's events are not all known, or private pools are in use."""
    trace = min((t for t in recording.traces if t.device == device), key=lambda t: t.start_ns, default=None)
    if trace is None or not _is_whole(trace, recording):
        return None
    settings = settings_of(trace)
    hints = {b.address: b for b in trace.baseline if b.state != "inactive"}
    start = undo(trace.events, trace.segments_end, settings, hints, trace.private_pools)
    if start.blocks.awaiting:
        return None
    number = {block.address: n for n, block in enumerate(start.in_use)}
    asked, streams = [block.requested for block in start.in_use], [0] * len(number)
    places, acts, step = tuple(number), list[int](), 0
    begins_ns, events = _last_step_ns(recording.marks, trace), trace.events
    columns = (events.action, events.address, events.size, events.stream, events.time_ns)
    for action, address, size, stream, time_ns in zip(*(c.tolist() for c in columns), strict=True):
        if time_ns <= begins_ns:
            step = len(acts)
        if action == Action.ALLOC:
            number[address] = len(asked)
            acts.append(len(asked))
            asked.append(size)
            streams.append(stream)
        elif action == Action.FREE_REQUESTED and address in number:
            acts.append(~number.pop(address))
    return Script(np.array(asked, np.int64), tuple(streams), tuple(acts), step, places, start.blocks, settings)


def _is_whole(trace: Trace, recording: Recording) -> bool:
    """Whether all that the allocator did is known, up to the first step at least, and no pool is a private one."""
    if trace.source != "history" or not trace.complete or len(trace.events) > MAX_EVENTS:
        return False
    # If it ended before the first step, what was traced later has no beginning.
    stepped = any(m.kind == "optimizer" and m.time_ns <= trace.stop_ns for m in recording.marks)
    private = bool(trace.private_pools) or any(any(s.private_pool) for s in trace.segments_end)
    return not private and (stepped or not recording.steps)


def _last_step_ns(marks: Sequence[Mark], trace: Trace) -> int:
    """When the last step of a trace began."""
    inside = [m for m in marks if trace.start_ns <= m.time_ns <= trace.stop_ns]
    last = max((m.step for m in inside), default=0)
    return max((m.time_ns for m in inside if m.step < last), default=trace.stop_ns)


def goes_on(script: Script, steps: int = MORE_STEPS) -> Script:
    """The script with its last step repeated.

    What that step let go of and an earlier one had asked for is, in a repeated step, what the step before it asked for: blocks of
    the same sizes in the same order. What has no counterpart is let go of once, or never.
    """
    last = script.acts[script.step :]
    made = [n for n in last if n >= 0]
    if not made:
        return script
    first = made[0]
    gone = {~n for n in last if n < 0}
    kept = [n for n in made if n not in gone]
    carried, at = dict[int, int](), 0  # block of an earlier step → the last step's block in its place
    for old in sorted(n for n in gone if n < first):
        match = next((i for i in range(at, len(kept)) if script.asked[kept[i]] == script.asked[old]), None)
        if match is not None:
            carried[old], at = kept[match], match + 1
    asked, streams, acts, count = list(script.asked), list(script.streams), list(script.acts), len(script.asked)
    shift = 0  # from a block of the recorded last step to that of the step before the one being added
    for _ in range(steps):
        before, shift = shift, count - first
        for n in last:
            if n >= 0:
                acts.append(n + shift)
                asked.append(script.asked[n])
                streams.append(script.streams[n])
            elif ~n >= first:
                acts.append(~(~n + shift))
            elif ~n in carried:
                acts.append(~(carried[~n] + before))
        count += len(made)
    return replace(script, asked=np.array(asked, np.int64), streams=tuple(streams), acts=tuple(acts))


def play(script: Script, allowed: int) -> int | None:
    """The most that is reserved; None where ``allowed`` bytes do not do without the allocator's having to make room."""
    allocator = CachingAllocator(settings=script.settings, allowed=allowed, blocks=copy.deepcopy(script.blocks))
    places, asked = dict(enumerate(script.places)), script.asked.tolist()
    try:
        for n in script.acts:
            if n >= 0:
                places[n] = allocator.alloc(asked[n], script.streams[n])
                if allocator.retries:
                    return None
            else:
                allocator.free(places.pop(~n))
    except OutOfMemory:
        return None
    return allocator.reserved_peak


class Rehearsal:
    """The scripts of a search's trials, and any other size played from them."""

    def __init__(self) -> None:
        self._scripts: dict[int, Script] = {}

    def learn(self, size: int, script: Script | None) -> None:
        """What was asked for at a size."""
        if script is not None:
            self._scripts[size] = script

    def at(self, size: int) -> Script | None:
        """The script of a size, by the two sizes known that are nearest; None where they do not ask for the same blocks."""
        near = sorted(self._scripts, key=lambda known: abs(known - size))[:2]
        if len(near) < 2:
            return None
        less, more = sorted(near)
        low, high = self._scripts[less], self._scripts[more]
        there = len(high.places)  # before the trial: of no batch, and in any order
        if len(low.places) != there:
            return None
        small, large = low.asked[there:], high.asked[there:]
        same = _counterparts(small, large, less, more)
        longest = max(len(small), len(same))
        if longest - np.count_nonzero(same >= 0) > MOST_ALONE * longest:
            return None
        slope = np.zeros(len(high.asked))
        slope[there:] = np.where(same < 0, 0, large - small[same]) / (more - less)
        asked = np.rint(high.asked + slope * (size - more)).astype(np.int64)
        # A straight line through blocks that are not each other's goes below nothing.
        return None if asked.min(initial=0) < 0 else goes_on(replace(high, asked=np.maximum(asked, 1)))

    def fits(self, size: int, allowed: int) -> bool | None:
        """Whether a size would fit; None where nobody knows."""
        script = self.at(size)
        return None if script is None else play(script, allowed) is not None

    def largest(self, low: int, high: int | None, multiple: int, guess: float | None, allowed: int) -> int | None:
        """The largest size between ``low``, which fits, and ``high``, which does not, that would fit; None where nobody knows.

        Parameters
        ----------
        guess : float or None
            Where it may be.
        """
        here, further = self.at(low), self.at(2 * low)
        if here is None or (high is not None and self.fits(high, allowed)):
            return None  # what it says of a size that was run is not so
        if high is None and further is not None and np.array_equal(here.asked, further.asked):
            return None  # what asks for no more fits at any size: the data have no more

        def good(units: int) -> bool:
            return bool(self.fits(units * multiple, allowed))

        last = _last_good(good, low // multiple, high and high // multiple, int((guess or 2 * low) // multiple))
        known = high == (last + 1) * multiple or self.at((last + 1) * multiple) is not None
        return multiple * last if known else None


def _counterparts(low: NDArray[np.int64], high: NDArray[np.int64], less: int, more: int) -> NDArray[np.int64]:
    """For each block of the larger batch that of the smaller one, -1 where it has none: some kernels work in more from a size on.

    Most blocks are as large as their counterpart, or larger in proportion to the batch: these are matched in order. What lies
    between two of them is matched where it could be the same block, which grows at most in proportion.
    """
    if len(low) == len(high):
        return np.arange(len(high))
    if max(len(low), len(high)) > MAX_MATCHED:
        return np.full(len(high), -1)
    small, large = low.tolist(), high.tolist()
    fixed = set(small) & set(large)
    growing = {size * more for size in small} & {size * less for size in large}

    def keys(asked: list[int], other: int, alone: str) -> list[object]:
        known = (s if s in fixed else -s * other if s * other in growing else None for s in asked)
        return [(alone, i) if key is None else key for i, key in enumerate(known)]

    found, at, to = np.full(len(high), -1), 0, 0
    matcher = SequenceMatcher(None, keys(small, more, "low"), keys(large, less, "high"), autojunk=False)
    for low_at, high_at, count in matcher.get_matching_blocks():
        for n in range(to, high_at):
            match = next((m for m in range(at, low_at) if small[m] <= large[n] <= small[m] * more / less), None)
            if match is not None:
                found[n], at = match, match + 1
        found[high_at : high_at + count] = np.arange(low_at, low_at + count)
        at, to = low_at + count, high_at + count
    return found


def _last_good(good: Callable[[int], bool], low: int, high: int | None, guess: int) -> int:
    """The end of what is good, from ``low``, which is, to below ``high``, which is not: outwards from a guess, then halving."""
    at, reach = guess, max(1, guess // 32)
    while high is None or high - low > 1:
        if not (low < at and (high is None or at < high)):
            at = (low + high) // 2 if high is not None else low + reach
        if good(at):
            low, at = at, at + reach
        else:
            high, at = at, at - reach
        reach *= 2
    return low
