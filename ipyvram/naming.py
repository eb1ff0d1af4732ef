"""An allocation with its claims comes in; its row for people goes out: name, module, line, shape."""

from __future__ import annotations

import math
import re

from ipyvram.attribution import Attribution
from ipyvram.claimed import ATTRIBUTE, COPY, DATA, KEPT, RELEASED, STATE
from ipyvram.ledger import Ledger
from ipyvram.marks import models
from ipyvram.recording import Cell, Claim, Frame, Origin, Recording, Stack
from ipyvram.report_rows import TensorRow

#: Operands of formulas; what an operator was given tells more than their place in it.
_OPERANDS = frozenset({"self", "other", "mat1", "mat2", "batch1", "batch2", "input", "tensor1", "tensor2", "tensors"})

CUBLAS_WORKSPACE = "cuBLAS workspace"

#: Files that IPython makes up for what is typed: their names say nothing to a person.
_TYPED = re.compile(r"^<(ipython-input(-(?P<number>\d+)-)?|timed )|ipykernel_\d+[/\\]\d+\.py$")

#: The last member of a path, and what is above it.
_MEMBER = re.compile(r"^(.*)\.[^.'\"\]]+$")


class Names:
    """Gives tensors of one recording their names.

    With several models in memory, names and paths begin with the variable that holds the model: ``D.fc.weight``.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._places: dict[int, tuple[Frame | None, str, str]] = {}  # by index of the stack
        found = models(recording.claims)
        self._models = found if len(found) > 1 else frozenset()
        self._product = int(recording.environment.get("product_workspace_bytes", "0") or 0)

    def tensor(self, ledger: Ledger, attribution: Attribution, row: int, category: str) -> TensorRow:
        """The row of one allocation of ``ledger`` while it is in a category."""
        r, claims = self._recording, attribution.claims.get(row, ())
        origin = r.origins[ledger.origin[row]] if ledger.origin[row] >= 0 else Origin()
        claim = _best_claim(claims, category)
        frame, source, file = self._place_of(int(ledger.stack[row]))
        size = int(ledger.bytes[row])
        shape, dtype = _form(claim, origin)
        made_by = "parameter, cast by autocast" if attribution.cast[row] else origin.op.removeprefix("aten.")
        if category == "temporaries" and attribution.phases[row] != "optimizer" and self._for_a_product(ledger, row):
            made_by = made_by or CUBLAS_WORKSPACE
        name, namer = self._name(claim, claims, made_by, category)
        return TensorRow(
            bytes=size,
            category=category,
            name=name,
            module=attribution.modules[row] or (self._module(claim) if claim else ""),
            line=frame.line if frame else None,
            source=source,
            file=file,
            shape=shape,
            dtype=dtype,
            phase=attribution.phases[row],
            graph_of=namer.graph_of if namer else "",
            in_error=namer is not None and namer.in_error,
        )

    def _for_a_product(self, ledger: Ledger, row: int) -> bool:
        """Of the size in which a product of matrices works, and freed before anything else was asked for."""
        return bool(
            self._product and ledger.requested[row] == self._product and ledger.died[row] == ledger.born[row] + 1
        )

    def _place_of(self, stack: int) -> tuple[Frame | None, str, str]:
        found = self._places.get(stack)
        if found is None:
            found = self._places[stack] = self.place(self._recording.stacks[stack] if stack >= 0 else ())
        return found

    def place(self, stack: Stack) -> tuple[Frame | None, str, str]:
        """The innermost line of the measured cell; without one, the user's innermost line and its file."""
        cell = self._recording.cell
        mine = next((f for f in stack if cell.filename and f.file == cell.filename), None) or _in_the_body(stack, cell)
        if mine is not None:
            lines = cell.source.splitlines()
            at = mine.line - cell.first_line
            return mine, lines[at].strip() if 0 <= at < len(lines) else "", ""
        if not stack:
            return None, "", ""
        file = stack[0].file
        typed = _TYPED.search(file)
        if number := cell.numbers.get(file) or (typed and typed["number"]):
            return stack[0], "", f"In[{number}]"
        if typed:
            return stack[0], "", "another cell"
        return stack[0], "", file.replace("\\", "/").rsplit("/", 1)[-1]

    def _name(
        self, claim: Claim | None, claims: tuple[Claim, ...], made_by: str, category: str
    ) -> tuple[str, Claim | None]:
        """The name, and the claim that it is of."""
        if category == "activations":
            return _of_an_activation(claims, made_by)
        if category == "workspaces":  # which operator asked for it first says nothing: every other uses it, too
            return (claim.name if claim is not None and claim.category == category else CUBLAS_WORKSPACE), None
        if claim is None:
            return made_by, None
        if claim.category == DATA and not (claim.graph_of or claim.in_error):
            field = claim.name.rpartition(".")[2]
            return made_by if field in _OPERANDS and made_by else field, claim
        return self._model_of(claim) + claim.name, claim

    def _module(self, claim: Claim) -> str:
        """Where a parameter, or what belongs to one, lives in its model."""
        path = ""
        if not claim.module:  # a tensor of nobody's model
            return path
        if claim.category in ("parameters", "gradients", "buffers", ATTRIBUTE):
            path = _above(claim.name.removesuffix(".grad"))
        elif claim.category == "optimizer_state":
            path = _above(_above(claim.name))
        return (self._model_of(claim) + path).rstrip(".")

    def _model_of(self, claim: Claim) -> str:
        lasting = claim.category in ("parameters", "gradients", "buffers", ATTRIBUTE, "optimizer_state")
        return claim.module + "." if lasting and claim.module in self._models else ""


def _of_an_activation(claims: tuple[Claim, ...], made_by: str) -> tuple[str, Claim | None]:
    """Its name and the claim that it is of: a variable's, or of an earlier cell what keeps it, which says more than who made it."""
    variable = next((c for c in claims if not c.category and c.name), None)
    holder = variable or next((c for c in claims if c.category == KEPT), None)
    if holder is not None:
        return holder.name, holder
    saved = next((c.name for c in claims if c.category in ("activations", DATA)), "")
    return f"{made_by} output" if made_by else kept_for(saved) if saved else "", None


def _above(path: str) -> str:
    """``fc`` of ``fc.weight``; nothing of ``params['fc.weight']``, where the dot is part of a key."""
    found = _MEMBER.match(path)
    return found[1] if found else ""


def kept_for(field: str) -> str:
    """What backward needs it: ``kept for max_pool2d backward`` of the graph's ``MaxPool2DBackward0.self``."""
    node = re.sub(r"Backward\d*$", "", field.partition(".")[0])
    operator = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", node)
    return f"kept for {operator.lower() if 'Backward' in field else operator} backward"


def _in_the_body(stack: Stack, cell: Cell) -> Frame | None:
    """The line of the cell whose body another magic below ours runs (``%%capture``, ``%%time``) as a cell of its own."""
    lines = cell.source.splitlines()
    above = 0
    for i, line in enumerate(lines):
        if line.startswith("%%"):
            above = i + 1
        elif line.strip():
            break
    outermost = next((f for f in reversed(stack) if _TYPED.search(f.file)), None)
    if outermost is None or not any(line.startswith("%%") for line in lines[1:above]):
        return None
    inner = next(f for f in stack if f.file == outermost.file)
    return inner._replace(line=inner.line + above) if inner.line + above <= len(lines) else None


def _best_claim(claims: tuple[Claim, ...], category: str) -> Claim | None:
    """The claim that speaks for the category; a plain name otherwise."""
    of_category = [c for c in claims if c.category == category and c.name]
    if category in ("inputs", "outputs"):  # the variable's name says more than the argument's
        of_category = [c for c in claims if not c.category and c.name] + of_category
    if of_category:
        return of_category[0]
    usable = [c for c in claims if c.name and c.category != RELEASED]
    return next((c for c in usable if c.category in ("", COPY, STATE)), usable[0] if usable else None)


def _form(claim: Claim | None, origin: Origin) -> tuple[tuple[int, ...] | None, str]:
    """Shape and dtype: as the holder sees them, when the holder sees all of it (a bias's gradient is made as 1×n)."""
    if claim is not None and claim.shape is not None and (origin.shape is None or _same_size(claim, origin)):
        return claim.shape, claim.dtype
    return origin.shape, origin.dtype


def _same_size(claim: Claim, origin: Origin) -> bool:
    return claim.dtype == origin.dtype and math.prod(claim.shape or ()) == math.prod(origin.shape or ())
