"""`compare_batches`, and the same for a notebook's cell: what the user wrote comes in, a `Comparison` comes out."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

import torch

from ipyvram import cards, measuring
from ipyvram.comparison import Comparison
from ipyvram.options import Options, from_keywords
from ipyvram.recording import Cell
from ipyvram.sweep.answers import names_a_batch
from ipyvram.sweep.bodies import CellBody, FunctionBody
from ipyvram.sweep.engine import Question, Sweep
from ipyvram.sweep.progress import ProgressLine
from ipyvram.sweep.ranges import check_sizes, parse_sizes
from ipyvram.sweep.search import START
from ipyvram.sweep.trial import TIMED_STEPS, MeasuredTrials, Runner

Quiet = Callable[[], contextlib.AbstractContextManager[Any]]
Progress = Callable[[str], None]


def compare_batches(
    fn: Callable[[int], object],
    batch_sizes: Iterable[int] | str | None = None,
    *,
    label: str | None = None,
    name: str = "batch_size",
    steps: int = TIMED_STEPS,
    limit: str | float | None = None,
    card: str | int | None = None,
    multiple: int = 1,
    effective: int | None = None,
    rule: str | None = None,
    estimate: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Run ``fn`` at several batch sizes; say what each needs, how fast it is, which is the largest that fits and which suffices.

    ``fn`` trains (or infers) as long as it likes: a trial ends after 2 optimizer steps to warm up and ``steps`` timed
    ones. What it prints is not shown. Everything it can reach is afterwards as it was before.

    Parameters
    ----------
    fn : callable
        Called with one batch size.
    batch_sizes : iterable of int, str or None
        ``[8, 16, 32]``, ``"8..64"``, ``"8:128:*2"``; None to search for the largest size that fits.
    label : str, optional
        A name for the comparison.
    name : str
        What to call the size, where it is an image's side, a sequence's length or a layer's width.
    steps : int
        Timed steps of each trial.
    limit : str or float, optional
        What to stay within: ``"80%"`` of the card (the default) or ``"8GiB"``. Trials beyond it, or beyond the card,
        run out of memory inside torch.
    card : str or int, optional
        Judge by a card with so much memory, such as ``"24GiB"``, instead of the device's own.
    multiple : int
        Sizes that are tried beyond ``batch_sizes`` are multiples of this.
    effective : int, optional
        Say how to make up so many samples by accumulating gradients.
    rule : {"fit", "tutorial"}, optional
        How to search: predict, run and correct; or start at 16 and add 16 until the limit is crossed.
    estimate : bool
        Predict what ``card`` would need, as `estimate` does, instead of running ``fn`` there; nothing is timed.
    progress : callable, optional
        Given one line of text at each trial; None for a line on ``sys.stderr`` where that is a terminal.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        An argument is wrong, the batch does not follow the size, or something could not be put back afterwards.
    BaseException
        Whatever ``fn`` raises that is no matter of memory, and `KeyboardInterrupt`; its attribute ``comparison`` holds what
        there is so far.
    """
    options = from_keywords(label, limit=limit, card=card)
    sizes = _sizes(batch_sizes)
    if steps < 1 or multiple < 1 or (effective is not None and effective < 1):
        raise ValueError("steps, multiple and effective are whole numbers from 1")
    if rule not in (None, "fit", "tutorial"):
        raise ValueError(f"rule={rule!r}: write 'fit' or 'tutorial'")
    if sizes and rule is not None:
        raise ValueError(f"rule={rule!r} is how to search: leave batch_sizes out")
    chosen = options.card or (cards.find(None) if estimate else None)
    card_bytes = chosen.total_bytes if chosen is not None else own_card_bytes()
    question = Question(
        name=name,
        sizes=sizes,
        rule="sizes" if sizes else "tutorial" if rule == "tutorial" else "largest",
        limit_bytes=limit_bytes(options.limit, card_bytes),
        card_bytes=card_bytes,
        card_name=options.card_name,
        card_note=options.card_note,
        multiple=multiple,
        effective=effective,
        steps=steps,
        label=options.label,
        estimated=estimate,
    )
    comparison, error = run_sweep(question, FunctionBody(fn), progress or ProgressLine(), _silence, chosen)
    if error is not None:
        error.comparison = comparison  # type: ignore[attr-defined]
        raise error
    return comparison


def compare_cell(
    options: Options,
    cell: Cell,
    namespace: dict[str, Any],
    compile_: Callable[[ast.Module], CodeType],
    progress: Progress,
    quiet: Quiet,
) -> tuple[Comparison, BaseException | None]:
    """``%%vram --batch`` and ``--max-batch``: as `run_sweep`, for a cell whose ``source`` is plain Python."""
    name, sizes = options.batch or (options.max_batch or "", ())
    body = CellBody(name, cell, namespace, compile_)
    own = None if names_a_batch(name) else body.binding.value(namespace)  # at 16 pixels not every model runs
    card = options.card or (cards.find(None) if options.estimate else None)
    card_bytes = card.total_bytes if card is not None else own_card_bytes()
    question = Question(
        name=name,
        sizes=sizes,
        rule="sizes" if sizes else "tutorial" if options.rule == "tutorial" else "largest",
        limit_bytes=limit_bytes(options.limit, card_bytes),
        card_bytes=card_bytes,
        card_name=options.card_name,
        card_note=options.card_note,
        multiple=options.multiple,
        effective=options.effective,
        steps=options.steps,
        start=own or START,
        label=options.label,
        note=options.note,
        estimated=options.estimate,
    )
    return run_sweep(question, body, progress, quiet, card, options.device)


def run_sweep(
    question: Question,
    body: CellBody | FunctionBody,
    progress: Progress,
    quiet: Quiet,
    card: cards.Card | None = None,
    device: str | None = None,
) -> tuple[Comparison, BaseException | None]:
    """Answer a question about the batch sizes of some code.

    Parameters
    ----------
    progress : callable
        Given one line of text at each trial, and an empty one at the end.
    quiet : callable
        A context manager in which what the code prints is not shown.
    card : Card, optional
        What an estimate is for.
    device : str, optional
        Torch's default and current device during the trials.

    Returns
    -------
    comparison, error
        What there is; and what stopped it, None when nothing did.

    Raises
    ------
    ValueError
        It could not begin, or the batch does not follow the size.
    """
    _check_that_it_can_begin(question)
    runner: Runner
    if question.estimated:
        from ipyvram.sweep.estimated import EstimatedTrials

        runner = EstimatedTrials(body, card or cards.find(None), quiet)
    else:
        # Given sizes may show what lies between the limit and the end of the card; a search stays within the limit.
        most = question.card_bytes or question.limit_bytes if question.rule == "sizes" else question.limit_bytes
        runner = MeasuredTrials(body, most, quiet, device)
    sweep = Sweep(question, runner, body.loader_with, progress)
    try:
        return sweep.run(), sweep.error
    finally:
        progress("")


def _check_that_it_can_begin(question: Question) -> None:
    if measuring.is_busy():
        raise ValueError("batch sizes cannot be compared inside a measured cell: give them a cell of their own")
    if question.rule != "sizes" and question.limit_bytes is None:
        raise ValueError("there is no card to fill: say how much memory there is, with --card 24GiB or --limit 8GiB")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        raise ValueError("several processes train together, and a trial in one of them would wait for the others")


def own_card_bytes() -> int | None:
    """Memory of the current CUDA device; None without one."""
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def limit_bytes(limit: tuple[float | None, int | None], card_bytes: int | None) -> int | None:
    """A limit in bytes: a share needs a card."""
    share, size = limit
    if size is not None:
        return size
    return None if share is None or card_bytes is None else int(share * card_bytes)


def _sizes(sizes: Iterable[int] | str | None) -> tuple[int, ...]:
    if sizes is None:
        return ()
    if isinstance(sizes, str):
        return parse_sizes(sizes)
    found = list(sizes)
    if not all(isinstance(size, int) and not isinstance(size, bool) for size in found):
        raise ValueError(f"batch_sizes={found!r}: write whole numbers, such as [8, 16, 32]")
    return check_sizes(set(found))


@contextlib.contextmanager
def _silence() -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
