"""Run a notebook without a front end: an ``.ipynb`` comes in; the executed notebook, its HTML page and the reports' text go out.

nbclient, ipykernel and nbconvert are not needed by anything else in ipyvram, so they are looked for only here.
"""

from __future__ import annotations

import asyncio
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TextIO

_NEEDED = ("nbformat", "nbclient", "nbconvert", "ipykernel", "jupyter_client")


class Executed(NamedTuple):
    """The files that were written, and how the first failing cell ended (None when all went well)."""

    notebook: Path
    page: Path
    error: str | None


def execute(
    path: Path, output_dir: Path, *, kernel: str | None = None, timeout_s: int | None = None, out: TextIO | None = None
) -> Executed:
    """Run every cell in a real kernel, printing the text of each ipyvram output as its cell ends.

    Parameters
    ----------
    path : Path
        The notebook; it is never written to. Cells run in its folder.
    output_dir : Path
        Where the executed notebook and its page go, under the notebook's own name; made where it is missing.
    kernel : str, optional
        An installed kernel; by default the Python that runs this, so that no kernel needs to be registered.
    timeout_s : int, optional
        Seconds a cell may take; None for no bound.

    Raises
    ------
    ValueError
        The file is not a notebook, a package or the kernel is missing, or the output would overwrite the notebook.
    """
    _require()
    import nbformat

    if kernel is not None:
        _find_kernel(kernel)
    try:
        with warnings.catch_warnings():  # cells without ids, from old notebooks: `normalize` gives them some
            warnings.simplefilter("ignore")
            notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call, unused-ignore]
        _, notebook = nbformat.validator.normalize(notebook)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, AttributeError) as error:
        why = "it is not JSON" if isinstance(error, nbformat.reader.NotJSONError) else str(error).splitlines()[0][:100]
        raise ValueError(f"{path.name} is not a notebook: {why}") from None
    target = output_dir / path.name
    if target.resolve() == path.resolve():
        raise ValueError(f"--output-dir {output_dir}: the executed notebook would overwrite {path.name}")
    error_text = _run(notebook, path, kernel, timeout_s, out or sys.stdout)
    _drop_empty(notebook)
    output_dir.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, target)  # type: ignore[no-untyped-call, unused-ignore]
    page = target.with_suffix(".html")
    page.write_text(_page(notebook), encoding="utf-8")
    return Executed(target, page, error_text)


def _require() -> None:
    missing = []
    for name in _NEEDED:
        try:
            import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ValueError(f"running a notebook needs {', '.join(missing)}: pip install 'ipyvram[examples]'")


def _find_kernel(name: str) -> None:
    from jupyter_client.kernelspec import KernelSpecManager

    installed = sorted(KernelSpecManager().find_kernel_specs())
    if name not in installed:
        there = f"there are {', '.join(installed)}" if installed else "none is installed"
        raise ValueError(f"--kernel {name}: no such kernel ({there}); without --kernel this Python runs the notebook")


def _run(notebook: Any, path: Path, kernel: str | None, timeout_s: int | None, out: TextIO) -> str | None:
    """Execute in place; the error of the cell that stopped it."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    def executed(cell: Any, cell_index: int, **_: Any) -> None:
        for text in vram_texts(cell):
            print(f"[{cell_index + 1}/{len(notebook.cells)}]\n{text}\n", file=out, flush=True)

    manager = None if kernel else _own_kernel()
    client = NotebookClient(
        notebook,
        timeout=timeout_s,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_executed=executed,
        **({"km": manager} if manager else {"kernel_name": kernel}),
    )

    async def to_the_end() -> None:
        try:
            await client.async_execute()
        finally:
            if manager is not None:  # nbclient ends only kernels that it made
                await manager.shutdown_kernel(now=True)

    try:
        asyncio.run(to_the_end())
    except CellExecutionError as error:
        return f"{error.ename}: {error.evalue}"
    except (CellTimeoutError, DeadKernelError) as error:
        return str(error).splitlines()[0]
    return None


def _own_kernel() -> Any:
    """A kernel of this very Python, whatever kernels are registered."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    manager = AsyncKernelManager()
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=ERROR"]
    manager._kernel_spec = KernelSpec(argv=argv, display_name="Python 3", language="python")
    return manager


def _drop_empty(notebook: Any) -> None:
    """Take away places that show nothing, as the live meter's when its cell has ended: nbconvert warns about each."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.output_type != "display_data" or any(o.data.values())]


def vram_texts(cell: Any) -> list[str]:
    """The text form of every output of a cell that came from ipyvram."""
    bundles = [output.get("data", {}) for output in cell.get("outputs", ())]
    return [
        "".join(data.get("text/plain", ""))
        for data in bundles
        if any(kind.startswith("application/vnd.ipyvram.") for kind in data)
    ]


def _page(notebook: Any) -> str:
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter().from_notebook_node(notebook)  # type: ignore[no-untyped-call, unused-ignore]
    return str(body)
