"""`Comparison`: what is said about the batch sizes of one program, frozen; to and from JSON, and out as a pandas frame.

`sweep.engine` makes it; its renderer sees nothing else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ipyvram.recording import CATEGORIES
from ipyvram.sweep.fit import Fit
from ipyvram.units import format_bytes

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1

#: What a row's figures are: run, run again to confirm an answer, computed, or a run that found no memory.
STATUSES = ("measured", "verified", "predicted", "OOM")


@dataclass(frozen=True, slots=True)
class Row:
    """One size.

    Attributes
    ----------
    batch : int
        What was asked for; ``seen`` is what the model was given (None where no module was called).
    status : str
        One of `STATUSES`.
    peak_bytes : int or None
        The most that was allocated at one instant; None where it ran out of memory. ``low_bytes`` and ``high_bytes``
        are the range of a predicted one.
    categories : dict of str to int
        The same bytes by category.
    reserved_bytes : int or None
        The most the allocator held; None where there is no such thing (CPU).
    needed_bytes : int or None
        What counts against the limit: reserved, the context and other processes; where the cell made one step only, also what
        a second one would need beyond that.
    samples_per_s, step_s : float or None
        Median of ``steps`` timed steps.
    retries : int
        How often the allocator had to give back its cache to find room.
    contaminated : bool
        An earlier trial had left something in memory: the figures are too high, and no answer uses them.
    note : str
        What is to be said of this size.
    """

    batch: int
    status: str
    seen: int | None = None
    peak_bytes: int | None = None
    low_bytes: int | None = None
    high_bytes: int | None = None
    categories: dict[str, int] = field(default_factory=dict)
    reserved_bytes: int | None = None
    needed_bytes: int | None = None
    samples_per_s: float | None = None
    step_s: float | None = None
    steps: int = 0
    retries: int = 0
    contaminated: bool = False
    note: str = ""


def share_given(sizes: Iterable[tuple[int, int | None]]) -> float:
    """Samples the model is given for each that a size asks for: 1, unless the program splits or doubles its batches."""
    size, given = min(((size, given) for size, given in sizes if given), default=(1, 1))
    return given / size


def is_short(size: int, given: int | None, share: float) -> bool:
    """Whether the model was given fewer samples than the size asks for."""
    return bool(given) and given is not None and given + 1 <= share * size


def reached(rows: Sequence[Row]) -> dict[int, int]:
    """Size asked for → the size whose samples the model was given, which is less where the data ended."""
    share = share_given((r.batch, r.seen) for r in rows)
    return {r.batch: int((r.seen or 0) / share) if is_short(r.batch, r.seen, share) else r.batch for r in rows}


@dataclass(frozen=True, slots=True)
class Answer:
    """A size to take, and how it is known. ``beyond``: the smallest size that is known not to fit."""

    batch: int
    status: str
    needed_bytes: int | None = None
    low_bytes: int | None = None
    high_bytes: int | None = None
    beyond: int | None = None


@dataclass(frozen=True, slots=True)
class Accumulation:
    """``steps`` batches of ``batch`` before each optimizer step make one of ``effective`` samples."""

    effective: int
    batch: int
    steps: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Batch sizes of one program.

    Attributes
    ----------
    name : str
        The variable that held the size.
    of_samples : bool
        Whether the size is a number of samples, a batch's; else it is another size of the program (an image's side, a
        sequence's length, a layer's width), and `Row.batch` is that.
    kind : str
        ``"measured"`` or ``"estimated"``.
    rule : str
        ``"sizes"`` (the sizes that were asked for), ``"largest"`` (predict, run, correct) or ``"tutorial"``.
    rows : tuple of Row
        One per size, ascending.
    limit_bytes, card_bytes : int or None
        What `Row.needed_bytes` is to stay within, and the card's memory.
    card_name : str
        Name of the card that ``card=`` names instead of the device's own; else empty.
    fit : Fit or None
        The line through the peaks.
    largest : Answer or None
        The largest size that fits; None without a limit or where none does.
    knee : int or None
        The smallest size within 5 % of the best speed.
    trials : int
        Runs (or estimates) that it took.
    ended : str
        Empty when it came to its end; else why it did not, in words.
    notes : tuple of str
        One plain line each.
    """

    name: str
    rows: tuple[Row, ...]
    kind: str = "measured"
    rule: str = "sizes"
    label: str | None = None
    note: str | None = None
    device: str = ""
    device_name: str = ""
    limit_bytes: int | None = None
    card_bytes: int | None = None
    card_name: str = ""
    multiple: int = 1
    of_samples: bool = True
    fit: Fit | None = None
    largest: Answer | None = None
    knee: int | None = None
    accumulation: Accumulation | None = None
    trials: int = 0
    duration_s: float = 0.0
    started_at: float = 0.0  #: Unix time, seconds
    ended: str = ""
    notes: tuple[str, ...] = ()

    @property
    def best_samples_per_s(self) -> float | None:
        """The best speed of any size."""
        return max((r.samples_per_s for r in self.rows if r.samples_per_s is not None), default=None)

    def share_of_best(self, row: Row) -> float | None:
        """The speed of a row as a share of the best."""
        best = self.best_samples_per_s
        return None if row.samples_per_s is None or not best else row.samples_per_s / best

    def to_frame(self) -> pd.DataFrame:
        """One row a size, the index is the size asked for.

        Returns
        -------
        DataFrame
            ``seen``, ``status``, ``peak``, ``peak_low``, ``peak_high``, ``reserved``, ``needed`` (bytes), the categories
            (bytes), ``samples_per_s``, ``share_of_best``, ``step_s`` (seconds), ``steps``, ``retries``, ``contaminated``, ``note``.
        """
        import pandas as pd

        rows = [
            {
                "seen": r.seen,
                "status": r.status,
                "peak": r.peak_bytes,
                "peak_low": r.low_bytes,
                "peak_high": r.high_bytes,
                "reserved": r.reserved_bytes,
                "needed": r.needed_bytes,
                **{c: r.categories.get(c, 0) if r.categories else None for c in CATEGORIES},
                "samples_per_s": r.samples_per_s,
                "share_of_best": self.share_of_best(r),
                "step_s": r.step_s,
                "steps": r.steps,
                "retries": r.retries,
                "contaminated": r.contaminated,
                "note": r.note,
            }
            for r in self.rows
        ]
        whole = ("seen", "peak", "peak_low", "peak_high", "reserved", "needed", *CATEGORIES)
        real = ("samples_per_s", "share_of_best", "step_s")
        kinds = dict.fromkeys(whole, "Int64") | dict.fromkeys(real, "Float64")
        index = pd.Index([r.batch for r in self.rows], name="batch", dtype="int64")
        names = [
            *whole[:1], "status", *whole[1:], *real, "steps", "retries", "contaminated", "note",
        ]  # fmt: skip
        frame = pd.DataFrame(rows, columns=names, index=index)
        return frame.astype(kinds)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """What a notebook shows of it."""
        from ipyvram.render.comparison import bundle

        return bundle(self)

    def __str__(self) -> str:
        """The table and the answers as text, for ``print`` in a script."""
        from ipyvram.render.comparison_text import text

        return text(self)

    # -- JSON --------------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON types."""
        return {"schema": SCHEMA_VERSION} | asdict(self)

    def to_json(self) -> str:
        """`to_dict` as text; NaN never appears."""
        return json.dumps(self.to_dict(), separators=(",", ":"), allow_nan=False, ensure_ascii=False)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Comparison:
        """Inverse of `to_dict`.

        Raises
        ------
        ValueError
            Not a comparison, a damaged one, or one of a newer schema.
        """
        try:
            if data["schema"] > SCHEMA_VERSION:
                raise ValueError(
                    f"its schema is {data['schema']}, newer than {SCHEMA_VERSION}: update ipyvram to read it"
                )
            known = {k: v for k, v in data.items() if k in cls.__dataclass_fields__}
            known["rows"] = tuple(Row(**row) for row in known["rows"])
            known["notes"] = tuple(known.get("notes", ()))
            for name, kind in (("largest", Answer), ("accumulation", Accumulation)):
                known[name] = None if known.get(name) is None else kind(**known[name])
            known["fit"] = None if known.get("fit") is None else _fit(known["fit"])
            found = cls(**known)
            if any(row.status not in STATUSES or not isinstance(row.batch, int) for row in found.rows):
                raise ValueError("a row has no status")
            return found
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"not a readable ipyvram comparison: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> Comparison:
        """Inverse of `to_json`; errors as for `from_dict`."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"not a readable ipyvram comparison: {error}") from error
        return cls.from_dict(data)


def _fit(data: dict[str, Any]) -> Fit:
    lines = {name: (line[0], line[1]) for name, line in data["categories"].items()}
    points = {name: tuple(data[name]) for name in ("batches", "peaks", "dropped")}
    return Fit(**(data | points | {"categories": lines}))


def describe_fit(fit: Fit, size: str = "") -> str:
    """The line in words: ``fixed 1.76 GiB + 56.6 MiB/sample, residual ≤ 0.6 %``; ``size`` is what is compared but batches."""
    times = f" × {size}" if size else "/sample"
    text = f"fixed {format_bytes(fit.fixed_bytes)} + {format_bytes(fit.per_sample_bytes)}{times}"
    if len(fit.batches) > 2:
        text += f", residual ≤ {_percent(fit.residual)}" if fit.residual > 1e-6 else ", no residual"
    if not fit.linear:
        return f"not linear in {size or 'the batch'}, so nothing is extrapolated: {fit.reason}"
    if fit.dropped:
        text += f" (without {', '.join(map(str, fit.dropped))}, where the peak is another moment of the step)"
    return text


def _percent(share: float) -> str:
    """Rounded up, since it is said to be at most that."""
    return f"{math.ceil(share * 1000 - 1e-9) / 10:.1f} %"
