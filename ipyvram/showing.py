"""What was measured comes in; what stands under the cell goes out: the meter while it runs, then the report and the notes.

Knows IPython's display and nothing of its cells, which are `magic`'s.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from IPython.display import publish_display_data

from ipyvram import auto
from ipyvram.measuring import Measurement, fault
from ipyvram.report import Report

if TYPE_CHECKING:
    from ipyvram.comparison import Comparison
    from ipyvram.render.live import LiveMeter


def line_of(report: Report) -> dict[str, Any] | None:
    """One line that unfolds, where `%vram auto` finds the cell worth it."""
    if not auto.worth_a_line(report):
        return None
    from ipyvram.render.oneline import oneline

    return oneline(report, auto.line(report))


def bundle_of(report: Report) -> dict[str, Any]:
    """The whole report, in every form that a front end may ask for."""
    from ipyvram.render.bundle import bundle

    return bundle(report)


def start_meter(ip: Any, measurement: Measurement) -> LiveMeter | None:
    """The live meter of a measurement, unless it is unwanted or there is nowhere to show it; never raises."""
    if measurement.options.quiet:
        return None
    try:
        from ipyvram.render.live import LiveMeter, screen_for

        screen = screen_for(ip)
        if screen is None:
            return None
        meter = LiveMeter(screen, measurement.pulse)
        meter.start()
    except Exception as failure:
        measurement.notes.append(fault("could not show its live meter", failure))
        return None
    return meter


def finish(
    measurement: Measurement,
    error: BaseException | None,
    meter: LiveMeter | None = None,
    form: Callable[[Report], dict[str, Any] | None] = bundle_of,
) -> None:
    """Take the meter away, show what was measured and then the notes; never raises."""
    place = None
    if meter is not None:
        with contextlib.suppress(Exception, KeyboardInterrupt):
            place = meter.stop()
    report, data = measurement.finish(error), None
    if report is not None:
        try:
            data = form(report)
            if data is not None and place is None:
                publish(data)
        except (Exception, KeyboardInterrupt) as failure:
            what = "measured this but could not show it (it is in ipyvram.last)"
            measurement.notes.append(fault(what, failure))
    if place is None:
        say(measurement.notes)
    else:
        _fill(place, data, measurement.notes)


def _fill(place: str, data: dict[str, Any] | None, notes: list[str]) -> None:
    """All in the meter's place: the cell ends with a clear that waits, and a new output would wipe what the user left."""
    from ipyvram.render.bundle import with_notes

    with contextlib.suppress(Exception):
        publish(with_notes(data, notes), transient={"display_id": place}, update=True)


def show(report: Report) -> None:
    """Display a report here and now, on the main thread."""
    publish(bundle_of(report))


def show_comparison(comparison: Comparison) -> None:
    """Display a comparison; never raises."""
    from ipyvram.render.comparison import bundle

    try:
        publish(bundle(comparison))
    except Exception as failure:
        say([fault("compared the sizes but could not show that", failure)])


def publish(data: dict[str, Any], **more: Any) -> None:
    """Display a bundle of MIME types."""
    publish_display_data(data, **more)  # type: ignore[no-untyped-call, unused-ignore]


def say(notes: list[str]) -> None:
    """Notes under the cell, one line each."""
    for note in notes:
        with contextlib.suppress(Exception):
            publish({"text/plain": note})
