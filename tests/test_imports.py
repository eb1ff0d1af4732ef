"""The direction of the arrows: which module may import what, and that importing ipyvram is cheap."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ipyvram

PACKAGE = Path(ipyvram.__file__).parent
MODULES = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}

#: Explains recordings: no torch, no IPython, no pynvml, and nothing of what measures.
PURE = (
    "recording.py", "recording_file.py", "caching_allocator.py", "ledger.py", "attribution.py", "claimed.py", "unclaimed.py", "naming.py", "grouping.py", "marks.py", "analysis.py", "device_figures.py", "report.py", "report_rows.py", "report_frames.py", "step_accounts.py", "stretches.py",
    "thinning.py", "lifetimes.py", "pulse.py", "units.py", "options.py", "option_values.py", "directive.py", "report_json.py", "notebooks.py", "snapshot.py",
    "instants.py", "batches.py", "out_of_memory.py", "remedies.py", "resident.py", "auto.py", "comparing.py",
    "snapshot_phases.py", "snapshot_parts.py", "safe_pickle.py", *(name for name in MODULES if name.startswith("allocator/")),
    *(name for name in MODULES if name.startswith("findings/")),
)  # fmt: skip

#: A report at the end of a cell shows itself (`Report._repr_mimebundle_`), and then only.
SHOWN_ON_DEMAND = ["ipyvram.render.bundle.bundle"]

#: Who may import a module at the outer edge.
EDGES = {
    "pynvml": ("probes/nvml.py",),
    "IPython": ("magic.py", "render/live.py", "showing.py"),
}


def imports(path: Path) -> Iterator[str]:
    """Dotted names a module imports, also inside functions; what only a type checker reads does not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where an arrow points"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def violations(path: Path, forbidden: tuple[str, ...]) -> list[str]:
    return [name for name in imports(path) if any(name == f or name.startswith(f + ".") for f in forbidden)]


@pytest.mark.parametrize("name", PURE)
def test_what_explains_recordings_needs_neither_torch_nor_a_notebook(name):
    measuring = ("torch", "torchvision", "IPython", "pynvml", "ipyvram.probes", "ipyvram.run", "ipyvram.magic")
    allowed = SHOWN_ON_DEMAND if name == "report.py" else []
    assert violations(MODULES[name], (*measuring, "ipyvram.render")) == allowed


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("render/")])
def test_renderers_see_values_and_units_only(name):
    seen = {".".join(n.split(".")[:2]) for n in imports(MODULES[name]) if n.startswith("ipyvram.")}
    values = {
        "ipyvram.report",
        "ipyvram.report_rows",
        "ipyvram.comparison",
        "ipyvram.difference",
        "ipyvram.ranks",
        "ipyvram.resident",
        "ipyvram.units",
        "ipyvram.pulse",
        "ipyvram.render",
    }
    assert seen <= values
    assert violations(MODULES[name], ("torch", "torchvision", "pynvml", "pandas")) == []


@pytest.mark.parametrize("edge", EDGES)
def test_only_one_place_knows_the_outer_edge(edge):
    found = [name for name, path in MODULES.items() if violations(path, (edge,))]
    assert set(found) <= set(EDGES[edge])


def test_the_rules_name_modules_that_exist():
    assert set(PURE) <= set(MODULES)
    assert "probes/nvml.py" in MODULES


def test_importing_ipyvram_imports_neither_torch_nor_ipython_nor_pandas():
    code = "import sys, ipyvram; print(sorted({'torch', 'IPython', 'pandas', 'pynvml'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_public_names_are_these_and_all_resolve():
    assert ipyvram.__all__ == sorted(ipyvram.__all__, key=str.lower) or ipyvram.__all__ == sorted(ipyvram.__all__)
    for name in ipyvram.__all__:
        getattr(ipyvram, name)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ipyvram.nonsense
