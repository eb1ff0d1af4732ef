"""The largest size that fits: outcomes of trials come in one by one, the next size to try goes out. Pure.

Predict, run, and predict anew inside [largest that fitted, smallest that did not]: by what somebody foresees from the trials
(`rehearsal`), else by a secant. The tutorials' rule (start at 16 and grow until 80 % of the card are in use) stands beside it
behind the same two methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

#: Where a search begins, and how many trials it may take; the confirmation of its answer is one more.
START = 16
MAX_TRIALS = 7
#: More of them while the bracket is wider than this share of its lower end, or its upper end is near but not found: what an
#: allocator holds grows in steps, and a size at which it had to make room tells no bytes.
PATIENCE = 5
WIDE = 0.02
#: One jump multiplies the size by this at most: a line through two small sizes may be of another regime.
MAX_JUMP = 16
#: A far jump aims a little low: a trial that fits tells its bytes, one that does not tells nothing.
CAUTION = 0.97
#: Two sizes closer than this share of the larger make no secant, where others do: what an allocator holds grows in steps.
GRAIN = 0.05
#: A secant that meets the limit beyond so many times a size that did not fit says nothing: something else than memory ended it.
USELESS = 1.25
#: Who foresees is asked no more once so many sizes fitted that were foreseen not to.
MOST_WRONG = 2
#: After a miss the next size is this share of the bracket lower.
BACK_STEP = 0.05

TUTORIAL_STEP = 16  #: and where they start
TUTORIAL_MAX_TRIALS = 64


#: The largest size that fits, between one that does and one that does not (None: not known), as far as anybody can tell; the last
#: argument is where it may be.
Foresight = Callable[[int, int | None, float | None], int | None]


class Outcome(NamedTuple):
    """What a search needs to know of a trial: ``bytes`` count against the limit, None where it ran out of memory."""

    fits: bool
    bytes: int | None = None


class Search(Protocol):
    """Tells which size to try next."""

    fitted: dict[int, Outcome]
    failed: dict[int, Outcome]
    foreseen: bool  #: whether the size that `next` gave last is foreseen to be the answer

    def next(self) -> int | None:
        """The size to try, None when there is nothing more to learn."""

    def tell(self, size: int, outcome: Outcome) -> None:
        """What came of a size."""

    @property
    def low(self) -> int:
        """The largest size that fitted, 0 without one."""

    @property
    def high(self) -> int | None:
        """The smallest size that did not fit."""


class _Trials:
    """The outcomes so far."""

    def __init__(self) -> None:
        self.fitted: dict[int, Outcome] = {}
        self.failed: dict[int, Outcome] = {}
        self.foreseen = False

    def tell(self, size: int, outcome: Outcome) -> None:
        """What came of a size."""
        (self.fitted if outcome.fits else self.failed)[size] = outcome

    @property
    def count(self) -> int:
        return len(self.fitted) + len(self.failed)

    @property
    def low(self) -> int:
        """The largest size that fitted, 0 without one."""
        return max(self.fitted, default=0)

    @property
    def high(self) -> int | None:
        """The smallest size that did not fit."""
        return min(self.failed, default=None)


class SecantSearch(_Trials):
    """Predict, run, correct.

    Parameters
    ----------
    limit_bytes : int
        What the bytes of an `Outcome` are to stay within.
    multiple : int
        Sizes are multiples of this.
    start : int, optional
        The first size; rounded to the multiple.
    foresee : Foresight, optional
        Asked from the second trial on.
    """

    def __init__(
        self,
        limit_bytes: int,
        multiple: int = 1,
        start: int = START,
        most: int = MAX_TRIALS,
        foresee: Foresight = lambda low, high, guess: None,
    ) -> None:
        super().__init__()
        self.limit_bytes, self.multiple, self.most, self._foresee = limit_bytes, multiple, most, foresee
        self._start = max(multiple, self._round(start))
        self._misses = self._hits = 0  # trials in a row that did not fit, that fitted
        self._doubted, self._wrong = 0, 0  # the size last foreseen not to fit; how many of these did

    def tell(self, size: int, outcome: Outcome) -> None:
        """What came of a size; of one that fitted also that it did not when it ran for longer."""
        self.fitted.pop(size, None)
        self._wrong += outcome.fits and size == self._doubted
        super().tell(size, outcome)
        self._hits, self._misses = (self._hits + 1, 0) if outcome.fits else (0, self._misses + 1)

    def next(self) -> int | None:
        """The size to try; None when the answer is bracketed to the multiple, or the trials are used up."""
        low, high, aim = self.low, self.high, self._aim()
        self.foreseen = False
        if high is not None and high - low <= self.multiple:
            return None
        more = high - low > WIDE * low if high is not None else aim is not None and aim <= 2 * low
        if self.count >= self.most + PATIENCE * more:
            return None
        if not self.count:
            return self._start
        foreseen = self._foresee(low, high, aim) if len(self.fitted) > 1 and self._wrong < MOST_WRONG else None
        if foreseen is not None:
            self.foreseen = foreseen > low
            self._doubted = 0 if self.foreseen else self._beyond(low, high)
            return self._doubted or foreseen
        if high is None:
            aim = 2 * low if aim is None else min(self._carefully(aim), low * MAX_JUMP)
            return max(low + self._stride(), self._round(aim))
        return self._between(self._corrected(aim, low, high))

    def _corrected(self, aim: float | None, low: int, high: int) -> float:
        """Where between a size that fitted and one that did not."""
        middle = math.sqrt(max(low, self.multiple) * high) if high > 2 * low else (low + high) / 2
        if aim is None or aim >= USELESS * high or (high > 2 * low and aim >= high):
            return middle
        if self._misses and aim >= high:  # the secant was a little high, or of no use: step back, further each time
            back: float = max(self.multiple, BACK_STEP * (high - low)) * 2 ** (self._misses - 1)
            return max(high - back, middle)
        return max(low + self._stride(), aim)

    def _aim(self) -> float | None:
        """Where the secant through the two sizes nearest to the limit meets it; None while fewer are known."""
        points = sorted((s, o.bytes) for s, o in (self.fitted | self.failed).items() if o.bytes is not None)
        if len(points) < 2:
            return None
        above = next((i for i, (_, count) in enumerate(points) if count > self.limit_bytes), None)
        if above:  # between a size that needs less and one that needs more
            return _meets(self.limit_bytes, points[above - 1], points[above])
        last = points[1 if above == 0 else -1]
        others = [p for p in reversed(points) if p < last]
        far = [p for p in others if last[0] - p[0] >= GRAIN * last[0]]
        aims = (_meets(self.limit_bytes, other, last) for other in (*far, *others))
        return next((aim for aim in aims if aim is not None), last[0] * MAX_JUMP)

    def _beyond(self, low: int, high: int | None) -> int:
        """The next size, which is foreseen not to fit; further away the more often that was not so."""
        reach = self.multiple * 4**self._wrong
        return low + (reach if high is None else max(self.multiple, self._round(min(reach, (high - low) / 2))))

    def _stride(self) -> int:
        """How far at least: further after each size that fitted though by the secant it should not."""
        return int(self.multiple * 2 ** max(0, self._hits - 2))

    def _carefully(self, aim: float) -> float:
        known = max(self.low, 1)
        return aim if aim <= 2 * known else max(2 * known, known + CAUTION * (aim - known))

    def _between(self, size: float) -> int:
        assert self.high is not None
        return min(max(self._round(size), self.low + self.multiple), self.high - self.multiple)

    def _round(self, size: float) -> int:
        return int(size // self.multiple) * self.multiple


class TutorialSearch(_Trials):
    """Start at 16 and grow by 16 until the limit is crossed: the rule people are taught."""

    def __init__(self, multiple: int = 1, most: int = TUTORIAL_MAX_TRIALS) -> None:
        super().__init__()
        self._step, self._most = max(multiple, math.ceil(TUTORIAL_STEP / multiple) * multiple), most

    def next(self) -> int | None:
        """The size to try; None once a size did not fit."""
        if self.failed or self.count >= self._most:
            return None
        return self.low + self._step


def _meets(limit_bytes: int, a: tuple[int, int], b: tuple[int, int]) -> float | None:
    """The size at which the line through two sizes and their bytes meets the limit; None where it does not rise."""
    slope = (b[1] - a[1]) / (b[0] - a[0])
    return b[0] + (limit_bytes - b[1]) / slope if slope > 0 else None
