"""``%%vram`` in real kernels: the cell behaves as if we were not there, and the report stands under it."""

from __future__ import annotations

import json

import pytest

from tests import kernels
from tests.kernels import Kernel

pytestmark = pytest.mark.kernel

TRAIN = """\
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
optimizer = torch.optim.Adam(model.parameters())
for _ in range(4):
    optimizer.zero_grad()
    model(torch.randn(32, 64)).square().mean().backward()
    optimizer.step()
"""


@pytest.fixture(scope="module", params=list(kernels.PYTHONS))
def process(request, tmp_path_factory):
    kernel = kernels.start(request.param, tmp_path_factory.mktemp("kernel"))
    kernel.run("import torch, pandas\n%load_ext ipyvram", timeout=120)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(process: Kernel) -> Kernel:
    return process.fresh()


def armed(kernel: Kernel) -> bool:
    """Whether anything is still being measured."""
    expression = "__import__('ipyvram.magic').magic._session._armed, __import__('ipyvram.measuring').measuring._current"
    return kernel.value(expression) != "(None, None)"


# -- values ----------------------------------------------------------------------------------------------------------


def test_a_report_stands_under_a_training_cell(kernel):
    outcome = kernel.run("%%vram first try --note hello\n" + TRAIN)
    assert outcome.status == "ok"
    assert outcome.notes == []
    assert outcome.report["label"] == "first try"
    assert outcome.report["note"] == "hello"
    assert outcome.stderr == ""
    assert not armed(kernel)


@pytest.mark.parametrize("head", ["%%vram", "%vram", "%%vram a label", "# a comment\n%%vram", "\n\n%%vram"])
def test_last_expression_is_shown_and_kept(kernel, head):
    outcome = kernel.run(f"{head}\nx = 20\nx + 1")
    number = outcome.reply["execution_count"]
    assert outcome.result == "21"
    assert outcome.report
    assert kernel.value(f"(_, _{number}, Out[{number}])") == "(21, 21, 21)"


def test_the_report_comes_after_the_result(kernel):
    outcome = kernel.run("%%vram\nprint('before')\n42")
    kinds = [kind for kind, _ in outcome.messages if kind in ("stream", "execute_result", "display_data")]
    assert kinds == ["stream", "execute_result", "display_data"]


def test_trailing_semicolon_hides_the_value(kernel):
    outcome = kernel.run("%%vram\n1 + 1;")
    assert outcome.result is None
    assert outcome.report


def test_a_cell_of_statements_shows_no_value(kernel):
    assert kernel.run("%%vram\nx = 1").result is None


def test_no_name_is_added_to_the_namespace(kernel):
    names = "sorted(n for n in get_ipython().user_ns if not n.startswith('_') and n not in ('In', 'Out'))"
    before = kernel.value(names)
    kernel.run("%%vram\npass")
    assert kernel.value(names) == before
    kernel.run("%%vram\nonly_this = 1")
    assert eval(kernel.value(names)) == sorted([*eval(before), "only_this"])


# -- errors ----------------------------------------------------------------------------------------------------------


def test_error_has_the_users_frames_and_lines_and_the_report(kernel):
    outcome = kernel.run("%%vram broken\ndef f():\n    raise KeyError('mine')\n\nf()")
    plain = kernel.run("#\ndef f():\n    raise KeyError('mine')\n\nf()")
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "KeyError"
    assert outcome.our_frames == []
    frames = [line for line in outcome.traceback.splitlines() if "line" in line and "in " in line]
    assert len(frames) == len([line for line in plain.traceback.splitlines() if "line" in line and "in " in line])
    for arrow in ("----> 5", "----> 3"):
        assert arrow in plain.traceback
        assert arrow in outcome.traceback
    assert outcome.report["error"] == "KeyError: 'mine'"
    assert not armed(kernel)


def test_an_operators_error_shows_no_frame_of_ours(kernel):
    outcome = kernel.run("%%vram\nimport torch\ntorch.ones(2, 3) @ torch.ones(2, 3)")
    assert outcome.reply["ename"] == "RuntimeError"
    assert "----> 3" in outcome.traceback
    assert outcome.our_frames == []


def test_an_error_stops_run_all(kernel):
    client = kernel.client
    first, second = client.execute("%%vram\n1 / 0"), client.execute("ran = True")
    replies = {}
    while {first, second} - set(replies):
        message = client.get_shell_msg(timeout=60)
        replies[message["parent_header"]["msg_id"]] = message["content"]["status"]
    assert replies[first] == "error"
    assert replies[second] in ("aborted", "error")
    assert kernel.run("'ran' in globals()").result == "False"


def test_syntax_error_is_native_and_arms_nothing(kernel):
    outcome = kernel.run("%%vram\nx = 1\ny = = 2")
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "SyntaxError"
    assert "line 3" in outcome.traceback
    assert outcome.reports == []
    assert outcome.notes == []
    assert not armed(kernel)
    assert kernel.run("%%vram after\n1").report["label"] == "after"


def test_in_place_modification_errors_of_autograd_are_still_raised(kernel):
    outcome = kernel.run(
        "%%vram\nimport torch\nx = torch.ones(3, requires_grad=True)\ny = x.exp()\ny.add_(1)\ny.sum().backward()"
    )
    assert outcome.reply["ename"] == "RuntimeError"
    assert "inplace operation" in outcome.reply["evalue"]
    assert outcome.report["error"].startswith("RuntimeError")


def test_the_report_keeps_no_traceback_alive(kernel):
    kernel.run("import weakref, gc\nclass Big: pass")
    kernel.run("%%vram\ndef f():\n    big = Big()\n    f.ref = weakref.ref(big)\n    raise ValueError\nf()")
    # What IPython itself keeps of the last error, cut as a user would.
    outcome = kernel.run(
        "import sys\nsys.last_value.__traceback__ = None\nsys.last_traceback = None\n"
        "ip = get_ipython()\nip.InteractiveTB.tb = None\nip.last_execution_result = None\ngc.collect()\nf.ref() is None"
    )
    assert outcome.result == "True"


def test_exit_by_exception_of_the_system_kind(kernel):
    outcome = kernel.run("%%vram\nraise SystemExit(3)")
    assert outcome.reply["ename"] == "SystemExit"
    assert outcome.report["error"].startswith("SystemExit")


# -- await and interrupt ---------------------------------------------------------------------------------------------


def test_top_level_await_and_async_for(kernel):
    outcome = kernel.run(
        "%%vram\nimport asyncio\nawait asyncio.sleep(0.01)\nseen = []\n"
        "async def numbers():\n    for i in range(3):\n        await asyncio.sleep(0)\n        yield i\n"
        "async for i in numbers():\n    seen.append(i)\nseen"
    )
    assert outcome.result == "[0, 1, 2]"
    assert outcome.report["error"] is None
    assert not armed(kernel)


def test_error_after_await(kernel):
    outcome = kernel.run("%%vram\nimport asyncio\nawait asyncio.sleep(0.01)\n1 / 0")
    assert outcome.status == "error"
    assert "----> 4" in outcome.traceback
    assert outcome.report["error"].startswith("ZeroDivisionError")


@pytest.mark.parametrize("wait", ["import time\nprint('ready', flush=True)\ntime.sleep(50)"])
def test_interrupt_stops_the_cell_and_the_report_is_shown(kernel, wait):
    outcome = kernel.run(f"%%vram\n{wait}", on_stdout=lambda text: "ready" in text and kernel.interrupt())
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "KeyboardInterrupt"
    assert outcome.our_frames == []
    assert outcome.report["error"].startswith("KeyboardInterrupt")
    assert not armed(kernel)


def test_interrupt_of_an_awaiting_cell(kernel):
    # Many short waits: ipykernel's handler cancels the cell, but does not wake the loop out of a wait.
    code = "import asyncio\nprint('ready', flush=True)\nfor _ in range(600): await asyncio.sleep(0.1)"
    plain = kernel.run(code, on_stdout=lambda text: "ready" in text and kernel.interrupt())
    outcome = kernel.run("%%vram\n" + code, on_stdout=lambda text: "ready" in text and kernel.interrupt())
    assert outcome.status == plain.status == "error"
    assert outcome.reply["ename"] == plain.reply["ename"]
    assert outcome.reports or outcome.notes
    assert not armed(kernel)


# -- IPython's own syntax ----------------------------------------------------------------------------------------------


def test_magics_and_shell_commands_inside(kernel):
    outcome = kernel.run("%%vram\nout = !echo hi\n!echo there\n%env FOO=bar\nwhere = %pwd\n(out, bool(where))")
    assert outcome.result == "(['hi'], True)"
    assert "there" in outcome.stdout
    assert outcome.report


@pytest.mark.parametrize("above", ["", "%%time\n"])
def test_future_imports_inside(kernel, above):
    body = "from __future__ import annotations\ndef f(x: nope): ...\nprint(f.__annotations__)"
    code = f'{above}%%vram\n"""Docstring."""\n{body}'
    outcome = kernel.run(code)
    assert outcome.status == "ok", outcome.traceback
    assert "{'x': 'nope'}" in outcome.stdout
    assert outcome.report
    kernel.run("get_ipython().compile.reset_compiler_flags()")


@pytest.mark.parametrize("lines", ["%%vram\n%%time\n", "%%time\n%%vram\n", "%%vram\n\n%%time\n"])
def test_stacked_with_time(kernel, lines):
    outcome = kernel.run(lines + "x = 3\nx")
    assert outcome.status == "ok"
    assert outcome.result == "3"
    assert "Wall time" in outcome.stdout
    assert outcome.report


def test_above_capture_the_report_is_shown(kernel):
    outcome = kernel.run("%%vram\n%%capture out\nprint('hidden')")
    assert outcome.report
    assert outcome.stdout == ""
    assert kernel.value("out.stdout") == "'hidden\\n'"


def test_below_capture_the_report_is_captured(kernel):
    outcome = kernel.run("%%capture out\n%%vram\nprint('hidden')")
    assert outcome.reports == []
    assert kernel.value("out.stdout") == "'hidden\\n'"
    assert kernel.run("out.show()").reports


def test_timeit_measures_once(kernel):
    outcome = kernel.run("%%timeit -n 3 -r 2\n%%vram\n1 + 1")
    assert outcome.status == "ok"
    assert len(outcome.reports) == 1
    assert outcome.notes == []


# -- cells inside cells ------------------------------------------------------------------------------------------------


def test_a_cell_that_runs_cells_is_closed_at_its_own_end(kernel):
    outcome = kernel.run("%%vram outer\nget_ipython().run_cell('y = 1')\nget_ipython().run_cell('')\nprint('still')\ny")
    assert outcome.result == "1"
    assert outcome.report["label"] == "outer"
    kinds = [kind for kind, _ in outcome.messages if kind in ("stream", "display_data")]
    assert kinds == ["stream", "display_data"]


def test_a_measured_cell_inside_a_plain_one(kernel):
    outcome = kernel.run("r = get_ipython().run_cell('%%vram inner\\nz = 1')\nprint('after')\nz")
    assert outcome.report["label"] == "inner"
    assert outcome.result == "1"


def test_a_measured_cell_inside_a_measured_one_belongs_to_it(kernel):
    outcome = kernel.run("%%vram outer\nr = get_ipython().run_cell('%%vram inner\\nz = 1')\nz")
    assert outcome.report["label"] == "outer"
    assert len(outcome.notes) == 1
    assert "'outer'" in outcome.notes[0]
    assert outcome.result == "1"
    assert not armed(kernel)


def test_silent_execution_is_not_measured_and_not_harmed(kernel):
    kernel.run("get_ipython().run_cell('%%vram\\nquiet = 5', silent=True)")
    assert kernel.value("quiet") == "5"
    assert not armed(kernel)


def test_measure_inside_a_measured_cell_belongs_to_it(kernel):
    outcome = kernel.run("%%vram outer\nimport ipyvram\nwith ipyvram.measure('in') as m:\n    v = 1\n(v, m.report)")
    assert outcome.result == "(1, None)"
    assert outcome.report["label"] == "outer"
    assert "'outer'" in outcome.stderr


def test_the_cell_magic_by_name(kernel):
    outcome = kernel.run("get_ipython().run_cell_magic('vram', 'named', 'a = 4\\na * 2')")
    assert outcome.result == "8"
    assert outcome.report["label"] == "named"
    failed = kernel.run("get_ipython().run_cell_magic('vram', 'named', 'a = 4\\na / 0')")
    assert failed.reply["ename"] == "ZeroDivisionError"
    assert failed.report["error"].startswith("ZeroDivisionError")
    assert not armed(kernel)


def test_two_measured_cells_in_a_row_and_one_twice(kernel):
    labels = [kernel.run(f"%%vram {label}\n{TRAIN}").report["label"] for label in ("a", "b", "b")]
    assert labels == ["a", "b", "b"]
    history = kernel.run("%vram history")
    assert history.status == "ok"
    assert kernel.value("list(__import__('ipyvram').history().label[-3:])") == "['a', 'b', 'b']"


# -- help, completion, loading -----------------------------------------------------------------------------------------


def payload(outcome) -> str:
    pages = [p["data"]["text/plain"] for p in outcome.reply["payload"] if p["source"] == "page"]
    return "".join(pages) + outcome.stdout


@pytest.mark.parametrize("question", ["%%vram?", "%vram?", "%%vram -h\nran = True", "%vram --help"])
def test_help(kernel, question):
    outcome = kernel.run(question)
    assert outcome.status == "ok"
    assert "--trace-steps" in payload(outcome)
    assert "%vram export" in payload(outcome)
    assert outcome.reports == []
    assert kernel.value("'ran' in globals()") == "False"


def test_lsmagic_lists_it(kernel):
    kernel.run("m = get_ipython().magics_manager.lsmagic()")
    assert kernel.value("('vram' in m['line'], 'vram' in m['cell'])") == "(True, True)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("%%vram --", {"--note", "--limit", "--card", "--interval", "--trace-steps", "--device"}),
        ("%%vram lab --tr", {"--trace-steps"}),
        ("%%vram --device ", {"cpu", "cuda"}),
        ("%vram ", {"last", "history", "export", "--limit"}),
        ("%vram hi", {"history"}),
        ("%vram free --", {"--traceback", "--out", "--cycles", "--cache"}),
        ("%vram auto ", {"on", "off"}),
    ],
)
def test_tab_completion(kernel, text, expected):
    assert expected <= set(kernel.complete(text))


def test_completion_leaves_out_what_is_there(kernel):
    assert "--limit" not in kernel.complete("%vram free --")
    assert "--limit" not in kernel.complete("%%vram --limit 80% --")


REGISTERED = """\
ip = get_ipython()
def registered():
    chain = ip.strdispatchers['complete_command'].strs
    return (len(ip.input_transformers_cleanup), {k: len(v) for k, v in ip.events.callbacks.items()},
            {k: 'vram' in v for k, v in ip.magics_manager.magics.items()}, sorted(k for k in chain if 'vram' in k),
            {k: len(list(v)) for k, v in chain.items()})
"""


def test_unload_and_reload_leave_nothing_behind(kernel):
    kernel.run(REGISTERED)
    loaded = kernel.value("registered()")
    kernel.run("%reload_ext ipyvram\n%reload_ext ipyvram")
    assert kernel.value("registered()") == loaded
    kernel.run("%unload_ext ipyvram")
    bare = kernel.value("registered()")
    assert "True" not in bare
    assert "vram" not in bare
    outcome = kernel.run("%%vram\nx = 1")
    assert outcome.reply["ename"] == "UsageError" or "not found" in outcome.stderr
    kernel.run("%load_ext ipyvram")
    assert kernel.value("registered()") == loaded
    kernel.run("%unload_ext ipyvram")
    assert kernel.value("registered()") == bare


def test_unloading_inside_a_measured_cell_ends_the_measurement(kernel):
    outcome = kernel.run("%%vram\n%unload_ext ipyvram\n5")
    assert outcome.result == "5"
    assert outcome.report
    assert kernel.value("__import__('ipyvram.measuring').measuring._current") == "None"


def test_reports_survive_a_reload(kernel):
    kernel.run("%%vram kept\n1")
    kernel.run("%reload_ext ipyvram")
    assert kernel.run("%vram last").report["label"] == "kept"


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("--limt 80%", "--limit"),
        ("--limit 180%", "--limit 180%"),
        ("--interval soon", "--interval soon"),
        ("--card", "--card"),
        ("--device nonsense", "--device nonsense"),
        ("--device cuda:99", "--device cuda:99"),
        ("'unclosed", "unclosed"),
    ],
)
@pytest.mark.parametrize("magic", ["%%vram", "%vram"])
def test_a_mistake_is_named_and_the_body_does_not_run(kernel, magic, arguments, named):
    outcome = kernel.run(f"{magic} {arguments}\nran = True")
    assert outcome.status == "error"
    assert outcome.reply["ename"] == "UsageError"
    assert named in outcome.reply["evalue"]
    assert outcome.stderr.startswith("UsageError: ")
    assert "\n" not in outcome.stderr.strip()
    assert outcome.reports == []
    assert kernel.value("'ran' in globals()") == "False"
    assert not armed(kernel)


def test_a_line_below_other_code_is_told_to_stand_first(kernel):
    outcome = kernel.run("x = 1\n%%vram label\nran = True")
    assert "put it on the first line" in outcome.reply["evalue"]
    assert kernel.value("'ran' in globals()") == "False"


@pytest.mark.parametrize("line", ["%%vram -h", "%vram -h", "%vram help"])
def test_help_alone_is_shown(kernel, line):
    outcome = kernel.run(line)
    assert outcome.status == "ok"
    assert "--limit LIMIT" in outcome.stdout


def test_unknown_subcommand_lists_those_that_exist(kernel):
    outcome = kernel.run("%vram lasst")
    assert outcome.reply["ename"] == "UsageError"
    for name in ("did you mean %vram last?", "history", "export", "%vram -h"):
        assert name in outcome.reply["evalue"]


def test_last_history_and_export(kernel, tmp_path):
    kernel.run("%%vram one\n1")
    last = kernel.run("%vram last")
    assert last.report["label"] == "one"
    assert last.result is None
    history = kernel.run("x = 0\n%vram history")
    assert "peak_bytes" in history.result
    for name in ("report.json", "my report.html"):
        outcome = kernel.run(f"%vram export {tmp_path / name}")
        assert outcome.status == "ok", outcome.messages
        assert name in outcome.stdout
    assert json.loads((tmp_path / "report.json").read_text())["label"] == "one"
    assert (tmp_path / "my report.html").read_text().lstrip().lower().startswith("<!doctype html>")
    for wrong in ("", "report.png", str(tmp_path / "no" / "such.json")):
        assert kernel.run(f"%vram export {wrong}").reply["ename"] == "UsageError"


def test_a_label_that_reads_like_a_subcommand_is_explained(kernel):
    outcome = kernel.run("%vram last\nx = 1")
    assert outcome.report["label"] == "last"
    assert "give it a cell of its own" in outcome.notes[0]


# -- faults of ours ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    ["ipyvram.run:Run.__init__", "ipyvram.run:Run.start", "ipyvram.run:Run.stop", "ipyvram.analysis:analyse",
     "ipyvram.render.bundle:bundle"],
)  # fmt: skip
def test_a_fault_around_the_probes_is_one_line_and_not_the_cells_failure(kernel, target):
    with broken(kernel, target):
        outcome = kernel.run("%%vram\n6 * 7")
    assert outcome.status == "ok"
    assert outcome.result == "42"
    assert outcome.reports == []
    assert [note for note in outcome.notes if "injected" in note and "\n" not in note] == outcome.notes
    assert len(outcome.notes) == 1
    assert not armed(kernel)
    assert kernel.run("%%vram again\n1").report["label"] == "again"


@pytest.mark.parametrize(
    "target",
    ["ipyvram.probes.storages:StorageTrace.start", "ipyvram.probes.storages:StorageTrace.traces",
     "ipyvram.probes.variable_claims:VariableClaims.claim", "ipyvram.probes.graph_claims:GraphClaims.read", "ipyvram.probes.member_claims:MemberClaims.optimizer",
     "ipyvram.probes.phases:Phases.start", "ipyvram.sampler:Sampler.start", "ipyvram.probes.counters:read"],
)  # fmt: skip
def test_a_fault_in_each_probe_costs_one_line_of_the_report(kernel, target):
    with broken(kernel, target):
        outcome = kernel.run("%%vram\n" + TRAIN + "6 * 7")
    assert outcome.status == "ok", outcome.traceback
    assert outcome.result == "42"
    assert outcome.notes == []
    said = [note for note in outcome.report["measurement"]["notes"] if "injected fault" in note]
    assert said
    assert all("\n" not in note for note in said)
    assert not armed(kernel)


def test_the_peak_counters_of_torch_are_not_reset(kernel):
    kernel.run(
        "import torch\nasked = []\nkept = {n: getattr(torch.cuda, n) for n in ('reset_peak_memory_stats', 'empty_cache')}\n"
        "for n in kept: setattr(torch.cuda, n, lambda *a, n=n, **k: asked.append(n))"
    )
    outcome = kernel.run("%%vram\n" + TRAIN)
    assert outcome.report["peak_bytes"] > 0
    assert kernel.value("asked") == "[]"
    kernel.run("for n in kept: setattr(torch.cuda, n, kept[n])")


def test_a_fault_does_not_hide_the_cells_own_error(kernel):
    with broken(kernel, "ipyvram.analysis:analyse"):
        outcome = kernel.run("%%vram\n1 / 0")
    assert outcome.reply["ename"] == "ZeroDivisionError"
    assert len(outcome.notes) == 1


class broken:
    """A function of ours raises, inside the kernel, while this is open."""

    def __init__(self, kernel: Kernel, target: str) -> None:
        self.kernel, (self.module, self.name) = kernel, target.split(":")

    def __enter__(self) -> None:
        owner, _, name = self.name.rpartition(".")
        code = f"""
import importlib
_owner = importlib.import_module({self.module!r})
_owner = getattr(_owner, {owner!r}) if {owner!r} else _owner
_kept = getattr(_owner, {name!r})
def _raise(*args, **kwargs):
    raise RuntimeError('injected fault')
setattr(_owner, {name!r}, _raise)
_restore = (_owner, {name!r}, _kept)
"""
        outcome = self.kernel.run(code)
        assert outcome.status == "ok", outcome.traceback

    def __exit__(self, *exc: object) -> None:
        self.kernel.run("setattr(*_restore)")


# -- out of memory on the CPU ------------------------------------------------------------------------------------------


def test_a_budget_ends_the_cell_as_the_allocator_would(kernel):
    outcome = kernel.run(
        "%%vram --budget 10MiB\nimport torch\na = torch.ones(1000, 1000)\nb = torch.exp(a) * 2\nc = b + 1"
    )
    assert outcome.reply["ename"] == "OutOfMemoryError"
    (refusing,) = outcome.our_frames  # the place that refuses, and nothing below it
    assert refusing.endswith("ipyvram/probes/dispatch.py")
    assert "----> 4" in outcome.traceback
    assert outcome.report["error"].startswith("OutOfMemoryError")
    assert kernel.value("'b' in globals()") == "False"
