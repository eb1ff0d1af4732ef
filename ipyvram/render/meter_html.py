"""The live meter as HTML: a `Meter` comes in, a fragment of a few lines goes out.

It stands under a cell that runs here and now, so it is never sanitized; it still uses nothing but inline styles and one small SVG.
Colours are named below the bar: none tells anything alone.
"""

from __future__ import annotations

from ipyvram.pulse import Pulse
from ipyvram.render.markup import MUTED, Part, escape, stacked_bar, style, swatch
from ipyvram.render.meter import HISTORY_S, Meter, in_use, taken
from ipyvram.render.palette import CARD_COLOURS, COLOURS
from ipyvram.report_rows import LABELS
from ipyvram.units import format_bytes

BAR_PX = 10
NOWRAP = "white-space:nowrap"  # a narrow page breaks lines between facts
SPARK_PX = (110, 18)
LIMIT_COLOUR = "#da3cb7"
SOON_S = 120.0  # a limit that is nearer is told in bold


def meter_html(meter: Meter) -> str:
    """Facts and the last minute, the bar, what its colours are; empty before the first pulse."""
    pulse = meter.pulse
    if pulse is None:
        return ""
    look = style(
        "font:12px/1.5 system-ui,-apple-system,sans-serif", "color:inherit", "max-width:880px", "padding:2px 0"
    )
    head = style("display:flex", "align-items:flex-end", "justify-content:space-between", "gap:16px")
    words = f"<div>{_facts(meter)}</div>{_spark(meter)}"
    return f"<div{look}><div{head}>{words}</div>{_bar(pulse, meter.peak_bytes)}</div>"


def _facts(meter: Meter) -> str:
    left = meter.seconds_left()
    loud = {"label"} | ({"left"} if left is not None and left < SOON_S else set())
    whole = style(NOWRAP)
    return " · ".join(
        f"<strong{whole}>{escape(words)}</strong>"
        if name in loud
        else f"<span{style(MUTED, NOWRAP)}>{escape(words)}</span>"
        for name, words in meter.facts().items()
    )


def _spark(meter: Meter) -> str:
    """The last minute as steps from its lowest to its highest, now on the right."""
    past, (width, height) = meter.past, SPARK_PX
    if len(past) < 2:
        return ""
    begin = past[-1][0] - HISTORY_S
    low, high = min(used for _, used in past), max(used for _, used in past)
    span = max(high - low, 0.02 * high, 1.0)  # what hardly moves is drawn flat
    xs = [round((t - begin) / HISTORY_S * width) for t, _ in past]
    ys = [round(height - 2 - (used - low) / span * (height - 3)) for _, used in past]
    turns = [i for i in range(1, len(ys)) if ys[i] != ys[i - 1]]
    steps = "".join(f"H{xs[i]}V{ys[i]}" for i in turns) + f"H{xs[-1]}"
    minute = f"the last minute: {format_bytes(low)} to {format_bytes(high)}"
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    fill = f'<path d="M{xs[0]} {height}V{ys[0]}{steps}V{height}Z" fill="currentColor" fill-opacity=".16"/>'
    line = f'<path d="M{xs[0]} {ys[0]}{steps}" fill="none" stroke="currentColor" stroke-opacity=".72"/>'
    return f'<svg {size}{style("flex:none")} role="img" aria-label="{minute}"><title>{minute}</title>{fill}{line}</svg>'


def _bar(pulse: Pulse, peak_bytes: float) -> str:
    """Used against the card, or off the GPU against the limit, with marks at the peak and at the limit; and its legend."""
    total = pulse.card_bytes or pulse.limit_bytes
    if not total:
        return ""
    parts = _parts(pulse)
    limit = pulse.limit_bytes or total
    total = max(total, int(sum(part.size for part in parts)))
    marks = _mark(peak_bytes / total, "currentColor", f"peak {format_bytes(peak_bytes)}")
    marks += _mark(limit / total, LIMIT_COLOUR, f"limit {format_bytes(limit)}") if limit < total else ""
    names = [(swatch(part.colour), f"{part.label} {part.text}") for part in parts if part.size > 0]
    if limit < total or not pulse.card_bytes:
        line = style("display:inline-block", "height:10px", f"border-left:2px solid {LIMIT_COLOUR}")
        names.append((f"<span{line}></span>", f"Limit {format_bytes(limit)}"))
    apart = style("margin-right:12px", NOWRAP)
    items = " ".join(f"<span{apart}>{sign} <span{style(MUTED)}>{escape(words)}</span></span>" for sign, words in names)
    return f"<div{style('margin:3px 0')}>{stacked_bar(parts, total, BAR_PX)}{marks}</div><div>{items}</div>"


def _mark(share: float, colour: str, title: str) -> str:
    """A line across the bar above it."""
    look = style(
        f"margin:-{BAR_PX}px 0 0 {100 * min(share, 0.997):.1f}%",
        f"height:{BAR_PX}px",
        f"border-left:2px solid {colour}",
    )
    return f'<div{look} title="{title}"></div>'


def _parts(pulse: Pulse) -> list[Part]:
    """What is in use: by category as far as that is known while the cell runs, the rest as one; then the card's own."""
    figures, used = pulse.figures, in_use(pulse)
    known = [Part(LABELS[c], COLOURS[c], size, format_bytes(size)) for c, size in pulse.held.items()]
    rest = used - sum(part.size for part in known)
    if rest < 0:  # a model that was let go since
        known, rest = [], used
    if "allocated" not in figures:
        return [*known, _part("Rest of the process" if known else "Process", CARD_COLOURS["cache"], rest)]
    name = "Activations, other" if known else "Tensors"
    return [
        *known,
        _part(name, COLOURS["activations"], rest),
        _part("Cache", CARD_COLOURS["cache"], max(0.0, figures.get("reserved", used) - used)),
        _part("Context, other processes", CARD_COLOURS["other_processes"], taken(pulse) - used),
    ]


def _part(label: str, colour: str, size: float) -> Part:
    return Part(label, colour, size, format_bytes(size))
