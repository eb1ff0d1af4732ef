"""Every operator of torch's own tests, forward and backward: what the estimate asks for beside torch's CUDA operators over the stub.

    python -m tests.cuda_stub python -m benchmarks.operators card real.jsonl [--dtype bfloat16]     # with the operators
    python -m benchmarks.operators estimate real.jsonl [--dtype bfloat16] [NAME …]                   # and without

Both are an H100: the first wants ``IPYVRAM_STUB_CAPABILITY=90`` in its environment.
Wants ``expecttest``, which torch's tests import. Samples are small, so what this finds is what is missing or too much, not how large
it becomes. Prints the samples that differ, and how many do not. It is not a measurement of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

_FORWARD, _BACKWARD, _END, _FAILED = 10_000_000, 11_000_000, 20_000_000, 30_000_000  # sizes of marks, in bytes
_SAMPLES = 4
_SECONDS = 60

_PROGRAM = f"""
import torch
from torch.testing._internal.common_methods_invocations import op_db
def mark(size):
    torch.empty(size, dtype=torch.uint8, device="cuda")
def sample(i, s):
    mark({_FORWARD} + i)
    out = op(s.input, *s.args, **s.kwargs)
    mark({_END})
    leaves = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor) and t.requires_grad]
    if leaves:
        ones = [torch.ones_like(t) for t in leaves]
        mark({_BACKWARD} + i)
        torch.autograd.backward(leaves, ones)
        mark({_END})
op = next(o for o in op_db if (o.name, o.variant_test_name) == {{name!r}})
torch.manual_seed(0)
try:
    for i, s in zip(range({_SAMPLES}), op.sample_inputs("cuda", torch.{{dtype}}, requires_grad={{grad}})):
        try:
            sample(i, s)
        except Exception:
            mark({_FAILED})
except Exception:
    mark({_FAILED})
"""


def operators() -> list[Any]:
    """Of torch's tests; importing them begins CUDA."""
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def program(operator: Any, dtype: str) -> str:
    grad = bool(operator.supports_autograd and getattr(torch, dtype).is_floating_point)
    return _PROGRAM.format(name=(operator.name, operator.variant_test_name), dtype=dtype, grad=grad)


def requests(sizes: list[int]) -> dict[str, list[int]]:
    """What each sample that did not fail asked for: "forward 0", "backward 0", …"""
    found: dict[str, list[int]] = {}
    current: list[int] | None = None
    name = ""
    for size in sizes:
        if _FORWARD <= size < _FORWARD + _SAMPLES or _BACKWARD <= size < _BACKWARD + _SAMPLES:
            name = f"forward {size - _FORWARD}" if size < _BACKWARD else f"backward {size - _BACKWARD}"
            current = []
        elif size == _END and current is not None:
            found[name], current = current, None
        elif size == _FAILED:
            current = None
        elif current is not None:
            current.append(size)
    return found


def _on_card(path: Path, dtype: str) -> None:
    """A fork for each operator: a failure of one, or its state, is none of the others'."""
    every = operators()
    torch.cuda._is_in_bad_fork = lambda: False  # type: ignore[attr-defined] - of the stub nothing is lost in a fork
    with path.open("w", encoding="utf-8") as file:
        for operator in every:
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                os.close(reader)
                signal.alarm(_SECONDS)
                with os.fdopen(writer, "w") as back, contextlib.redirect_stdout(io.StringIO()):
                    torch.cuda.memory._record_memory_history(max_entries=1_000_000)
                    exec(compile(program(operator, dtype), "<operator>", "exec"), {"__name__": "__main__"})
                    events = torch.cuda.memory._snapshot()["device_traces"][0]
                    back.write(json.dumps(requests([e["size"] for e in events if e["action"] == "alloc"])))
                os._exit(0)
            os.close(writer)
            with os.fdopen(reader) as back:
                answer = back.read()
            os.waitpid(child, 0)
            row = {"name": [operator.name, operator.variant_test_name], "requests": json.loads(answer or "{}")}
            file.write(json.dumps(row) + "\n")


def differences(path: Path, dtype: str, names: list[str]) -> Iterator[tuple[str, str, list[int], list[int] | None]]:
    """Operator, sample, what was asked for and what the estimate asks for (None: it fails)."""
    from benchmarks.estimate_accuracy import estimated
    from ipyvram import cards

    card = dataclasses.replace(cards.find("H100"), total_bytes=256 << 30)
    by_name = {(o.name, o.variant_test_name): o for o in operators()}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name, asked = " ".join(filter(None, row["name"])), row["requests"]
        if not asked or (names and row["name"][0] not in names):
            continue
        try:
            _, _, estimation = estimated(program(by_name[tuple(row["name"])], dtype), card, steps=1000)
            predicted = requests([r.size for r in estimation.memory.rows if r.alloc])
        except Exception:
            predicted = {}
        for sample, sizes in asked.items():
            yield name, sample, sizes, predicted.get(sample)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("card", "estimate"))
    parser.add_argument("file", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    if options.what == "card":
        _on_card(options.file, options.dtype)
        return
    same = count = 0
    for name, sample, asked, predicted in differences(options.file, options.dtype, options.names):
        count, same = count + 1, same + (asked == predicted)
        if asked != predicted:
            print(
                f"{name}, {sample}: {asked[:20]}, estimated {'a failure' if predicted is None else predicted[:20]}",
                flush=True,
            )
    print(f"{same} of {count} samples ask for the same in the same order")


if __name__ == "__main__":
    main()
