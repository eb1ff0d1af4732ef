"""How good the estimate is: against real traces, against the CPU's storage trace, and stored for a GPU to be held against.

    python benchmarks/estimate_accuracy.py traces CHECKOUT …   # public programs whose real traces are public too
    python benchmarks/estimate_accuracy.py battery [FAMILY …]  # predict every case of benchmarks/workloads.py
    python benchmarks/estimate_accuracy.py storages            # against the storage trace of the same programs on the CPU
    python benchmarks/estimate_accuracy.py speed               # ResNet-50, three steps, batch 16 to 256
    python benchmarks/estimate_accuracy.py stub [NAME …]       # against torch's own CUDA operators and allocator
    python benchmarks/estimate_accuracy.py again [NAME …]      # the same of cells that have run before in their notebook
    python benchmarks/estimate_accuracy.py random FROM TO      # the same of random cells: seeds FROM up to TO

Each prints a table; ``--out FILE`` writes it as JSON. ``stub`` runs the battery, the programs of the GPU check and
`more_programs` (or those whose names begin with a NAME) with torch's CUDA operators and caching allocator over a stub of the
CUDA runtime (`tests/cuda_stub.py`): what they ask for is real, but no kernel runs, numbers on the card are 0, and cuDNN works in
nothing, on both sides. It is not a measurement of a GPU. ``traces`` wants checkouts (not part of this project) of
NiuHuangxiaozi/assignment2-systems, with einops and jaxtyping, and with torch 2.6.0, which the traces were made with:
decompositions change between versions; of Wedsonlin/assignment2-systems, with einx as well (its traces are of torch 2.11);
of silmont2000/assignment2-systems; or of kkaitlyn111/cs336-a2-systems (torch 2.6.0, a card of 80 GB), which holds its traces, with
kkaitlyn111/cs336-assignment1 beside it in a folder of that name. The other traces are looked for in ``$IPYVRAM_TRACES``, else in
``../shared/traces``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import gzip
import importlib.metadata
import io
import json
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from ipyvram import cards  # noqa: E402
from ipyvram.analysis import analyse  # noqa: E402
from ipyvram.attribution import attribute  # noqa: E402
from ipyvram.caching_allocator import replay  # noqa: E402
from ipyvram.ledger import build  # noqa: E402
from ipyvram.marks import phase_spans  # noqa: E402
from ipyvram.options import Options  # noqa: E402
from ipyvram.recording import CATEGORIES, Action, Cell, Recording  # noqa: E402
from ipyvram.report import Report  # noqa: E402
from ipyvram.simulated import estimation as estimation_module  # noqa: E402
from ipyvram.simulated.estimation import Estimation  # noqa: E402
from ipyvram.units import MIB  # noqa: E402

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=_WHAT)
    parser.add_argument("names", nargs="*", help="a checkout, families, or beginnings of names")
    parser.add_argument("--card", default=None, help="the card to predict for")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for row in _WHAT[options.what](options):
        print(_line(row), flush=True)
        rows.append(row)
        if options.out:
            table = {"torch": str(torch.__version__), "what": options.what, "card": options.card, "rows": rows}
            options.out.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def _line(row: Row) -> str:
    return "  ".join(_cell(key, value) for key, value in row.items() if not isinstance(value, (dict, list)))


def _cell(key: str, value: Any) -> str:
    if key.endswith("_bytes"):
        return f"{key.removesuffix('_bytes')} {'–' if value is None else f'{value / MIB:.3f} MiB'}"
    if key.endswith(("_error", "_match")):
        return f"{key} {'–' if value is None else f'{value:.3%}'}"
    return f"{key} {value:.2f}" if isinstance(value, float) else f"{value}"


def estimated(source: str, card: cards.Card, steps: int = 3) -> tuple[Recording, Report, Estimation]:
    """A program run for an estimate; what it prints is not shown."""
    namespace: dict[str, Any] = {"__name__": "__main__", "torch": torch}
    code = compile(source, "<ipython-input-program>", "exec")
    estimation = Estimation(Options(trace_steps=steps), card, namespace, Cell(source, "<ipython-input-program>"))
    with contextlib.redirect_stdout(io.StringIO()):
        recording = estimation.run(lambda: exec(code, namespace), code=code)
    return recording, analyse(recording), estimation


# -- real traces of a public program -----------------------------------------------------------------------------------------

#: Trace → how its program was called: mode, context length, mixed precision.
_NIU = {
    "niu_f_100": ("forward", 100, False),
    "niu_f_200": ("forward", 200, False),
    "niu_f_200_mixed": ("forward", 200, True),
    "niu_fb_100": ("training", 100, False),
    "niu_fb_200": ("training", 200, False),
}
_NIU_PROGRAM = """
import argparse, runpy
profile = runpy.run_path({file!r})["profile_memory"]
profile(argparse.Namespace(mode={mode!r}, context_length={length}, use_mixed_precision={amp}){mixed})
"""
_MIXED = ', torch.amp.autocast(device_type="cuda", dtype=torch.bfloat16)'

#: The other program's script needs a newer Python; what it does, with its own model, optimizer and loss. Recording began
#: after five warm-up steps.
_WEDSON_PROGRAM = """
from cs336_basics.model import AnnotatedBasicsTransformerLM
from cs336_basics.nn_utils import cross_entropy
from cs336_basics.optimizer import AdamW
model = AnnotatedBasicsTransformerLM(
    vocab_size=10000, context_length={length}, d_model=1024, num_layers=24, num_heads=16, d_ff=4096
)
model.to("cuda")
optimizer = AdamW(model.parameters())
warm, last = (torch.randint(0, 10000, (n, 4, {length}), device="cuda") for n in (5, 1))
if {training}:
    warm_targets, last_targets = (torch.randint(0, 10000, (n, 4, {length}), device="cuda") for n in (5, 1))
    for x, y in zip(warm, warm_targets):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            output = model(x)
            loss = cross_entropy(output, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    del output, loss
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output = model(last[0])
        loss = cross_entropy(output, last_targets[0])
    loss.backward()
    optimizer.step()
else:
    model.eval()
    with torch.inference_mode():
        for x in (*warm, *last):
            model(x)
"""


#: Their script measures one length after another, each with a model of its own, forwards first; recording begins with the model there.
_KAITLYN_PROGRAM = """
from contextlib import nullcontext
from cs336_basics.optimizers import AdamW
from cs336_basics.training import cross_entropy_loss
from cs336_basics.transformer import TransformerLM
def run(length, forward_only, mixed):
    dtype = torch.bfloat16 if mixed else torch.float32
    model = TransformerLM(
        d_model=2560, d_ff=10240, vocab_size=10000, context_length=length, num_heads=32, num_layers=32, theta=10000,
        device="cuda", dtype=dtype,
    )
    model.to("cuda")
    optimizer = AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, eps=1e-8, betas=(0.9, 0.95))
    batch = torch.randint(low=0, high=10000, size=(4, length)).to("cuda")
    with torch.autocast("cuda", dtype=dtype) if mixed else nullcontext():
        torch.cuda.empty_cache()
        optimizer.zero_grad()
        logits = model(batch)
        if not forward_only:
            loss = cross_entropy_loss(logits, batch)
            loss.backward()
            optimizer.step()
for arguments in {runs}:
    run(*arguments)
"""


def traces(options: argparse.Namespace) -> Iterator[Row]:
    """Allocated and reserved peaks, and the share of the real requests that were predicted in their order."""
    estimation_module.MAX_SECONDS = 600.0
    for program in _programs([Path(n).resolve() for n in options.names]):
        with gzip.open(program.trace) if program.trace.suffix == ".gz" else program.trace.open("rb") as file:
            snapshot = _BuiltinsOnly(file).load()
        started = time.perf_counter()
        recording, _, estimation = estimated(program.source, cards.find(options.card or program.card), steps=7)
        real = replay(snapshot)
        asked = [e["size"] for e in snapshot["device_traces"][0] if e["action"] == "alloc"]
        predicted = [row.size for row in estimation.memory.rows if row.alloc]
        first = 0 if program.whole else len(predicted) - len(asked)
        allocated, reserved = _peaks_from(recording, first)
        matcher = difflib.SequenceMatcher(None, asked, predicted[first:], autojunk=False)
        yield {
            "case": program.name,
            "real_allocated_bytes": real.peak_allocated_bytes,
            "predicted_allocated_bytes": allocated,
            "allocated_error": allocated / real.peak_allocated_bytes - 1,
            "real_reserved_bytes": real.peak_reserved_bytes,
            "predicted_reserved_bytes": reserved,
            "reserved_error": reserved / real.peak_reserved_bytes - 1,
            "requests": len(asked),
            "ordered_match": sum(b.size for b in matcher.get_matching_blocks()) / len(asked),
            "seconds": round(time.perf_counter() - started, 2),
        }


def _peaks_from(recording: Recording, request: int) -> tuple[int, int]:
    """Most bytes allocated and reserved, from this request on."""
    (trace,) = recording.traces
    ledger = build(trace)
    instant = int(np.flatnonzero(trace.events.action == Action.ALLOC)[request]) + 1
    assert ledger.reserved is not None
    return int(ledger.allocated()[instant:].max()), int(ledger.reserved[instant:].max())


class _Program(NamedTuple):
    """A program with a real trace; ``whole``: the trace begins where the program does, else somewhere in it."""

    trace: Path
    source: str
    whole: bool
    card: str = "RTX 3090"

    @property
    def name(self) -> str:
        return self.trace.name.removesuffix(".gz").removesuffix(".pickle")


_FOLDER = Path(os.environ.get("IPYVRAM_TRACES", ROOT.parent / "shared" / "traces"))


def _programs(checkouts: list[Path]) -> Iterator[_Program]:
    for checkout in checkouts:
        basics = checkout / "cs336-basics"
        attention, own = checkout / "cs336_systems" / "debug_memory.py", checkout.parent / "cs336-assignment1"
        if (checkout / "memory_files").exists():
            sys.path.insert(0, str(own))
            yield from _of_kaitlyn(checkout / "memory_files")
            continue
        sys.path.insert(0, str(basics if basics.exists() else checkout))
        if attention.exists():
            source = f"import runpy\nrunpy.run_path({str(attention)!r})['main']()"
            yield _Program(_FOLDER / "sil_mem_snapshot.pickle.gz", source, True)
        elif basics.exists():
            _stand_in_for_installed("cs336-basics", "cs336_basics")
            for name, length, training in (("medium_128_inference", 128, False), ("medium_512_train", 512, True)):
                source = _WEDSON_PROGRAM.format(length=length, training=training)
                yield _Program(_FOLDER / f"wedson_{name}.pickle.gz", source, False)
        else:
            for name, (mode, length, amp) in _NIU.items():
                script = "profile_mixprecision_memory.py" if amp else "profile_memory.py"
                file, mixed = str(checkout / "cs336_systems" / "profile_memory" / script), _MIXED if amp else ""
                source = _NIU_PROGRAM.format(file=file, mode=mode, length=length, amp=amp, mixed=mixed)
                yield _Program(_FOLDER / f"{name}.pickle.gz", source, True)


def _of_kaitlyn(folder: Path) -> Iterator[_Program]:
    _stand_in_for_installed("cs336_basics")
    lengths = (128, 256, 512)
    for forward_only, mixed in ((True, False), (True, True), (False, False)):
        for earlier, length in zip((None, *lengths), lengths, strict=False):
            before = [] if earlier is None else [(earlier, forward_only, mixed)]
            if not forward_only:
                before = [*([(512, True, mixed)] if earlier is None else []), *before]
            kind = f"{'forward' if forward_only else 'fullstep'}_{'mixed' if mixed else ''}"
            source = _KAITLYN_PROGRAM.format(runs=[*before, (length, forward_only, mixed)])
            yield _Program(folder / f"memory_ctx{length}_{kind}.pickle", source, False, "H100")


def _stand_in_for_installed(*names: str) -> None:
    """The packages of a checkout ask for their own installed version."""
    ask = importlib.metadata.version
    importlib.metadata.version = lambda name: "0" if name in names else ask(name)  # type: ignore[assignment]


class _BuiltinsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} in a snapshot")


# -- the battery -------------------------------------------------------------------------------------------------------------


def battery(options: argparse.Namespace) -> Iterator[Row]:
    """Every case of `workloads`, predicted; ``measured_*`` waits for a GPU."""
    from benchmarks.workloads import cases, program

    card = cards.find(options.card or "A100 80GB")
    for case in cases(tuple(options.names)):
        started = time.perf_counter()
        _, report, _ = estimated(program(case), card)
        yield {
            "case": case.name,
            "card": card.name,
            "predicted_allocated_bytes": report.peak_bytes,
            "measured_allocated_bytes": None,
            "predicted_reserved_bytes": report.peak_reserved_bytes,
            "measured_reserved_bytes": None,
            "when": report.peak_when,
            "predicted": {name: count for name, count in report.peak.items() if count},
            "notes": list(report.measurement.notes),
            "seconds": round(time.perf_counter() - started, 2),
        }


# -- against the CPU's storage trace -----------------------------------------------------------------------------------------


def storages(options: argparse.Namespace) -> Iterator[Row]:
    """When the second step's forward ends, per category: requests of the estimate beside storages of a real run on the CPU."""
    from benchmarks.workloads import FAMILIES, Case, program
    from ipyvram.run import Run

    card = cards.find(options.card or "T4")
    for family in options.names or ("resnet18", "mobilenet_v3_large", "gpt", "bert", "lora", "unet", "gan"):
        case = Case(family, min(2, FAMILIES[family][1][0]), "adamw", "fp32")
        predicted, _, _ = estimated(program(case), card)
        run = Run(Options(trace_steps=3))
        run.start()
        exec(program(case, "cpu"), {"__name__": "__main__"})
        there, here = _after_forward(predicted, "cuda:0"), _after_forward(run.stop(), "cpu")
        names = [c for c in CATEGORIES if there[c] or here[c]]
        differing = {c: there[c] - here[c] for c in names if there[c] != here[c]}
        yield {
            "case": case.name,
            "predicted_bytes": sum(there.values()),
            "cpu_bytes": sum(here.values()),
            "without_workspaces_error": (sum(there.values()) - there["workspaces"]) / sum(here.values()) - 1,
            "differences": ", ".join(f"{c} {d / MIB:+.3f} MiB" for c, d in differing.items()) or "none",
            "predicted": {c: there[c] for c in names},
            "cpu": {c: here[c] for c in names},
        }


def _after_forward(recording: Recording, device: str) -> dict[str, int]:
    """Category → bytes asked for, when the second step's forward has ended."""
    trace = next(t for t in recording.traces if t.device == device)
    ledger = build(
        dataclasses.replace(trace, source="storages")
    )  # sizes as asked for, not as the allocator rounds them
    phases = [p for p in phase_spans(recording.marks, recording.stop_ns) if p.name == "backward" and p.step == 2]
    accounts = attribute(recording, ledger, device).accounts(ledger)
    instant = int(np.searchsorted(ledger.time_ns, phases[0].begin_ns)) - 1
    return {name: int(account[instant]) for name, account in accounts.items()}


# -- speed -------------------------------------------------------------------------------------------------------------------

_RESNET = """
import torchvision
model = torchvision.models.resnet50().to("cuda")
optimizer = torch.optim.Adam(model.parameters())
while True:
    x, y = torch.randn({batch}, 3, 224, 224, device="cuda"), torch.randint(0, 1000, ({batch},), device="cuda")
    loss = torch.nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad(); loss.backward(); optimizer.step()
"""


def speed(options: argparse.Namespace) -> Iterator[Row]:
    """Seconds of processor and wall time for three steps, and the memory that the estimate added to this process."""
    import psutil
    import torchvision  # noqa: F401 - imported before the clock starts

    process, card = psutil.Process(), cards.find(options.card or "A100 80GB")
    estimated("torch.zeros(1, device='cuda')", card)
    for batch in (16, 64, 256):
        before, wall, busy = process.memory_info().rss, time.perf_counter(), time.process_time()
        _, report, _ = estimated(_RESNET.format(batch=batch), card)
        yield {
            "case": f"resnet50-b{batch}",
            "seconds": time.perf_counter() - wall,
            "processor_seconds": time.process_time() - busy,
            "added_bytes": process.memory_info().rss - before,
            "process_bytes": process.memory_info().rss,
            "predicted_allocated_bytes": report.peak_bytes,
        }


# -- against torch's CUDA operators and allocator ----------------------------------------------------------------------------


#: Programs with cuDNN's recurrent layers: it keeps nothing for backward here, and the estimate a bound.
_RESERVES = ("lstm-", "recurrent-LSTM", "recurrent-GRU", "recurrent-RNN")


def stub(options: argparse.Namespace) -> Iterator[Row]:
    """One program a row: peaks, errors by category as shares of the peak, and the share of requests in their order."""
    from benchmarks.on_stub import Runner, compared, sources

    card = cards.find(options.card or "RTX 3090")
    with Runner(dataclasses.replace(card, total_bytes=256 << 30)) as runner:  # nothing runs out of memory
        for name, source in sources(tuple(options.names)):
            if not name.startswith(_RESERVES):
                yield compared(name, source, runner, lambda text: estimated(text, card, steps=1000))


def again(options: argparse.Namespace) -> Iterator[Row]:
    """One program a row: it runs, is estimated where it has left its model, optimizer and batch, and runs again."""
    from benchmarks.on_stub import Runner, compared_again, sources

    card = cards.find(options.card or "RTX 3090")
    with Runner(dataclasses.replace(card, total_bytes=256 << 30)) as runner:
        for name, source in sources(tuple(options.names)):
            if not name.startswith(_RESERVES):
                yield compared_again(name, source, runner, card.name)


def at_random(options: argparse.Namespace) -> Iterator[Row]:
    """Cells of `random_programs`; those that do not run are passed over. cuDNN keeps nothing for a backward, as with the stub."""
    from benchmarks.on_stub import Runner, compared
    from benchmarks.random_programs import program
    from ipyvram.simulated import recurrent

    recurrent._KEPT.update(dict.fromkeys(recurrent._KEPT, 0))
    card = cards.find(options.card or "RTX 3090")
    with Runner(card) as runner:
        for seed in range(*map(int, options.names)):
            row = compared(str(seed), program(seed), runner, lambda text: estimated(text, card, steps=99))
            if "failed" not in row:
                yield row


_WHAT: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "traces": traces, "battery": battery, "storages": storages, "speed": speed, "stub": stub,
    "again": again, "random": at_random,
}  # fmt: skip

if __name__ == "__main__":
    main()
