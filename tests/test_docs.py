"""What a reader sees: links lead somewhere, tables say what the code says, code compiles, examples ran and are readable."""

from __future__ import annotations

import ast
import html
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from nbformat.validator import validate

import ipyvram
from ipyvram.comparison import Comparison
from ipyvram.options import OPTIONS
from ipyvram.recording import CATEGORIES
from ipyvram.render.bundle import MIME_TYPE
from ipyvram.report import Report
from ipyvram.subcommands import usages
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
MAX_NOTEBOOK_BYTES = 500_000  # four reports or five

by_path = pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


# -- pages ------------------------------------------------------------------------------------------------------------


def without_code(text: str) -> str:
    """A page without its code, where brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


def anchors(text: str) -> set[str]:
    """Names that a link to a heading may use, made as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def links(text: str) -> list[str]:
    return [
        *re.findall(r"\]\(([^)\s]+)\)", text),
        *re.findall(r"(?:src|srcset|href)=\"([^\"]+)\"", text),
    ]


@by_path
def test_links_and_images_lead_somewhere(path):
    broken = []
    for link in links(without_code(path.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path if not name else (path.parent / name).resolve()
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@by_path
def test_python_in_pages_compiles(path):
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S):
        lines = [line for line in block.splitlines() if not re.match(r"\s*%{1,2}[a-z]", line)]
        ast.parse("\n".join(lines))


@by_path
def test_magic_lines_in_pages_are_accepted(path):
    from ipyvram.options import parse

    for line in re.findall(r"^%%vram (.*)$", path.read_text(encoding="utf-8"), re.M):
        if "[" not in line:
            parse(line)


def test_every_page_is_linked_from_the_readme():
    named = {link.partition("#")[0] for link in links((ROOT / "README.md").read_text(encoding="utf-8"))}
    assert {p.relative_to(ROOT).as_posix() for p in PAGES} - {"README.md"} <= named


# -- tables that come from the code -----------------------------------------------------------------------------------


def cell(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "\\|")


def option_table() -> str:
    """The options as a table, from `OPTIONS`."""
    rows = [
        f"| `{f'{o.flag} {o.metavar}'.strip()}` | {cell(o.help)} | {', '.join(f'`{c}`' for c in o.completions)} |"
        for o in OPTIONS
    ]
    return "\n".join(["| option | meaning | Tab offers |", "|---|---|---|", *rows])


def subcommand_table() -> str:
    """What ``%vram`` does on a line of its own, from `usages`."""
    rows = [f"| `{cell(usage)}` | {cell(meaning)} |" for usage, meaning in usages().items()]
    return "\n".join(["| line | meaning |", "|---|---|", *rows])


def estimate_table() -> str:
    """Estimates against real traces, from what `benchmarks/estimate_accuracy.py` wrote."""
    rows = []
    for name in ("torch26", "fourth_program", "second_program", "third_program", "newest"):
        found = json.loads((ROOT / f"benchmarks/results/estimate_traces_{name}.json").read_text(encoding="utf-8"))
        rows += [
            f"| `{r['case']}` | {found['torch'].partition('+')[0]} | {r['real_allocated_bytes'] / 2**20:,.1f} MiB "
            f"| {r['predicted_allocated_bytes'] / 2**20:,.1f} MiB | {error(r['allocated_error'])} "
            f"| {error(r['reserved_error'])} | {r['ordered_match']:.1%} |"
            for r in found["rows"]
        ]
    head = "| trace | estimated with torch | real peak | estimated | allocated | reserved | in order |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def stub_table() -> str:
    """Estimates against torch's own CUDA operators and allocator over the stub, by card."""
    rows = []
    for name, note in (("stub_3090", ""), ("stub_h100", ""), ("stub_t4", ""), ("again", ", run before")):
        found = json.loads((ROOT / f"benchmarks/results/estimate_{name}.json").read_text(encoding="utf-8"))
        kept = [r for r in found["rows"] if "allocated_error" in r and not r["case"].startswith(RECURRENT)]
        cells = []
        for figure in ("allocated_error", "reserved_error"):
            errors = [abs(r[figure]) for r in kept]
            worst = max(kept, key=lambda r: abs(r[figure]))
            cells += [
                f"{statistics.median(errors):.2%}",
                f"{sum(not e for e in errors)}",
                f"{worst[figure]:+.2%} ({worst['case']})",
            ]
        rows.append(f"| {found['card']}{note} | {len(kept)} | {' | '.join(cells)} |")
    head = "| as | programs | allocated, median | to the byte | largest | reserved, median | to the byte | largest |"
    return "\n".join([head, "|---|---|---|---|---|---|---|---|", *rows])


#: What cuDNN keeps of recurrent layers for backward is a bound in the estimate, and nothing with the stub.
RECURRENT = ("lstm-", "recurrent-LSTM", "recurrent-GRU", "recurrent-RNN")


def error(share: float) -> str:
    return f"{share:+.2%}" if share else "0, to the byte"


TABLES = [
    ("options.md", "options", option_table),
    ("options.md", "subcommands", subcommand_table),
    ("how-it-measures.md", "estimates", estimate_table),
    ("how-it-measures.md", "stub", stub_table),
]


@pytest.mark.parametrize(("page", "name", "table"), TABLES)
def test_tables_are_those_of_the_code(page, name, table, request):
    """``pytest tests/test_docs.py --overwrite`` writes them anew."""
    path = ROOT / "docs" / page
    text = path.read_text(encoding="utf-8")
    region = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.S)
    assert region.search(text)
    wanted = region.sub(lambda m: f"{m[1]}{table()}\n{m[2]}", text)
    if request.config.getoption("--overwrite"):
        path.write_text(wanted, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == wanted


def test_every_command_of_the_command_line_is_documented():
    told = subprocess.run(
        [sys.executable, "-m", "ipyvram", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (names,) = re.findall(r"^  (\S+\|\S+)$", told.stdout, re.MULTILINE)
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert len(names.split("|")) >= 4
    for name in names.split("|"):
        assert f"`python -m ipyvram {name} NOTEBOOK" in page


def test_the_python_api_is_documented():
    text = (ROOT / "docs" / "python-api.md").read_text(encoding="utf-8")
    private = {"__version__", "load_ipython_extension", "unload_ipython_extension"}
    missing = [name for name in ipyvram.__all__ if name not in private and f"ipyvram.{name}" not in text]
    assert missing == []


def test_every_module_has_its_place_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = ROOT / "ipyvram"
    modules = {p.relative_to(package).as_posix() for p in package.rglob("*.py") if p.name != "__init__.py"}
    assets = {p.relative_to(package).as_posix() for p in package.glob("render/assets/*.*")}
    named = set(re.findall(r"^\| `([\w/.]+\.\w+)` \|", text, re.M))
    assert modules | assets == named


# -- readme and changelog ---------------------------------------------------------------------------------------------


def test_the_readme_has_both_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("run", "test"):
        blocks = re.findall(rf"<!-- command: {name} -->\n```bash\n([^\n]+)\n```\n", text)
        assert len(blocks) == 1
        assert ".venv/bin/python" in blocks[0]


def test_the_changelog_keeps_its_format():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert headings
    released = r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}"
    assert all(h == "[Unreleased]" or re.fullmatch(released, h) for h in headings)
    kinds = set(re.findall(r"^### (.*)$", text, re.M))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert any(f"[{ipyvram.__version__}]" in h for h in headings) or "[Unreleased]" in headings


# -- examples ---------------------------------------------------------------------------------------------------------


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def payloads(path: Path, kind: str) -> list[dict]:
    outputs = [o for c in code_cells(path) for o in c["outputs"]]
    return [o["data"][kind] for o in outputs if kind in o.get("data", {})]


@by_notebook
def test_examples_were_executed(path):
    counts = [c["execution_count"] for c in code_cells(path) if "".join(c["source"]).strip()]
    assert counts == list(range(1, len(counts) + 1))


@by_notebook
def test_examples_ended_well(path):
    meant = "raises-exception"  # the tag of a cell that is to fail, such as the one that runs out of memory
    failed = [c["id"] for c in code_cells(path) for o in c["outputs"] if o["output_type"] == "error"]
    tagged = [c["id"] for c in code_cells(path) if meant in c["metadata"].get("tags", ())]
    assert set(failed) == set(tagged)


@by_notebook
def test_examples_hold_readable_reports(path, recwarn):
    reports = ipyvram.read_notebook(path)
    assert not [w for w in recwarn if "skipped" in str(w.message)]
    shown = {(p["started_at"], p["label"]) for p in payloads(path, MIME_TYPE)}
    assert len(reports) == len(shown)  # one that a note was put on later stands there twice
    comparisons = [Comparison.from_dict(p) for p in payloads(path, "application/vnd.ipyvram.comparison.v1+json")]
    assert reports or comparisons
    for report in reports:
        assert isinstance(report, Report)
        assert sum(report.peak.values()) == report.peak_bytes
        assert report.to_frame()["peak"][list(CATEGORIES)].sum() == report.peak_bytes


@by_notebook
def test_examples_tell_nothing_of_the_machine(path):
    text = re.sub(r"base64,[\w+/=]+", "", path.read_text(encoding="utf-8"))
    below_root = r"(?<![\w.<~/-])/(?:home|root|Users|tmp|opt|usr|var|mnt|private)/[\w./-]+"
    source_file = r"(?<![\w.<~/-])/[\w./-]+\.(?:py|ipynb)\b"
    found = re.findall(f"{below_root}|{source_file}", text)
    assert found == []


@by_notebook
def test_examples_are_small_and_valid(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert path.stat().st_size < MAX_NOTEBOOK_BYTES
    validate(notebook)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert all(re.fullmatch(r"[\w-]{1,64}", c["id"]) for c in notebook["cells"])
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")


def test_examples_are_listed():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert {p.name for p in NOTEBOOKS} == {link for link in links(text) if link.endswith(".ipynb")}
