"""Trials that run nothing on a card: a size comes in, what it would need on a named card comes out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ipyvram.analysis import analyse
from ipyvram.cards import Card
from ipyvram.options import Options
from ipyvram.simulated.estimation import Estimation
from ipyvram.simulated.recorded import PREDICTED
from ipyvram.simulated.refusal import CannotEstimate
from ipyvram.sweep.batch_seen import BatchSeen
from ipyvram.sweep.failures import one_line
from ipyvram.sweep.rehearsal import script_of
from ipyvram.sweep.trial import Body, ProgramFailed, Trial, with_figures
from ipyvram.units import format_bytes

#: Optimizer steps of a trial: the first makes optimizer state and workspaces, the second is the first steady one.
STEPS = 2

NOT_ON_THE_CARD = (
    "nothing of this code is on the card, so there is nothing to estimate: move the model and each batch there, with "
    ".to('cuda') or .to(device)"
)


class EstimatedTrials:
    """A `Runner`: estimates leave everything as it was, so trials cannot disturb each other.

    Parameters
    ----------
    body : Body
    card : Card
    quiet : callable
        A context manager in which what the code prints and displays is not shown.
    """

    def __init__(
        self,
        body: Body,
        card: Card,
        quiet: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        self._body, self._card, self._quiet = body, card, quiet

    def __call__(self, size: int, steps: int) -> Trial:
        """One estimate; ``steps`` are not timed, as nothing is computed.

        Raises
        ------
        CannotEstimate
            The code does something that has no estimate, or keeps off the card: each trial would then compute for real.
        ProgramFailed
            The code raised something.
        """
        estimation = Estimation(Options(trace_steps=STEPS), self._card, self._body.namespace, self._body.cell)
        batches = BatchSeen()
        batches.start()
        try:
            with self._quiet():
                recording = estimation.run(lambda: self._body.run(size), extra=(self._body,))
        except CannotEstimate:
            raise
        except Exception as error:
            raise ProgramFailed(one_line(error)) from error
        finally:
            batches.stop()
        trial = Trial(size=size, shape=batches.shape, steps=estimation.steps)
        report = analyse(recording)
        found = with_figures(trial, report)
        if not found.peak_bytes and not found.out_of_memory:
            raise CannotEstimate(NOT_ON_THE_CARD)
        # What is left out is the same for every size but for its amount, and a comparison says it once.
        room = f"{PREDICTED}; {format_bytes(self._card.context_bytes)} are counted for the CUDA context, and nothing for other programs"
        if bound := estimation.ways.convolution_bound:
            room += f" or what cuDNN works in (at {size} up to about {format_bytes(bound)})"
        same = dict.fromkeys(
            room if note.startswith(PREDICTED) else note for note in found.notes if note != self._card.note
        )
        same |= dict.fromkeys(finding.text for finding in report.findings if finding.kind == "left_on_host")
        return replace(found, notes=tuple(same), script=script_of(recording, found.device))
