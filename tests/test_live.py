"""The live meter: its words, its thread, and in real kernels."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipyvram.pulse import Pulse, held_by_claims, leading_device, limit_of
from ipyvram.recording import Claim
from ipyvram.render.columns import display_width
from ipyvram.render.live import LiveMeter, NotebookScreen, TerminalScreen
from ipyvram.render.meter import SPARK_CELLS, Meter, taken
from ipyvram.render.meter_html import SPARK_PX, meter_html
from ipyvram.render.place import EMPTY, FixedPlace
from tests import kernels
from tests.conftest import ROOT
from tests.front_end import PLACE, FrontEnd
from tests.kernels import Kernel

GIB = 2**30


def pulse(second: float, allocated: float, steps: int = 0, **figures: float) -> Pulse:
    figures = {"allocated": allocated, "reserved": allocated * 1.2, "device_used": allocated * 1.2 + GIB} | figures
    return Pulse(second, steps, "cuda:0", figures, 16 * GIB, 12 * GIB, "a <b>label</b>")


def fed(*pulses: Pulse) -> Meter:
    meter = Meter()
    for p in pulses:
        meter.feed(p)
    return meter


# -- words -----------------------------------------------------------------------------------------------------------


def test_it_tells_current_and_peak_step_and_rate():
    meter = fed(*(pulse(t, (3 if t == 5 else 2) * GIB, steps=4 * t) for t in range(20)))
    assert meter.facts() == {
        "label": "a <b>label</b>",
        "time": "19 s",
        "memory": "cuda:0 2.00 GiB of 16.0 GiB",
        "peak": "peak 3.00 GiB",
        "step": "step 76, 4/s",
    }


def test_slow_steps_are_told_by_the_seconds_each_takes():
    assert fed(*(pulse(t, GIB, steps=t // 5) for t in range(30))).facts()["step"] == "step 5, 5.0 s each"


def test_the_rate_is_that_of_the_steps_and_not_of_what_came_before_them():
    late = [pulse(0.25 * i, GIB, steps=max(0, i - 80) // 2) for i in range(100)]
    assert fed(*late).rate() == pytest.approx(2.0)
    assert fed(*late[:82]).rate() == 0  # one step alone has no rate
    assert fed(*late, *(pulse(25 + t, GIB, steps=9) for t in range(30))).rate() == 0  # no more steps
    assert fed(*(pulse(t, GIB, steps=t // 20) for t in range(59))).rate() == pytest.approx(1 / 20)


def test_growth_gives_the_time_left_to_the_limit():
    meter = fed(*(pulse(t, (2 + 0.1 * t) * GIB) for t in range(30)))
    left = meter.seconds_left()
    beside = taken(pulse(29, 4.9 * GIB)) - 4.9 * GIB
    assert left == pytest.approx((12 - 4.9 - beside / GIB) / 0.1, rel=0.1)
    assert meter.facts()["left"] == "1 min 01 s to the limit"


def test_off_the_gpu_it_is_the_process_that_grows_to_the_limit():
    meter = fed(*(Pulse(t, 0, "cpu", {"process_rss": (1 + 0.1 * t) * GIB}, None, 8 * GIB) for t in range(30)))
    assert meter.seconds_left() == pytest.approx((8 - 3.9) / 0.1, rel=0.1)
    html = meter_html(meter)
    assert 'title="Process 3.90 GiB"' in html
    assert "Limit 8.00 GiB" in html


def test_what_a_step_takes_and_gives_back_is_no_growth():
    assert fed(*(pulse(0.3 * i, (2 + i % 7) * GIB) for i in range(90))).seconds_left() is None
    assert fed(*(pulse(t, (9 - 0.1 * t) * GIB) for t in range(30))).seconds_left() is None


def test_an_old_peak_stays_and_the_last_minute_is_what_is_drawn():
    meter = fed(*(pulse(t, (8 if t == 3 else 1) * GIB) for t in range(300)))
    assert meter.peak_bytes == 8 * GIB
    assert set(meter.spark()) == {"▄"}
    assert len(meter.spark()) == SPARK_CELLS


def test_the_last_minute_is_drawn_from_its_lowest_to_its_highest():
    spark = fed(*(pulse(t, (4 + t / 60) * GIB) for t in range(60))).spark()
    assert spark[0] == "▁"
    assert spark[-1] == "█"
    assert list(spark) == sorted(spark)
    assert fed(pulse(1, GIB)).spark(unicode=False).isascii()


def test_the_bar_is_of_the_card_with_the_limit_on_it():
    html = meter_html(fed(pulse(5, 4 * GIB)))
    assert 'title="Tensors 4.00 GiB"' in html
    assert 'title="Cache 819 MiB"' in html
    assert 'title="Context, other processes 1.00 GiB"' in html
    for title, share in (("limit 12.0 GiB", "75.0%"), ("peak 4.00 GiB", "25.0%")):
        mark = next(part for part in html.split("<div") if f'title="{title}"' in part)
        assert f"0 0 {share};" in mark


def test_what_colours_and_marks_mean_is_told_in_words():
    told = re.sub(r"<[^>]+>", " ", meter_html(fed(replace(pulse(5, 4 * GIB), held={"parameters": GIB}))))
    for words in ("Parameters 1.00 GiB", "Activations, other 3.00 GiB", "Cache 819 MiB", "Limit 12.0 GiB"):
        assert words in " ".join(told.split())


def test_the_drawing_of_the_last_minute_has_its_lowest_and_highest_and_ends_now():
    html = meter_html(fed(*(pulse(t, (8 if t == 250 else 1 if t > 200 else 2) * GIB) for t in range(300))))
    assert "the last minute: 1.00 GiB to 8.00 GiB" in html
    path = re.search(r'<path d="M(\d+) (\d+)((?:[HV]\d+)+)" fill="none"', html)
    xs, ys = (list(map(int, re.findall(axis + r"(\d+)", path[3]))) for axis in "HV")
    assert (path[1], xs[-1]) == ("0", SPARK_PX[0])
    assert xs == sorted(xs)
    assert (min(ys), max(ys)) == (1, 16)


def test_a_limit_that_is_near_is_told_in_bold():
    html = meter_html(fed(*(pulse(t, (5 + 0.1 * t) * GIB) for t in range(30))))
    assert re.search(r"<strong[^>]*>\d+ s to the limit</strong>", html)


def test_the_bar_tells_categories_as_far_as_they_are_known():
    claims = [
        Claim(1, "cuda:0", 10, 5 * GIB, "inputs", "x"),
        Claim(2, "cuda:0", 10, GIB, "parameters", "fc.weight"),
        Claim(2, "cuda:0", 11, GIB, "optimizer_state", "fc.weight.exp_avg"),
        Claim(3, "cuda:0", 10, GIB, "activations", "AddmmBackward0.mat2"),  # saved for backward, and a parameter still
        Claim(3, "cuda:0", 11, GIB, "", "only a name"),
        Claim(3, "cuda:0", 12, GIB, "activations", "h"),
        Claim(3, "cpu", 10, 7 * GIB, "parameters", "elsewhere"),
    ]
    held = held_by_claims(claims, "cuda:0")
    assert held == {"parameters": GIB, "optimizer_state": GIB}
    html = meter_html(fed(replace(pulse(5, 4 * GIB), held=held)))
    assert 'title="Parameters 1.00 GiB"' in html
    assert 'title="Activations, other 2.00 GiB"' in html
    assert 'title="Tensors 1.00 GiB"' in meter_html(fed(replace(pulse(5, GIB), held=held)))


def test_on_the_cpu_it_is_the_memory_of_the_process():
    meter = fed(Pulse(2, 0, "cpu", {"process_rss": 512 * 2**20}))
    assert "cpu process 512 MiB" in meter.line(80)
    assert "<div" in meter_html(meter)
    assert meter.seconds_left() is None


def test_a_label_is_text_and_a_line_has_its_width():
    meter = fed(pulse(1, GIB))
    assert "&lt;b&gt;label" in meter_html(meter)
    assert "<b>" not in meter_html(meter)
    for width in (10, 40, 80, 200):
        assert len(meter.line(width)) <= width
    assert meter.line(80, unicode=False).isascii()


@given(st.integers(1, 130), st.booleans(), st.text(max_size=60))
def test_a_line_has_whole_facts_and_the_memory_as_long_as_there_is_room(width, unicode, label):
    meter = fed(*(replace(pulse(t, (5 + 0.1 * t) * GIB, steps=9 * t), label=label) for t in range(30)))
    line = meter.line(width, unicode)
    assert display_width(line) <= width
    facts = set(meter.facts().values()) - {meter.facts().get("label")}
    shown = [words.split("  ")[0] for words in line.split(" · " if unicode else " - ")]
    assert len(facts & set(shown)) >= (width >= 30) + (width >= 55) + (width >= 75)
    assert not width >= 30 or "cuda:0 7.90 GiB of 16.0 GiB" in line


def test_nothing_is_said_before_the_first_pulse():
    meter = Meter()
    assert (meter.facts(), meter.line(80), meter_html(meter), meter.spark()) == ({}, "", "", "")


def test_the_device_to_watch_and_the_limit():
    assert leading_device({}) == "cpu"
    assert leading_device({"cpu": {}, "cuda:0": {"allocated": 1.0}, "cuda:1": {"allocated": 2.0}}) == "cuda:1"
    assert limit_of((0.5, None), 100) == 50
    assert limit_of((None, 7), None) == 7
    assert limit_of((0.8, None), None) is None


# -- thread and screens ----------------------------------------------------------------------------------------------


class Publisher:
    """What a notebook would be told."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bool, dict, int]] = []

    def publish(self, data, metadata, transient, update):
        self.sent.append((transient["display_id"], update, data, threading.get_ident()))


class Screen:
    """Notes what it is asked to do; waits for the test where ``shown`` is awaited."""

    def __init__(self, fault: bool = False) -> None:
        self.shown, self.lines, self.closed, self._fault = threading.Event(), [], 0, fault

    def show(self, meter):
        if self._fault:
            raise OSError("gone")
        self.lines.append(meter.line(200))
        self.shown.set()

    def close(self):
        self.closed += 1


def test_the_place_is_made_on_the_cells_thread_and_only_updated_on_the_meters():
    publisher = Publisher()
    meter = LiveMeter(NotebookScreen(FixedPlace(publisher)), lambda: pulse(1, GIB), first_s=0.0)
    meter.start()
    while len(publisher.sent) < 2:
        time.sleep(0.01)
    meter.stop()
    assert len({place for place, *_ in publisher.sent}) == 1
    assert [update for _, update, *_ in publisher.sent] == [False, True, True]
    assert [data == EMPTY for _, _, data, _ in publisher.sent] == [True, False, True]
    threads = [thread for *_, thread in publisher.sent]
    assert threads[0] == threads[2] == threading.get_ident() != threads[1]


def test_unchanged_words_are_not_sent_again():
    publisher = Publisher()
    screen, meter = NotebookScreen(FixedPlace(publisher)), fed(pulse(1, GIB))
    screen.show(meter)
    screen.show(meter)
    assert len(publisher.sent) == 2


def test_a_short_cell_shows_nothing():
    publisher = Publisher()
    meter = LiveMeter(NotebookScreen(FixedPlace(publisher)), lambda: pulse(1, GIB))
    meter.start()
    meter.stop()
    assert [(update, data) for _, update, data, _ in publisher.sent] == [(False, EMPTY)]


def test_a_fault_ends_the_meter_and_nothing_else():
    screen = Screen(fault=True)
    meter = LiveMeter(screen, lambda: pulse(1, GIB), first_s=0.0)
    meter.start()
    meter._thread.join(10)
    assert not meter._thread.is_alive()
    meter.stop()
    assert screen.closed == 1


def test_there_may_be_nothing_to_tell_yet():
    pulses = iter([None, None, pulse(3, GIB)])
    screen = Screen()
    meter = LiveMeter(screen, lambda: next(pulses), first_s=0.0)
    meter.start()
    assert screen.shown.wait(10)
    meter.stop()
    assert screen.lines[0].startswith("a <b>label</b> · 3 s")


def test_a_terminal_has_one_line_rewritten_and_erased(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    screen = TerminalScreen()
    screen.show(fed(pulse(1, GIB)))
    screen.close()
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().startswith("\r\x1b[K")
    assert stream.getvalue().endswith("\r\x1b[K")


# -- real kernels ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=list(kernels.PYTHONS))
def process(request, tmp_path_factory):
    kernel = kernels.start(request.param, tmp_path_factory.mktemp("kernel"))
    kernel.run("import torch, pandas, time\n%load_ext ipyvram", timeout=120)
    yield kernel
    kernel.close()


@pytest.fixture
def kernel(process: Kernel) -> Kernel:
    return process.fresh()


def texts_of_meter(outcome: kernels.Outcome) -> list[str]:
    """The texts that the meter showed; checks that it ended empty."""
    front_end = FrontEnd()
    for kind, content in outcome.order:
        front_end.take(kind, content)
    assert front_end.places in ([], [EMPTY])
    assert {kind for kind, _ in outcome.meter} <= {"display_data", "update_display_data"}
    assert len({content["transient"]["display_id"] for _, content in outcome.meter}) <= 1
    return list(filter(None, (content["data"]["text/plain"] for _, content in outcome.meter)))


CLEARS = "%%vram\nimport time\nfrom IPython.display import clear_output\n"


@pytest.mark.kernel
def test_a_long_cell_has_a_meter_and_it_is_gone_before_the_report(kernel):
    outcome = kernel.run("%%vram long one\nimport time\ntime.sleep(2.2)")
    texts = texts_of_meter(outcome)
    assert len(texts) >= 2
    assert all(text.startswith("long one · ") for text in texts)
    assert outcome.report["label"] == "long one"
    assert outcome.notes == []


@pytest.mark.kernel
def test_a_short_cell_and_a_quiet_one_leave_nothing_but_the_report(kernel):
    assert kernel.run("%%vram\n1").meter == []
    assert kernel.run("%%vram\nprint(1)").meter == []
    assert kernel.run("%%vram --quiet\nimport time\ntime.sleep(1.6)").meter == []


@pytest.mark.kernel
def test_the_kernel_sends_as_before_when_the_cell_has_ended(kernel):
    kernel.run("%%vram\nprint(1)")
    kernel.run("%%vram\n1 / 0")
    assert kernel.value("'_really_send' in get_ipython().kernel.iopub_thread.__dict__") == "False"


@pytest.mark.kernel
def test_a_hundred_thousand_prints_arrive_whole_and_in_order(kernel):
    outcome = kernel.run("%%vram\nfor i in range(100_000): print(i)\nimport time\ntime.sleep(1.5)", timeout=240)
    assert outcome.stdout == "".join(f"{i}\n" for i in range(100_000))
    assert texts_of_meter(outcome)
    assert outcome.stderr == ""


@pytest.mark.kernel
def test_a_cell_that_holds_the_interpreter_is_not_delayed_or_broken(kernel):
    # a regular expression of this kind backtracks in C for a second or so without ever letting go
    code = "%%vram\nimport re, time\nbegin = time.monotonic()\nn = 20\nwhile time.monotonic() - begin < 2:\n"
    code += "    re.match('(a+)+$', 'a' * n + 'b')\n    n += 1\nn"
    outcome = kernel.run(code, timeout=120)
    assert outcome.status == "ok"
    assert outcome.report
    texts_of_meter(outcome)


@pytest.mark.kernel
def test_a_loop_that_clears_has_its_meter_in_front_of_each_frame(kernel):
    outcome = kernel.run(
        CLEARS + "for i in range(8):\n    clear_output(wait=True)\n    time.sleep(0.3)\n    print('frame', i)"
    )
    kinds = [kind for kind, _ in outcome.messages if kind in ("clear_output", "stream", "display_data")]
    assert kinds == ["clear_output", "stream"] * 8 + ["display_data"]
    order = [kind for kind, _ in outcome.order if kind in ("clear_output", "stream", "display_data")]
    # the last one is on its way when the cell ends: it needs no meter any more
    assert order == ["clear_output", "display_data", "stream"] * 7 + ["clear_output", "stream", "display_data"]
    assert texts_of_meter(outcome)
    assert outcome.report


@pytest.mark.kernel
def test_a_clear_takes_the_meter_away_and_it_is_back_at_once(kernel):
    code = "print('before')\ntime.sleep(1.5)\nclear_output()\nprint('after')\ntime.sleep(0.8)"
    outcome = kernel.run(CLEARS + code)
    seen = [message for message in outcome.order if message[0] != "update_display_data"]  # those may come at any time
    order = seen[[kind for kind, _ in seen].index("clear_output") :]
    assert [kind for kind, _ in order[:3]] == ["clear_output", "display_data", "stream"]
    assert order[1][1]["data"]["text/plain"] in texts_of_meter(outcome)
    assert order[2][1]["text"] == "after\n"
    assert outcome.report


@pytest.mark.kernel
def test_a_clear_that_still_waits_at_the_end_does_not_cost_the_last_frame(kernel):
    """A new output would set it off; the report takes the meter's place instead."""
    outcome = kernel.run(
        CLEARS + "for i in range(5):\n    print('frame', i)\n    time.sleep(0.4)\n    clear_output(wait=True)"
    )
    front_end = FrontEnd()
    for kind, content in outcome.order:
        front_end.take(kind, content)
    assert [kind for kind, _ in front_end.outputs] == [PLACE, "stream"]
    assert kernels.REPORT_TYPE in front_end.places[0]
    assert front_end.users == [["stream", "frame 4\n"]]
    assert outcome.reports == []


@pytest.mark.kernel
@pytest.mark.parametrize("bar", ["tqdm", "tqdm.notebook", "rich.progress"])
def test_progress_bars_of_others_are_as_they_were(kernel, bar):
    """What they send is the same, message by message, with and without the meter."""
    pytest.importorskip(bar.partition(".")[0])
    if bar != "tqdm":
        pytest.importorskip("ipywidgets")
    each = "track(range(6))" if bar == "rich.progress" else "tqdm(range(6))"
    code = f"import time\nfrom {bar} import {each.partition('(')[0]}\nfor i in {each}:\n    time.sleep(0.3)"
    plain, measured = kernel.run(code, timeout=120), kernel.run(f"%%vram\n{code}", timeout=120)
    assert measured.status == "ok", measured.traceback
    assert texts_of_meter(measured)
    assert measured.report
    for outcome in (plain, measured):
        opened = {c["comm_id"] for c in outcome.contents("comm_open")}
        assert {c["comm_id"] for c in outcome.contents("comm_msg")} <= opened
    drawn = [
        [c["name"] for c in o.contents("stream")] + [sorted(c["data"]) for c in o.contents("display_data")]
        for o in (plain, measured)
    ]
    assert set(map(str, drawn[0])) == set(map(str, [d for d in drawn[1] if kernels.REPORT_TYPE not in d]))
    if bar == "tqdm":
        assert measured.stderr.count("\r") >= 3
        assert measured.stderr.endswith("6/6" + measured.stderr.rpartition("6/6")[2])
        assert "100%" in measured.stderr.rpartition("\r")[2]


@pytest.mark.kernel
def test_what_goes_into_an_output_widget_is_left_alone(kernel):
    pytest.importorskip("ipywidgets")
    code = CLEARS + "import ipywidgets\nout = ipywidgets.Output()\ndisplay(out)\nwith out:\n    for i in range(5):\n"
    code += "        clear_output(wait=True)\n        print('in', i)\n        time.sleep(0.4)\ntime.sleep(0.8)"
    outcome = kernel.run(code, timeout=120)
    inside = False
    for kind, content in outcome.order:
        if kind == "comm_msg" and "msg_id" in content["data"].get("state", {}):
            inside = bool(content["data"]["state"]["msg_id"])
        ours = str(content.get("transient", {}).get("display_id", "")).startswith("ipyvram-")
        assert not (inside and ours)
    assert texts_of_meter(outcome)
    assert outcome.report


@pytest.mark.kernel
def test_plots_and_progress_bars_are_as_they_were(kernel):
    pytest.importorskip("matplotlib")
    code = "%%vram\n%matplotlib inline\nimport sys, time\nimport matplotlib.pyplot as plt\n"
    code += (
        "for i in range(6):\n    sys.stderr.write(f'\\r{i + 1}/6')\n    time.sleep(0.35)\nplt.plot([1, 2])\nplt.show()"
    )
    outcome = kernel.run(code, timeout=120)
    assert outcome.status == "ok"
    assert outcome.stderr == "".join(f"\r{i + 1}/6" for i in range(6))
    shown = [content["data"] for content in outcome.contents("display_data")]
    assert ["image/png" in data for data in shown] == [True, False]
    assert outcome.report
    assert texts_of_meter(outcome)


@pytest.mark.kernel
def test_capture_below_captures_the_cell_and_not_the_meter(kernel):
    outcome = kernel.run("%%vram\n%%capture captured\nimport time\nprint('in')\ntime.sleep(1.8)")
    assert texts_of_meter(outcome)
    assert kernel.value("captured.stdout, captured.outputs") == "('in\\n', [])"


@pytest.mark.kernel
def test_an_error_and_an_interrupt_take_the_meter_away(kernel):
    outcome = kernel.run("%%vram\nimport time\ntime.sleep(1.6)\n1 / 0")
    assert outcome.status == "error"
    assert texts_of_meter(outcome)
    done = threading.Timer(2.0, kernel.interrupt)
    done.start()
    outcome = kernel.run("%%vram\nimport time\ntime.sleep(30)")
    assert outcome.status == "error"
    assert texts_of_meter(outcome)
    assert kernel.value("[t.name for t in __import__('threading').enumerate() if 'ipyvram' in t.name]") == "[]"


@pytest.mark.kernel
def test_in_a_terminal_it_is_one_line_on_stderr(tmp_path):
    script = tmp_path / "session.ipy"
    script.write_text(
        "%load_ext ipyvram\nget_ipython().run_cell('%%vram in a terminal\\nimport time; time.sleep(2)')\n"
    )
    master, slave = pty.openpty()
    env = os.environ | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path), "OMP_NUM_THREADS": "1", "COLUMNS": "90"}
    command = [sys.executable, "-m", "IPython", "--no-banner", "--simple-prompt", str(script)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=slave, env=env) as run:
        os.close(slave)
        shown = kernels.until_closed(master)
        out = run.stdout.read().decode()
    assert shown.count(b"\r\x1b[K") >= 3
    assert b"in a terminal" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert "Peak" in out
