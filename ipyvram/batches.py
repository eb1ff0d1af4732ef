"""How many samples a model was given: claims come in, a batch size goes out.

The batch is dimension 0 of what a root module is called with; dimension 1 where the layers of the model say so.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import takewhile

from ipyvram.marks import optimizer_steps, root_forwards
from ipyvram.recording import Claim, Mark, Recording

#: Of an image: grey, colour, with transparency.
CHANNELS = (1, 3, 4)


class Batches:
    """The inputs among some claims, by time.

    The shape is that of the tensor, not of its storage: a batch may be a view of the whole data set.

    Parameters
    ----------
    time_first : collection of int
        How many samples layers were given in dimension 1, see `probes.sequences`.
    forwards : sequence of (int, int, bool)
        See `marks.root_forwards`. A validation has a batch of its own: training is not asked for its size, nor the reverse.
    """

    def __init__(
        self, claims: Iterable[Claim], time_first: Collection[int] = (), forwards: Sequence[tuple[int, int, bool]] = ()
    ) -> None:
        self._time_first, self._forwards = frozenset(time_first), forwards
        self._begins, self._ends = [begin for begin, _, _ in forwards], [end for _, end, _ in forwards]
        inputs = [c for c in claims if c.category == "inputs" and c.shape and not _is_one_sample(c)]
        of_models = [c for c in inputs if not c.module]  # and of no transform of single images
        given = [(c.time_ns, c.shape, c.name) for c in of_models or inputs if c.shape]
        given.sort(key=lambda item: item[0])
        self._times = [time_ns for time_ns, _, _ in given]
        self._shapes = [shape for _, shape, _ in given]
        self._names = [name for _, _, name in given]

    @classmethod
    def of(cls, recording: Recording) -> Batches:
        told = recording.environment.get("time_first_samples", "")
        time_first = [int(samples) for samples in told.split(",") if samples]
        return cls(recording.claims, time_first, root_forwards(recording.marks))

    def size(self, begin_ns: int, end_ns: int) -> int:
        """The most common number of samples among the inputs of that time; 0 where there were none, or single samples only.

        Of forwards under autograd and others, those of the last one's kind count.
        """
        last = bisect_right(self._begins, end_ns) - 1
        if last >= 0 and begin_ns <= self._ends[last]:
            end_ns = max(end_ns, self._ends[last])  # keyword arguments are seen when it returns
        following = bisect_left(self._begins, begin_ns)
        if begin_ns in self._begins[following : following + 1]:  # a step by hand ends where the next forward begins,
            begin_ns = self._ends[following - 1] + 1 if following else 0  # whose arguments are seen just before
        of_time = range(bisect_left(self._times, begin_ns), bisect_right(self._times, end_ns))
        chosen = [i for i in of_time if last < 0 or self._recorded(self._times[i]) == self._forwards[last][2]]
        shapes = [self._shapes[i] for i in chosen]
        names = [self._names[i] for i in chosen]
        if images := _listed_images(shapes, names):
            return images
        shapes = _telling(shapes, names)
        states = [shape for shape in shapes if _is_state(shape, shapes[0])]
        sizes = Counter(shape[1] for shape in states) or Counter(map(self._samples, shapes))
        return sizes.most_common(1)[0][0] if sizes else 0

    def _recorded(self, time_ns: int) -> bool:
        """Whether autograd recorded the forward that was given something at that time."""
        return self._forwards[min(bisect_left(self._ends, time_ns), len(self._ends) - 1)][2]

    def _samples(self, shape: tuple[int, ...]) -> int:
        time_first = len(shape) > 1 and shape[1] in self._time_first and shape[0] not in self._time_first
        return shape[1] if time_first else shape[0]


def always_the_same(claims: Mapping[int, tuple[Claim, ...]], marks: tuple[Mark, ...]) -> bool:
    """Whether training gave its modules the same whole tensors in every step, of at least two: a full graph, all of the data.

    Parameters
    ----------
    claims : mapping of int to tuple of Claim
        Allocation → its claims.
    """
    forwards, steps = root_forwards(marks), [end for _, end in optimizer_steps(marks)]
    ends, given = [end for _, end, _ in forwards], dict[int, set[int]]()
    for row, made in claims.items():
        for claim in made:
            at = bisect_left(ends, claim.time_ns)
            if claim.category == "inputs" and claim.shape and at < len(forwards) and forwards[at][2]:
                step = bisect_right(steps, forwards[at][0])
                given.setdefault(step, set()).add(row if _is_whole(claim) else -1)
    sets = list(given.values())
    return len(sets) > 1 and -1 not in sets[0] and all(rows == sets[0] for rows in sets)


def _is_whole(claim: Claim) -> bool:
    """Whether a tensor is all of its storage: no slice of a data set."""
    bits = int("".join(filter(str.isdigit, claim.dtype)) or 8)
    return math.prod(claim.shape or ()) * bits >= claim.nbytes * 8


def _listed_images(shapes: list[tuple[int, ...]], names: list[str]) -> int:
    """How many images a detector was given as a list: its first argument; 0 where that is no such list."""
    first = list(takewhile(lambda shape_name: shape_name[1] == names[0], zip(shapes, names, strict=True)))
    listed = len(first) > 1 and all(len(shape) == 3 and shape[0] in CHANNELS for shape, _ in first)
    return len(first) if listed else 0


def _telling(shapes: list[tuple[int, ...]], names: list[str]) -> list[tuple[int, ...]]:
    """Of an argument that is a dict, one of most dimensions speaks for the rest: images, beside the boxes of all of them in a row."""
    told: dict[str, tuple[int, ...]] = {}
    for shape, name in zip(shapes, names, strict=True):
        told[name] = max(told.get(name, ()), shape, key=len)  # the first of them
    return [max(shape, told[name], key=len) for shape, name in zip(shapes, names, strict=True)]


def _is_one_sample(claim: Claim) -> bool:
    """A vector of measured values: features of one sample, not samples of one feature; classes and indices are whole."""
    return len(claim.shape or ()) == 1 and "float" in claim.dtype


def _is_state(shape: tuple[int, ...], first: tuple[int, ...]) -> bool:
    """Whether this is the state (layers, samples, width) of a recurrent model, whose first input may be (time, samples, …)."""
    return (
        len(shape) == 3 and len(first) > 1 and shape[0] != first[0] and shape[1] in first[:2] and shape[1] != shape[2]
    )
