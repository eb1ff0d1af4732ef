"""From trials to a comparison, on programs whose figures are made up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ipyvram.comparison import Comparison
from ipyvram.render.comparison import bundle
from ipyvram.render.comparison_chart import chart
from ipyvram.sweep.engine import BatchDidNotChange, Question, Sweep
from ipyvram.sweep.trial import CONFIRMING_STEPS, ProgramFailed, Trial

MIB = 2**20


class Program:
    """A `Runner`: 100 MiB and 2 MiB a sample unless said otherwise, on a device of ``room`` bytes."""

    def __init__(
        self,
        need: Callable[[int], int] = lambda b: 100 * MIB + 2 * MIB * b,
        *,
        room: int | None = None,
        data: int = 10**9,
        shape: Callable[[int], tuple[int, ...]] | None = None,
        fails: dict[int, BaseException] | None = None,
        reserved: float | None = None,
        outside: int = 0,
        leaks_at: int | None = None,
        retries: Callable[[int, int], int] = lambda size, steps: 0,
    ) -> None:
        self.need, self.room, self.data, self.shape = need, room, data, shape
        self.fails, self.reserved, self.outside, self.leaks_at = fails or {}, reserved, outside, leaks_at
        self.retries = retries
        self.calls: list[tuple[int, int]] = []
        self.left = ""

    def __call__(self, size: int, steps: int) -> Trial:
        self.calls.append((size, steps))
        if size in self.fails:
            raise self.fails[size]
        given = min(size, self.data)
        peak, left = self.need(given), self.left
        if size == self.leaks_at:
            self.left = "5.00 MiB left by the trial, held by cache"
        held = round(peak * self.reserved) if self.reserved else None
        if self.room is not None and (held or peak) + self.outside > self.room:
            return Trial(size, (given, 3), True, "OutOfMemoryError: CPU out of memory. Tried to allocate 8.00 MiB.")
        speed = 1000 * given / (given + 16)
        return Trial(
            size, self.shape(size) if self.shape else (given, 3), peak_bytes=peak, leftover=left,
            categories={"parameters": min(peak, 100 * MIB), "activations": peak - min(peak, 100 * MIB)},
            reserved_bytes=held, outside_bytes=self.outside, steps=steps + 2, timed_steps=steps,
            samples_per_s=speed, step_s=given / speed, retries=self.retries(size, steps), device="cpu",
        )  # fmt: skip


def ask(program: Program, *, loader: str = "", **question):
    sweep = Sweep(Question("bs", **question), program, lambda batch: loader)
    return sweep.run(), sweep


# -- given sizes -----------------------------------------------------------------------------------------------------


def test_sizes_are_run_in_order_and_the_answer_is_run_again():
    program = Program(room=1000 * MIB)
    found, _ = ask(program, sizes=(8, 16, 32, 64), limit_bytes=300 * MIB)
    assert program.calls == [(8, 3), (16, 3), (32, 3), (64, 3), (100, CONFIRMING_STEPS)]
    assert [(r.batch, r.status) for r in found.rows] == [
        (8, "measured"), (16, "measured"), (32, "measured"), (64, "measured"), (100, "verified"),
    ]  # fmt: skip
    assert (found.largest.batch, found.largest.status, found.largest.needed_bytes) == (100, "verified", 300 * MIB)
    assert found.fit.linear
    assert found.fit.per_sample_bytes == pytest.approx(2 * MIB)
    assert found.trials == 5
    assert found.ended == ""


def test_no_figure_beyond_twice_the_largest_size_and_that_is_said():
    found, _ = ask(Program(room=10**12), sizes=(8, 16, 32), limit_bytes=10**10)
    assert found.largest.batch == 64
    assert "there is room beyond 64" in found.notes[0]


def test_no_room_is_promised_beyond_what_the_data_have():
    found, _ = ask(Program(room=10**12, data=32), sizes=(8, 16, 32), limit_bytes=10**10)
    assert found.largest.batch == 32
    assert not [note for note in found.notes if "room beyond" in note]


def test_without_a_limit_there_is_only_the_knee():
    found, _ = ask(Program(), sizes=(8, 16, 32, 64, 128, 256, 512))
    assert found.largest is None
    assert found.trials == 7
    assert found.knee == 256  # 256 / 272 of the speed at infinity, 512 / 528 at the end: 97 % of the best


def test_sizes_after_an_out_of_memory_are_not_run():
    program = Program(room=200 * MIB)
    found, _ = ask(program, sizes=(16, 32, 64, 128), limit_bytes=200 * MIB)
    assert [size for size, _ in program.calls] == [16, 32, 64, 50]
    assert [(r.batch, r.status) for r in found.rows][-2:] == [(50, "verified"), (64, "OOM")]
    assert (found.largest.batch, found.largest.beyond) == (50, 64)
    assert "not run: 128 (smaller ones ran out of memory)" in found.notes
    assert found.rows[-1].note == "could not allocate 8.00 MiB"


def test_a_size_beyond_the_limit_that_fits_the_card_is_measured():
    found, _ = ask(Program(room=10**9), sizes=(16, 32, 64, 128), limit_bytes=200 * MIB, card_bytes=10**9)
    assert found.rows[-1].status == "measured"
    assert (found.largest.batch, found.largest.beyond) == (50, 64)


def test_reserved_and_what_is_outside_count_against_the_limit():
    program = Program(reserved=1.25, outside=50 * MIB, room=10**12)
    found, _ = ask(program, sizes=(8, 16, 32, 64), limit_bytes=300 * MIB)
    assert found.largest.batch == 50  # (100 + 2 × 50) × 1.25 + 50 = 300
    assert found.largest.needed_bytes == 300 * MIB


def test_multiples_are_kept_to():
    found, _ = ask(Program(room=10**12), sizes=(8, 16, 32, 64), limit_bytes=300 * MIB, multiple=8)
    assert found.largest.batch == 96


def test_a_program_that_is_not_linear_is_not_extrapolated():
    program = Program(lambda b: 10 * MIB + b * b * MIB // 4, room=10**12)
    found, _ = ask(program, sizes=(8, 16, 32, 64), limit_bytes=4000 * MIB)
    assert not found.fit.linear
    assert found.largest.batch == 64
    assert max(size for size, _ in program.calls) == 64


def test_an_answer_that_does_not_stand_its_confirmation_is_not_given():
    """The line says 100; run for longer, it needs more than there is."""
    program = Program(lambda b: 100 * MIB + 2 * MIB * b + (b > 64) * 40 * MIB, room=300 * MIB)
    found, _ = ask(program, sizes=(8, 16, 32, 64), limit_bytes=300 * MIB)
    assert (found.largest.batch, found.largest.status, found.largest.beyond) == (64, "measured", 100)


def test_clipped_batches_are_noticed_and_the_fit_uses_what_was_seen():
    program = Program(data=100)
    found, _ = ask(program, sizes=(32, 64, 128, 256))
    assert [size for size, _ in program.calls] == [32, 64, 128]
    assert found.rows[-1].seen == 100
    assert found.rows[-1].note == "the model was given 100"
    assert found.fit.batches == (32, 64, 100)
    assert found.fit.residual < 1e-6
    assert "at 128 the model was given 100: the data have no more" in found.notes
    assert "not run: 256 (it would be the same)" in found.notes


@pytest.mark.parametrize(("sizes", "given"), [((8, 16, 32), 32), ((64, 128), 32)])
def test_a_loader_built_elsewhere_is_noticed_after_two_trials(sizes, given):
    program = Program(shape=lambda size: (given, 3))
    with pytest.raises(
        BatchDidNotChange, match=f"but the model was given {given} samples each time: loader was built in another cell"
    ):
        ask(program, sizes=sizes, loader="loader")
    assert len(program.calls) == 2


def test_a_loader_whose_batch_is_the_first_size_is_noticed_too():
    with pytest.raises(BatchDidNotChange, match="loader was built in another cell"):
        ask(Program(shape=lambda size: (8, 3)), sizes=(8, 16), loader="loader")


def test_data_of_exactly_the_first_size_are_clipped_and_not_stuck():
    found, _ = ask(Program(data=8), sizes=(8, 16))
    assert found.rows[1].seen == 8


def test_a_name_that_is_not_the_batch_is_noticed():
    with pytest.raises(BatchDidNotChange, match="bs does not reach what makes the batches"):
        ask(Program(shape=lambda size: (5, 3)), sizes=(8, 16))


def test_a_batch_in_the_second_dimension_is_seen():
    found, _ = ask(Program(shape=lambda size: (35, size)), sizes=(8, 16, 32))
    assert [r.seen for r in found.rows] == [8, 16, 32]
    assert "the batch is dimension 1 of the model's input" in found.notes


@pytest.mark.parametrize(
    "shape",
    [
        lambda side: (8, 3, side, side),
        lambda length: (8, length - 1),  # without the last word
        lambda side: (8, side * side // 4, 3),  # patches
    ],
)
def test_another_size_than_the_batch_is_compared_as_what_it_is(shape):
    """An image's side: no data end, no samples are counted, nothing is a line for having two points, no size is the knee."""
    program = Program(lambda side: 100 * MIB + side**2 * 2**10, shape=shape, room=1000 * MIB)
    found, _ = ask(program, sizes=(64, 128, 256, 512), limit_bytes=600 * MIB, effective=64)
    assert (found.of_samples, found.knee, found.accumulation) == (False, None, None)
    assert [r.seen for r in found.rows] == [None] * 4
    assert [r.note for r in found.rows] == [""] * 4
    assert (found.largest.batch, found.largest.status) == (512, "verified")
    assert "the model was given 8 samples at each size: bs is another size of the program than the batch" in found.notes
    assert Comparison.from_json(found.to_json()) == found
    two, _ = ask(program, sizes=(64, 128))
    assert not two.fit.linear
    words = bundle(found)["text/plain"]
    assert "samples/s" in words
    assert "share of best" not in words
    assert "not linear in bs" in words


def test_a_larger_model_is_another_size_too():
    def runner(width: int, steps: int) -> Trial:
        held = {"parameters": width * MIB, "activations": 10 * MIB}
        return Trial(width, (8, 32), peak_bytes=sum(held.values()), categories=held, steps=steps + 2)

    found = Sweep(Question("width", (16, 32, 64, 128)), runner, lambda batch: "loader").run()
    assert not found.of_samples
    assert found.fit.linear
    assert found.fit.reach == 128


def test_a_search_for_another_size_ends_at_the_limit():
    program = Program(lambda side: 100 * MIB + side**2 * 2**10, shape=lambda side: (8, 3, side, side), room=1000 * MIB)
    found, _ = ask(program, rule="largest", limit_bytes=600 * MIB)
    assert 714 <= found.largest.batch < found.largest.beyond == 716
    assert not found.of_samples


def test_without_a_module_nothing_proves_the_batch_and_that_is_said():
    found, _ = ask(Program(shape=lambda size: ()), sizes=(8, 16))
    assert [r.seen for r in found.rows] == [None, None]
    assert found.fit.batches == (8, 16)
    assert "no module was called, so nothing shows that the batch really changed" in found.notes


def test_rows_after_a_leftover_are_marked_and_no_answer_uses_them():
    found, _ = ask(Program(leaks_at=16, room=10**12), sizes=(4, 8, 16, 32, 64), limit_bytes=10**11)
    assert [r.contaminated for r in found.rows if r.batch <= 64] == [False, False, False, True, True]
    assert found.fit.batches == (4, 8, 16)
    assert found.largest.batch == 16
    assert any("held by cache" in note for note in found.notes)


# -- ends before the end ---------------------------------------------------------------------------------------------


def test_an_interrupt_gives_what_there_is():
    stop = KeyboardInterrupt()
    found, sweep = ask(Program(fails={32: stop}), sizes=(8, 16, 32, 64))
    assert sweep.error is stop
    assert found.ended == "interrupted"
    assert [r.batch for r in found.rows] == [8, 16]
    assert found.fit is not None


def test_an_error_of_the_program_in_the_third_trial_gives_what_there_is():
    cause = ZeroDivisionError("mine")
    failure = ProgramFailed("ZeroDivisionError: mine")
    failure.__cause__ = cause
    found, sweep = ask(Program(fails={32: failure}), sizes=(8, 16, 32, 64))
    assert sweep.error is cause
    assert found.ended == "ZeroDivisionError: mine"
    assert len(found.rows) == 2


def test_an_interrupt_before_the_first_trial_has_ended():
    found, _ = ask(Program(fails={8: KeyboardInterrupt()}), sizes=(8, 16))
    assert found.rows == ()
    assert (found.fit, found.largest, found.knee) == (None, None, None)


# -- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "answer"), [(300, 100), (301, 100), (302, 101), (2000, 950), (104, 2)])
def test_the_search_brackets_exactly_and_confirms(limit, answer):
    program = Program(room=limit * MIB)
    found, _ = ask(program, rule="largest", limit_bytes=limit * MIB)
    assert (found.largest.batch, found.largest.status, found.largest.beyond) == (answer, "verified", answer + 1)
    assert program.calls[-1] == (answer, CONFIRMING_STEPS)
    assert found.trials <= 8


def test_an_allocator_that_retries_is_too_tight():
    program = Program(room=300 * MIB, retries=lambda size, steps: 7 if size > 95 and steps == CONFIRMING_STEPS else 0)
    found, _ = ask(program, rule="largest", limit_bytes=300 * MIB)
    tight = max(size for size, _ in program.calls if size <= 100)
    row = next(r for r in found.rows if r.batch == tight)
    assert (row.status, row.note) == ("measured", "the allocator retried 7×")
    assert any("too tight" in note for note in found.notes)
    assert found.largest.batch < tight


@pytest.mark.parametrize("ratio", [1.1, 1.4])
def test_where_the_allocator_makes_room_the_search_goes_below_and_not_above(ratio):
    """The allocator holds `ratio` times the tensors unless the card is full: then it gives cache back and goes on."""
    program = Program(room=1000 * MIB, reserved=ratio)
    plain = program.__call__

    def runner(size: int, steps: int) -> Trial:
        wanted = program.need(size)
        if wanted * ratio <= 1000 * MIB or wanted > 1000 * MIB:
            return plain(size, steps)
        squeezed = Program(retries=lambda size, steps: 2)(size, steps)
        return replace(squeezed, reserved_bytes=1000 * MIB)

    found = Sweep(Question("bs", rule="largest", limit_bytes=1000 * MIB), runner).run()
    truth = int((1000 / ratio - 100) // 2)
    assert (found.largest.batch, found.largest.status, found.largest.beyond) == (truth, "verified", truth + 1)
    assert any("too tight" in note for note in found.notes)
    words = " ".join(bundle(found)["text/plain"].split())
    assert f"{truth + 1} fits only with retries of the allocator" in words


def test_nothing_fits():
    found, _ = ask(Program(room=90 * MIB), rule="largest", limit_bytes=90 * MIB)
    assert found.largest is None
    assert all(r.status == "OOM" for r in found.rows)


def test_the_search_stops_where_the_data_end_and_its_answer_is_what_they_filled():
    found, _ = ask(Program(data=50, room=10**12), rule="largest", limit_bytes=10**11)
    assert found.rows[-1].seen == 50
    assert any("the data have no more" in note for note in found.notes)
    assert (found.largest.batch, found.largest.status, found.largest.needed_bytes) == (50, "verified", 200 * MIB)
    words = " ".join(bundle(found)["text/plain"].split())
    assert "Largest that fits: 50 · verified, 200 MiB of 93.1 GiB; the data have no more" in words
    assert ">50</text>" in chart(found)
    assert f">{found.rows[-1].batch}</text>" not in chart(found)


@pytest.mark.parametrize("share", [0.25, 2])
def test_a_program_that_splits_or_doubles_its_batches_is_not_out_of_data(share):
    """Micro-batches, or two views of each sample: the model is given another number than was asked for, always."""
    program = Program(shape=lambda size: (int(share * size), 3))
    found, _ = ask(program, sizes=(16, 32, 64), limit_bytes=1000 * MIB, estimated=True)
    assert [size for size, _ in program.calls] == [16, 32, 64]
    assert not any("no more" in note for note in found.notes)
    assert found.fit.batches == (16, 32, 64)
    assert found.largest.batch == 128


def test_two_views_of_each_sample_end_with_the_data():
    program = Program(data=50, shape=lambda size: (2 * min(size, 50), 3), room=10**12)
    found, _ = ask(program, sizes=(16, 32, 64), limit_bytes=10**11)
    assert found.largest.batch == 50
    assert found.fit.batches == (16, 32, 50)


class DropsLast(Program):
    """A loader with ``drop_last``: of a size beyond the data it makes no batch."""

    def __call__(self, size: int, steps: int) -> Trial:
        if size <= self.data:
            return super().__call__(size, steps)
        self.calls.append((size, steps))
        return Trial(size, (), peak_bytes=100 * MIB, categories={"parameters": 100 * MIB}, device="cpu")


class AsksNext(Program):
    """`next` on a loader that ends before the cell does."""

    def __call__(self, size: int, steps: int) -> Trial:
        if size <= self.data:
            return super().__call__(size, steps)
        raise ProgramFailed("StopIteration") from StopIteration()


def test_next_on_data_that_have_ended_is_the_end_of_the_data():
    found, sweep = ask(AsksNext(data=50, room=10**12), rule="largest", limit_bytes=10**11)
    assert (found.largest.batch, found.largest.status, found.ended) == (50, "verified", "")
    assert any("fewer batches than the cell asks for" in note for note in found.notes)
    assert sweep.error is None
    found, _ = ask(AsksNext(data=50, room=10**12), sizes=(16, 32, 64, 128), limit_bytes=10**11)
    assert (found.largest.batch, found.rows[-1].note) == (32, "the model was given nothing: the data have no more")
    assert not any("room beyond" in note for note in found.notes)


def test_next_that_fails_at_the_first_size_is_an_error_of_the_program():
    found, sweep = ask(AsksNext(data=4, room=10**12), sizes=(8, 16), limit_bytes=10**11)
    assert isinstance(sweep.error, StopIteration)
    assert found.ended == "StopIteration"


def test_a_size_of_which_the_data_make_no_batch_is_no_answer():
    found, _ = ask(DropsLast(data=50, room=10**12), rule="largest", limit_bytes=10**11)
    assert (found.largest.batch, found.largest.status) == (50, "verified")
    assert found.largest.beyond <= 52
    assert found.fit.per_sample_bytes == pytest.approx(2 * MIB)
    words = " ".join(bundle(found)["text/plain"].split())
    assert "the data have no more" in words
    assert any("the data made no batch" in note for note in found.notes)
    assert not any("rough" in note for note in found.notes)

    program = DropsLast(data=50, room=10**12)
    found, _ = ask(program, sizes=(16, 32, 64, 128), limit_bytes=10**11)
    assert [size for size, _ in program.calls] == [16, 32, 64, 63]
    assert found.largest.batch == 32
    assert "not run: 128 (it would be the same)" in found.notes


def test_the_tutorials_rule_takes_more_trials_for_the_same_answer():
    tutorial, _ = ask(Program(room=900 * MIB), rule="tutorial", limit_bytes=900 * MIB)
    line, _ = ask(Program(room=900 * MIB), rule="largest", limit_bytes=900 * MIB, multiple=16)
    assert tutorial.largest.batch == line.largest.batch == 400
    assert tutorial.trials == 26
    assert line.trials <= 8


def test_the_tutorials_rule_stops_at_the_limit_though_the_card_has_more():
    found, _ = ask(Program(room=10**12), rule="tutorial", limit_bytes=300 * MIB)
    assert [r.batch for r in found.rows] == [16, 32, 48, 64, 80, 96, 112]
    assert (found.largest.batch, found.largest.beyond) == (96, 112)


def test_a_search_that_ends_by_its_trials_says_that_more_may_fit():
    found, _ = ask(Program(room=10**12), rule="tutorial", limit_bytes=10**12)
    assert found.largest.batch == 1024
    assert any("larger sizes were not tried" in note for note in found.notes)
    found, _ = ask(Program(room=10**12), rule="tutorial", limit_bytes=300 * MIB)
    assert not any("not tried" in note for note in found.notes)


# -- the rest --------------------------------------------------------------------------------------------------------


def test_progress_tells_which_trial_runs_and_what_came_before():
    lines: list[str] = []
    Sweep(Question("bs", sizes=(8, 16)), Program(), progress=lines.append).run()
    assert lines == ["trial 1 of 2 · bs = 8", "trial 2 of 2 · bs = 16 · before: 8 → 116 MiB, 333 samples/s"]


def test_rough_speeds_are_said_but_not_of_the_size_that_was_confirmed():
    found, _ = ask(Program(room=300 * MIB), rule="largest", limit_bytes=300 * MIB, steps=1)
    note = next(note for note in found.notes if "rough" in note)
    assert note.startswith("fewer than 3 steps were timed at 16, 32")
    assert "100" not in note


def _shown(found: Comparison) -> str:
    return " ".join(bundle(found)["text/plain"].split())


def test_sizes_at_which_no_step_was_timed_are_named():
    class Short(Program):
        """Data for two steps at 32."""

        def __call__(self, size: int, steps: int) -> Trial:
            trial = super().__call__(size, steps)
            return replace(trial, steps=2, timed_steps=0, samples_per_s=None, step_s=None) if size == 32 else trial

    found, _ = ask(Short(), sizes=(8, 16, 32))
    assert [note.partition(":")[0] for note in found.notes] == ["no speed at 32"]
    assert "Knee: 16 · the smallest size that is about as fast as any that was timed (" in _shown(found)
    found, _ = ask(Program(), sizes=(8, 16, 32))
    assert not found.notes
    assert "Knee: 32 · the smallest size that is about as fast as any (" in _shown(found)


def test_estimates_give_predictions_and_run_nothing_to_confirm():
    program = Program()
    found, _ = ask(program, sizes=(8, 16, 32), limit_bytes=200 * MIB, estimated=True)
    assert len(program.calls) == 3
    assert {r.status for r in found.rows} == {"predicted"}
    assert (found.largest.batch, found.largest.status) == (50, "predicted")
    assert found.kind == "estimated"


def test_accumulation_makes_up_the_effective_batch():
    found, _ = ask(Program(room=200 * MIB), sizes=(8, 16, 32), limit_bytes=200 * MIB, effective=256)
    assert found.largest.batch == 50
    assert (found.accumulation.batch, found.accumulation.steps) == (32, 8)
