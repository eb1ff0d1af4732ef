"""Ways out of an out-of-memory, each with the bytes it would have saved in this cell: its own account comes in. Pure.

A remedy is listed only where the account says that it saves something: never a general list. The order is what it costs
the user: first what costs nothing, then a changed setting, then a changed program.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from ipyvram.checkpoints import best_blocks
from ipyvram.earlier import Unused
from ipyvram.findings.batch import fewer_temporaries
from ipyvram.findings.worth import release
from ipyvram.recording import Observation
from ipyvram.report_rows import OutOfMemory, Remedy, StepAccount, TensorRow
from ipyvram.units import format_bytes

#: Smallest saving worth a line: this share of what may be held in all.
MIN_SHARE = 0.01
#: Room that a smaller batch leaves below the limit: the allocator rounds, and no two steps are quite alike.
MARGIN = 0.05
#: One tensor outside of any model of this share of the card is data that need not be there at once …
LARGE_SHARE = 0.25
#: … and what a cell has made is a model that moves, when this share of it are parameters.
MODEL_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Situation:
    """What the rules know.

    Attributes
    ----------
    oom : OutOfMemory
        Without remedies so far.
    live : tuple of TensorRow
        Everything that was live at that instant, in the order in which it was allocated.
    steps : tuple of StepAccount
        Steps that had finished.
    batch : int or None
        Samples in the batch.
    implementation : str
        Of the optimizer: ``foreach``, ``fused``, ``for-loop``.
    optimizer : str
        Its class; empty where it is not known.
    trains, backward_since_step : bool
        Whether the cell has run a backward or a step at all; whether a backward has run since the last step.
    evaluating : str
        The root module, when it was in eval mode though autograd recorded.
    evaluating_since : str
        The same of the forward that ended in this error, where nothing was traced any more.
    making_state : bool
        The optimizer was making its state, which is no temporary.
    earlier : tuple of TensorRow
        What of `live` was there before the cell: the first of them.
    unused : tuple of Unused
        Variables of earlier cells that this one does not use.
    gradients : dict of str to int
        Model → its gradients, of models that this cell trains or runs.
    checkpoints : dict of str to str
        What the paths of a model's modules in `live` begin with → its own call that sets checkpoints.
    trains_later : bool
        The cell's text goes on to train, as far as it tells.
    """

    oom: OutOfMemory
    live: tuple[TensorRow, ...]
    steps: tuple[StepAccount, ...]
    observations: tuple[Observation, ...]
    batch: int | None
    device: str
    implementation: str
    trains: bool
    backward_since_step: bool
    evaluating: str = ""
    evaluating_since: str = ""
    making_state: bool = False
    earlier: tuple[TensorRow, ...] = ()
    unused: tuple[Unused, ...] = ()
    gradients: dict[str, int] = field(default_factory=dict)
    optimizer: str = ""
    checkpoints: dict[str, str] = field(default_factory=dict)
    trains_later: bool = False

    @property
    def own(self) -> tuple[TensorRow, ...]:
        """What of `live` the cell has made itself."""
        return self.live[len(self.earlier) :]

    @property
    def room_bytes(self) -> int:
        """What the tensors of this process may come to: the card's memory less contexts and other processes."""
        oom = self.oom
        if oom.budget or oom.free_bytes is None or oom.reserved_bytes is None:
            return oom.limit_bytes or 0
        return oom.reserved_bytes + (oom.free_bytes if oom.share_left_bytes is None else oom.share_left_bytes)

    @property
    def missing_bytes(self) -> int:
        """What had to be saved for this allocation to fit."""
        oom = self.oom
        if oom.budget or oom.free_bytes is None:
            return max(1, oom.allocated_bytes + oom.requested_bytes - (oom.limit_bytes or 0))
        return max(1, oom.requested_bytes - (oom.free_bytes if oom.share_left_bytes is None else oom.share_left_bytes))


def remedies(s: Situation) -> tuple[Remedy, ...]:
    """The ways out of one out-of-memory, cheapest first."""
    least = MIN_SHARE * (s.oom.limit_bytes or s.oom.allocated_bytes)
    found = (r for rule in _RULES for r in rule(s))
    return tuple(r for r in found if r.saves_bytes > 0 and (r.saves_bytes >= least or r.enough))


def _remedy(s: Situation, kind: str, text: str, saves: float) -> Remedy:
    """It is enough where all that is still to come fits too."""
    enough: bool | None = saves >= s.missing_bytes
    if enough:
        more = _to_come(s)
        enough = True if more is not None and saves >= s.missing_bytes + more else None
    return Remedy(kind, text, round(saves), enough)


def _to_come(s: Situation) -> int | None:
    """What steps like this one hold at most beyond this instant, in bytes; None where nobody knows.

    Before a step has finished nobody knows how much of a forward is left; after it, gradients and at most two states of each
    parameter (Adam's) are still to be made.
    """
    if s.steps:
        return max(0, sum(_moving_and_fixed(s)) - s.oom.allocated_bytes - s.oom.requested_bytes)
    account = s.oom.account
    if s.oom.phase == "backward":
        return max(0, 3 * account["parameters"] - account["gradients"] - account["optimizer_state"])
    return None if s.oom.phase == "forward" or s.making_state else 0


# -- costs nothing -------------------------------------------------------------------------------------------------------

_RELEASE = {
    "traceback": "%vram free --traceback: an earlier error ({name}) still holds tensors",
    "out": "%vram free --out: {name} hold tensors that no variable does",
    "old_model": "{release}: {holder} holds the previous `{name}`",
    "graphs": "`{name}` keeps {graphs}: append .detach(), or .item() of a loss, instead",
}

_UNUSED = {
    "data": "del {}: data of an earlier cell, which this one does not use",
    "graph": "del {}, or .detach() it: its graph keeps the activations of an earlier cell",
    "model": "del {} and its optimizer: a model of an earlier cell, which this one does not run",
}


def _earlier_error(s: Situation) -> Iterator[Remedy]:
    """What the frames of errors before this one held at that instant; this one has taken their place since."""
    held = sum(t.bytes for t in s.earlier if t.in_error)
    yield _remedy(s, "traceback", "%vram free --traceback: an earlier error still held tensors", held)


def _release(s: Situation) -> Iterator[Remedy]:
    told = ("traceback",) if any(t.in_error for t in s.earlier) else ()
    for o in s.observations:
        if o.kind in told:
            continue
        if o.kind in _RELEASE and o.device in ("", s.device) and (o.kind != "old_model" or o.holder):
            own = o.kind == "traceback" and o.bytes <= s.oom.pinned_bytes  # this very error's
            # On the CPU what the cell does not use is in no account: it may be more than all there is.
            counted = o.bytes - s.oom.pinned_bytes <= (s.oom.limit_bytes or o.bytes)
            if counted and not own:
                graphs = f"{o.count} autograd graphs" if o.count > 1 else "an autograd graph"
                words = {"name": o.name, "holder": o.holder, "graphs": graphs, "release": release(o.holder)}
                text = _RELEASE[o.kind].format(**words)
                yield _remedy(s, o.kind, text, o.bytes)


def _unused(s: Situation) -> Iterator[Remedy]:
    for u in s.unused:
        yield _remedy(s, "unused", _UNUSED[u.what].format(u.holder), u.bytes)


def _no_grad(s: Situation) -> Iterator[Remedy]:
    """An evaluation keeps what only a backward would need: all but the input and the output of the layer that runs."""
    saved = [t.bytes for t in s.own if t.category == "activations"]
    # Of what the traceback holds nothing is known but the sum.
    if s.evaluating_since and s.oom.phase == "forward" and not saved:
        text = f"with torch.no_grad(): {s.evaluating_since} is in eval mode, its activations need not be kept"
        yield _remedy(s, "no_grad", text, s.oom.account["activations"] - 2 * s.oom.requested_bytes)
    unused = not s.trains and any(o.kind == "unused_graph" for o in s.observations)
    if s.oom.phase == "forward" and saved and (s.evaluating or unused):
        why = f"{s.evaluating} is in eval mode" if s.evaluating else "no backward follows these forwards"
        text = f"with torch.no_grad(): {why}, its activations need not be kept"
        found = _remedy(s, "no_grad", text, sum(saved) - 2 * max(saved))
        # No further forward holds more: nothing is kept.
        yield found if found.enough is False else replace(found, enough=True)


def _stale_gradients(s: Situation) -> Iterator[Remedy]:
    if s.oom.phase in ("forward", "") and s.gradients and not s.backward_since_step:
        of = " of " + " and ".join(f"`{model}`" for model in sorted(s.gradients)) if len(s.gradients) > 1 else ""
        when, whose = (f"right after the step{of}", "the last step") if s.trains else ("before it", "an earlier cell")
        text = f"optimizer.zero_grad(set_to_none=True) {when}: gradients of {whose} are still held"
        yield _remedy(s, "set_to_none", text, sum(s.gradients.values()))


# -- a setting -----------------------------------------------------------------------------------------------------------


def _foreach(s: Situation) -> Iterator[Remedy]:
    if s.oom.phase == "optimizer" and s.implementation == "foreach" and not s.making_state:
        held = s.oom.account["temporaries"] + s.oom.requested_bytes
        largest = max((t.bytes for t in s.live if t.category == "parameters"), default=0)
        ways = fewer_temporaries(held, largest, s.optimizer)
        left = 3 * largest if "foreach" in ways else 0
        if ways:
            yield _remedy(s, "foreach", f"{ways} in the optimizer: no temporaries of all parameters", held - left)


def _expandable(s: Situation) -> Iterator[Remedy]:
    """Enough is free in the cache, but in no piece that is large enough."""
    oom = s.oom
    cached = (oom.reserved_bytes or 0) - oom.allocated_bytes
    if oom.budget or oom.largest_free_bytes is None or oom.largest_free_bytes >= oom.requested_bytes:
        return
    text = (
        f"PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True: {format_bytes(cached)} are cached in pieces of at most "
        f"{format_bytes(oom.largest_free_bytes)}"
    )
    yield _remedy(s, "expandable_segments", text, cached)


def _autocast(s: Situation) -> Iterator[Remedy]:
    """Half-precision activations, less the half-precision copies of the parameters that autocast keeps meanwhile.

    Losses stay in full precision, and so do some layers (normalisation, softmax): whether it is enough shows when it runs.
    """
    kept = [t for t in s.own if t.category == "activations"]
    if any(t.dtype in ("float16", "bfloat16") for t in kept):  # it is in use
        return
    full = sum(t.bytes for t in kept if t.dtype == "float32" and t.module)
    copies = sum(t.bytes for t in s.live if t.category == "parameters" and t.dtype == "float32")
    saves = (full - copies) / 2
    if saves > 0 and s.oom.phase in ("forward", "backward"):
        kind = s.device.partition(":")[0]
        text = f'with torch.autocast("{kind}", dtype=torch.bfloat16) around the forward: activations in half the bytes'
        text += ", slow on most CPUs" if kind == "cpu" else ""
        found = _remedy(s, "autocast", text, saves)
        yield replace(found, enough=None) if found.enough else found


def _smaller_batch(s: Situation) -> Iterator[Remedy]:
    """The largest batch whose share of the moving bytes fits; the fixed bytes are those of the fullest step so far.

    Pieces in the cache that are too small for what was asked for are pieces of what moves, and move with it.
    """
    moving, fixed = _moving_and_fixed(s)
    limit = s.room_bytes
    if not s.batch or s.batch < 2 or not limit or moving <= 0:
        return
    pieces = 0 if s.oom.budget else max(0, (s.oom.reserved_bytes or 0) - s.oom.allocated_bytes)
    later = None if s.steps else _to_come(s)
    fits = int(s.batch * (limit * (1 - MARGIN) - fixed - (later or 0)) / (moving + pieces))
    fits = min(fits, s.batch - 1)
    if fits < 1:
        return
    fits = next((fits // m * m for m in (32, 8, 4, 2) if fits >= 2 * m), fits)
    text = f"batch {fits} instead of {s.batch}"
    if later:
        text += ", which leaves room for two states of each parameter (Adam's)"
    elif not s.steps:
        text = (
            f"a smaller batch: at most {fits} instead of {s.batch} by what was there so far, and perhaps far fewer, as no step has "
            "finished (--max-batch finds out)"
        )
    text += "; gradient accumulation keeps the effective batch"
    saves = moving * (1 - fits / s.batch)  # such that all that is known to come fits
    yield Remedy("smaller_batch", text, round(saves), saves >= s.missing_bytes if s.steps else None)


def _moving_and_fixed(s: Situation) -> tuple[int, int]:
    """Bytes that grow with the batch and bytes that do not, at the fuller of this instant and the fullest step."""
    account, more = s.oom.account, s.oom.requested_bytes
    kept = sum(t.bytes for t in s.earlier if t.category in ("activations", "outputs"))
    whole = {t.bytes for t in s.live if t.category == "parameters"} if s.oom.phase == "backward" else set()
    # Data that is no batch (a set kept on the device) does not shrink with it.
    batch = sum(t.bytes for t in s.live if t.category == "inputs" and t.shape and t.shape[0] == s.batch)
    moving = account["activations"] + account["outputs"] - kept + batch
    if s.oom.phase in ("forward", "backward"):
        moving += account["temporaries"] + (0 if more in whole else more)  # a parameter's gradient is as large as it is
    fixed = s.oom.allocated_bytes + more - moving
    for step in s.steps:
        samples = step.batch or s.batch or 1  # steps may have had smaller batches
        in_step = max(0, step.peak.get("activations", 0) + step.peak.get("outputs", 0) - kept)
        in_step += step.peak.get("temporaries", 0) if step.peak_phase in ("forward", "backward") else 0
        own = batch * samples // (s.batch or samples)
        moving = max(moving, round((in_step + own) * (s.batch or samples) / samples))
        if step.peak_phase in ("forward", "backward"):
            later = account["optimizer_state"] - step.peak.get("optimizer_state", 0)  # made after that peak
            fixed = max(fixed, step.peak_bytes - in_step - own + max(0, later))
    return moving, fixed


def _in_parts(s: Situation) -> Iterator[Remedy]:
    """Data that was moved, or was to be, outside of any model: no program needs more than a batch of it on the card."""
    if s.oom.phase:
        return
    sets: dict[str, list[int]] = {}
    for row in s.own:
        if row.category in ("inputs", "outputs") and "[" in row.name:
            sets.setdefault(row.name.partition("[")[0], []).append(row.bytes)
    for name, sizes in sets.items():
        text = f"keep `{name}` on the CPU and move one batch of it at a time ({len(sizes)} tensors are on the card)"
        yield _remedy(s, "in_parts", text, sum(sizes) - max(sizes))
    if s.oom.requested_bytes >= LARGE_SHARE * s.room_bytes > 0:
        text = f"keep it on the CPU and move a part at a time: {format_bytes(s.oom.requested_bytes)} are one tensor"
        yield _remedy(s, "in_parts", text, s.oom.requested_bytes)


def _half_weights(s: Situation) -> Iterator[Remedy]:
    """A model that does not even fit by itself."""
    full = sum(t.bytes for t in s.own if t.category == "parameters" and t.dtype == "float32")
    trains = s.trains or s.trains_later
    if full and not s.oom.phase and not trains and full >= MODEL_SHARE * sum(t.bytes for t in s.own):
        text = "if it is only run, not trained: model.to(torch.bfloat16) before it moves, weights in half the bytes"
        yield _remedy(s, "half_weights", text, (full + s.oom.requested_bytes) / 2)


# -- the program ---------------------------------------------------------------------------------------------------------


def _checkpointing(s: Situation) -> Iterator[Remedy]:
    saves, names = best_blocks(t for t in s.own if t.category == "activations" and t.module)
    if names:
        shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        text = f"torch.utils.checkpoint around {len(names)} blocks ({shown}): about a third more computing"
        for path, call in s.checkpoints.items():
            if all(f"{name}.".startswith(path) for name in names):
                text = f"{call} before training sets checkpoints around its blocks: about a third more computing"
        yield _remedy(s, "checkpointing", text, saves)


_RULES = (
    _earlier_error, _release, _unused, _no_grad, _stale_gradients, _foreach, _expandable, _in_parts, _half_weights, _autocast,
    _smaller_batch, _checkpointing,
)  # fmt: skip
