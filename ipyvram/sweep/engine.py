"""A question about batch sizes and a runner of trials come in; a `Comparison` comes out, whole or as far as it got."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ipyvram.comparison import Answer, Comparison, Row
from ipyvram.sweep import answers, wording
from ipyvram.sweep.fit import Fit
from ipyvram.sweep.rehearsal import Rehearsal
from ipyvram.sweep.search import MAX_TRIALS, START, Outcome, Search, SecantSearch, TutorialSearch
from ipyvram.sweep.trial import CONFIRMING_STEPS, TIMED_STEPS, ProgramFailed, Runner, Trial

Rule = Literal["sizes", "largest", "tutorial"]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes
    ----------
    name : str
        The variable that holds the batch size, or another size of the program.
    sizes : tuple of int
        Sizes to compare, ascending; empty to search for the largest that fits.
    limit_bytes, card_bytes : int or None
        What a size has to stay within, and the card's memory.
    card_name, card_note : str
        Name of the card to judge by instead of the device's own, and how that name was taken.
    multiple : int
        Answers are multiples of this.
    effective : int or None
        Samples per optimizer step that accumulation is to make up.
    steps : int
        Timed steps of a trial.
    start : int
        The size that a search tries first.
    """

    name: str
    sizes: tuple[int, ...] = ()
    rule: Rule = "sizes"
    limit_bytes: int | None = None
    card_bytes: int | None = None
    card_name: str = ""
    card_note: str = ""
    multiple: int = 1
    effective: int | None = None
    steps: int = TIMED_STEPS
    start: int = START
    label: str | None = None
    note: str | None = None
    estimated: bool = False


class BatchDidNotChange(ValueError):
    """The model was the same, and given the same, whatever the size: the sizes would be compared in name only."""


class Sweep:
    """One question on its way to its answer.

    Parameters
    ----------
    question : Question
    runner : Runner
    loader_with : callable
        Names a loader from elsewhere that gives so many samples; empty if there is none.
    progress : callable
        Is given one line of text before and after each trial.

    Attributes
    ----------
    error : BaseException or None
        What stopped it: the program's own error, or the user's interrupt. `run` still gives what there is.
    """

    def __init__(
        self,
        question: Question,
        runner: Runner,
        loader_with: Callable[[int], str] = lambda batch: "",
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.question, self._runner, self._loader_with, self._progress = question, runner, loader_with, progress
        self.trials: list[Trial] = []
        self.error: BaseException | None = None
        self._verified: set[int] = set()
        self._rehearsal = Rehearsal()
        self._expected = len(question.sizes) or MAX_TRIALS + 1
        self._skipped: tuple[int, ...] = ()
        self._ended = ""
        self._notes: list[str] = [question.card_note] if question.card_note else []

    def run(self) -> Comparison:
        """Run the trials.

        Raises
        ------
        BatchDidNotChange
            See there.
        """
        started, clock = time.time(), time.perf_counter()
        try:
            if self.question.sizes:
                self._compare()
            else:
                self._search()
        except KeyboardInterrupt as interrupt:
            self.error, self._ended = interrupt, "interrupted"
        except ProgramFailed as failure:
            self.error, self._ended = failure.__cause__, str(failure)
        return self._comparison(started, time.perf_counter() - clock)

    # -- trials ------------------------------------------------------------------------------------------------------

    def _try(self, size: int, steps: int | None = None) -> Trial:
        number = len(self.trials) + 1
        of = f"{number} of {self._expected}" if self.question.rule == "sizes" else f"{number}"
        self._progress(wording.trying(self.question.name, size, of, self.trials[-1] if self.trials else None))
        try:
            trial = self._runner(size, steps or self.question.steps)
        except ProgramFailed as failure:
            smaller = any(t.shape for t in self.trials if t.size < size)
            if not (smaller and isinstance(failure.__cause__, StopIteration)):
                raise
            trial = Trial(size, error=str(failure))  # ``next`` asked the data for a batch that they do not have
        self.trials.append(trial)
        if not (trial.retries or trial.leftover or self._clipped(trial)):
            self._rehearsal.learn(size, trial.script)
        self._check_that_it_changed()
        return trial

    def _check_that_it_changed(self) -> None:
        ran = [t for t in self.trials if t.shape and not t.out_of_memory]
        if len({t.size for t in ran}) < 2 or self._axis != 0:
            return
        given = {t.shape[0] for t in ran}
        if len(given) > 1:
            return
        batch = given.pop()
        loader = self._loader_with(batch)
        if loader or batch != ran[0].size:
            raise BatchDidNotChange(wording.did_not_change(self.question.name, [t.size for t in ran], batch, loader))

    @property
    def _axis(self) -> int | None:
        return answers.batch_axis(self.trials, self.question.name)

    def _clipped(self, trial: Trial) -> bool:
        return answers.clipped(trial, self.trials, self._axis)

    def _data_end(self) -> bool:
        """Whether a size was beyond what the data have."""
        return any(self._clipped(t) or answers.starved(t, self.trials) for t in self.trials)

    def _fits(self, trial: Trial) -> bool:
        limit, needed = self.question.limit_bytes, trial.needed_bytes
        return not trial.out_of_memory and (limit is None or (needed is not None and needed <= limit))

    def _outcome(self, trial: Trial) -> Outcome:
        """For the search: where the allocator had to make room it would have held more, nobody knows how much."""
        known = not (trial.out_of_memory or trial.retries or answers.starved(trial, self.trials))
        return Outcome(known and self._fits(trial), trial.needed_bytes if known else None)

    # -- the given sizes ---------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        for i, size in enumerate(self.question.sizes):
            trial = self._try(size)
            if trial.out_of_memory or self._clipped(trial) or answers.starved(trial, self.trials):
                self._skipped = self.question.sizes[i + 1 :]
                break
        limit = self.question.limit_bytes
        if limit is None or self.question.estimated:
            return
        rows = self._rows()
        ran, line = answers.largest_that_ran(rows, limit), self._line(rows)
        if ran is None:
            return
        self._expected += 1
        aim = None if self._clipped(self.trials[-1]) else self._beyond(rows, line, ran, limit)
        if aim is None or aim <= ran.batch:
            self._confirm(ran.batch)
        elif self._confirm(aim) and not self._data_end() and self._at_its_reach(line, aim):
            self._notes.append(wording.room_beyond(self.question.name, aim))

    def _at_its_reach(self, line: Fit | None, size: int) -> bool:
        """Whether a size is as large as the line may be used for."""
        return line is not None and size > line.reach - self.question.multiple

    def _beyond(self, rows: Sequence[Row], line: Fit | None, ran: Answer, limit_bytes: int) -> int | None:
        """The largest size that would fit, up to twice the largest that ran: by what the trials asked for, else by the line."""
        multiple = self.question.multiple
        predicted = answers.predicted_largest(rows, line, limit_bytes, multiple)
        aim = None if predicted is None else predicted.batch
        foreseen = self._foresee(ran.batch, ran.beyond, aim)
        if foreseen is None or line is None:
            return aim
        return min(foreseen, int(line.reach // multiple) * multiple)

    # -- the search --------------------------------------------------------------------------------------------------

    def _search(self) -> None:
        question, limit = self.question, self.question.limit_bytes
        assert limit is not None, "a search needs a limit"
        tutorial = question.rule == "tutorial"
        confirms = not tutorial and not question.estimated
        search: Search = (
            TutorialSearch(question.multiple)
            if tutorial
            else SecantSearch(limit, question.multiple, question.start, foresee=self._foresee)
        )
        while True:
            self._run_out(search, confirms)
            low = search.low
            if not low or not confirms or low in self._verified or self._confirm(low):
                break
            search.tell(low, Outcome(False))  # it did not stand a longer run
        if low and search.high is None and not self._clipped(self.trials[-1]):
            self._notes.append(wording.more_untried(len(self.trials)))

    def _foresee(self, low: int, high: int | None, guess: float | None) -> int | None:
        limit, outside = self.question.limit_bytes or 0, max(t.outside_bytes + t.more_bytes for t in self.trials)
        return self._rehearsal.largest(low, high, self.question.multiple, guess, limit - outside)

    def _run_out(self, search: Search, confirms: bool) -> None:
        """Trials until the search is content, or the data end; what is foreseen as the answer is confirmed at once."""
        while (size := search.next()) is not None:
            if confirms and search.foreseen:
                self._confirm(size)
            else:
                self._try(size)
            trial = self.trials[-1]
            search.tell(size, self._outcome(trial))
            if self._clipped(trial):
                break

    def _confirm(self, size: int) -> bool:
        """Run an answer for longer: it has to fit without the allocator's having to make room."""
        trial = self._try(size, CONFIRMING_STEPS)
        good = self._fits(trial) and not trial.retries
        if good:
            self._verified.add(size)
        return good

    # -- the value ---------------------------------------------------------------------------------------------------

    def _rows(self) -> Sequence[Row]:
        return answers.rows(self.trials, self._axis, frozenset(self._verified), self.question.estimated)

    def _line(self, rows: Sequence[Row]) -> Fit | None:
        return answers.fit_rows(rows, self._axis is not None)

    def _comparison(self, started: float, duration_s: float) -> Comparison:
        question, rows, axis = self.question, tuple(self._rows()), self._axis
        line, largest = self._line(rows), self._largest(rows)
        last = next((t for t in reversed(self.trials) if t.device), None)
        knee, fast, micro = None, None, None
        if axis is not None:
            knee, fast = answers.knee(rows, question.limit_bytes), answers.fast_enough(rows)
            micro = largest.batch if largest is not None else knee
        return Comparison(
            name=question.name,
            rows=rows,
            kind="estimated" if question.estimated else "measured",
            rule=question.rule,
            label=question.label,
            note=question.note,
            device=last.device if last is not None else "",
            device_name=last.device_name if last is not None else "",
            limit_bytes=question.limit_bytes,
            card_bytes=question.card_bytes,
            card_name=question.card_name,
            multiple=question.multiple,
            of_samples=axis is not None,
            fit=line,
            largest=largest,
            knee=knee,
            accumulation=answers.accumulate(question.effective, micro) if question.effective and micro else None,
            trials=len(self.trials),
            duration_s=duration_s,
            started_at=started,
            ended=self._ended,
            notes=(
                *self._notes,
                *([wording.memory_limits_speed(fast)] if fast is not None and knee is None else []),
                *wording.notes(question.name, self.trials, rows, axis, line, self._skipped, question.estimated),
            ),
        )

    def _largest(self, rows: Sequence[Row]) -> Answer | None:
        limit = self.question.limit_bytes
        if limit is None:
            return None
        ran = answers.largest_that_ran(rows, limit)
        if not self.question.estimated:
            return ran
        line = self._line(rows)
        predicted = answers.predicted_largest(rows, line, limit, self.question.multiple)
        if predicted is None or (ran is not None and (predicted.batch <= ran.batch or self._clipped(self.trials[-1]))):
            return ran
        if self.question.sizes and not self._data_end() and self._at_its_reach(line, predicted.batch):
            self._notes.append(wording.room_beyond(self.question.name, predicted.batch))
        return predicted
