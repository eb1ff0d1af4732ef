"""The live meter: its words, its thread, and in real kernels."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from ipyvram.pulse import Pulse, held_by_claims, leading_device, limit_of
from ipyvram.recording import Claim
from ipyvram.render.live import LiveMeter, NotebookScreen, TerminalScreen
from ipyvram.render.meter import SPARK_CELLS, Meter, taken
from tests import kernels
from tests.conftest import ROOT
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
    words = " · ".join(meter.words())
    assert "cuda:0 2.00 GiB of 16.0 GiB" in words
    assert "peak 3.00 GiB" in words
    assert "step 76, 4 a second" in words
    assert "limit" not in words


def test_growth_gives_the_time_left_to_the_limit():
    meter = fed(*(pulse(t, (2 + 0.1 * t) * GIB) for t in range(30)))
    left = meter.seconds_left()
    beside = taken(pulse(29, 4.9 * GIB)) - 4.9 * GIB
    assert left == pytest.approx((12 - 4.9 - beside / GIB) / 0.1, rel=0.1)
    assert any(word.endswith("to the limit") for word in meter.words())


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
    html = fed(pulse(5, 4 * GIB)).html()
    assert 'title="Tensors 4.00 GiB"' in html
    assert 'title="Cache 819 MiB"' in html
    assert 'title="Context and other processes 1.00 GiB"' in html
    assert "margin-left:75.0%" in html
    assert 'title="limit 12.0 GiB"' in html


def test_the_bar_tells_categories_as_far_as_they_are_known():
    claims = [
        Claim(1, "cuda:0", 10, 5 * GIB, "inputs", "x"),
        Claim(2, "cuda:0", 10, GIB, "parameters", "fc.weight"),
        Claim(2, "cuda:0", 11, GIB, "optimizer_state", "fc.weight.exp_avg"),
        Claim(3, "cuda:0", 11, GIB, "", "only a name"),
        Claim(3, "cuda:0", 12, GIB, "activations", "h"),
        Claim(3, "cpu", 10, 7 * GIB, "parameters", "elsewhere"),
    ]
    held = held_by_claims(claims, "cuda:0")
    assert held == {"parameters": GIB, "optimizer_state": GIB}
    html = fed(replace(pulse(5, 4 * GIB), held=held)).html()
    assert 'title="Parameters 1.00 GiB"' in html
    assert 'title="Activations and other tensors 2.00 GiB"' in html
    assert 'title="Tensors 1.00 GiB"' in fed(replace(pulse(5, GIB), held=held)).html()


def test_on_the_cpu_it_is_the_memory_of_the_process():
    meter = fed(Pulse(2, 0, "cpu", {"process_rss": 512 * 2**20}))
    assert "cpu process 512 MiB" in meter.line(80)
    assert "<div" in meter.html()
    assert meter.seconds_left() is None


def test_a_label_is_text_and_a_line_has_its_width():
    meter = fed(pulse(1, GIB))
    assert "&lt;b&gt;label" in meter.html()
    assert "<b>" not in meter.html()
    for width in (10, 40, 80, 200):
        assert len(meter.line(width)) <= width
    assert meter.line(80, unicode=False).isascii()


def test_nothing_is_said_before_the_first_pulse():
    meter = Meter()
    assert (meter.words(), meter.line(80), meter.html(), meter.spark()) == ([], "", "", "")


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
    meter = LiveMeter(NotebookScreen(publisher), lambda: pulse(1, GIB), first_s=0.0)
    meter.start()
    while len(publisher.sent) < 2:
        time.sleep(0.01)
    meter.stop()
    assert len({place for place, *_ in publisher.sent}) == 1
    assert [update for _, update, *_ in publisher.sent] == [False, True, True]
    assert [data == {} for _, _, data, _ in publisher.sent] == [True, False, True]
    threads = [thread for *_, thread in publisher.sent]
    assert threads[0] == threads[2] == threading.get_ident() != threads[1]


def test_unchanged_words_are_not_sent_again():
    publisher = Publisher()
    screen, meter = NotebookScreen(publisher), fed(pulse(1, GIB))
    screen.show(meter)
    screen.show(meter)
    assert len(publisher.sent) == 2


def test_a_short_cell_shows_nothing():
    publisher = Publisher()
    meter = LiveMeter(NotebookScreen(publisher), lambda: pulse(1, GIB))
    meter.start()
    meter.stop()
    assert [(update, data) for _, update, data, _ in publisher.sent] == [(False, {})]


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
    assert screen.lines[0].startswith("a <b>label</b> · 3.0 s")


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


def updates(outcome: kernels.Outcome) -> list[str]:
    """The texts that the meter showed; its place comes first and is emptied last."""
    (first, placed), *rest = outcome.meter
    assert first == "display_data"
    assert placed["data"] == {}
    assert len({content["transient"]["display_id"] for _, content in outcome.meter}) == 1
    assert {kind for kind, _ in rest} <= {"update_display_data"}
    texts = [content["data"].get("text/plain", "") for _, content in rest]
    if rest:
        assert texts.pop() == ""
    assert "" not in texts
    return texts


@pytest.mark.kernel
def test_a_long_cell_has_a_meter_and_it_is_gone_before_the_report(kernel):
    outcome = kernel.run("%%vram long one\nimport time\ntime.sleep(2.2)")
    texts = updates(outcome)
    assert len(texts) >= 2
    assert all(text.startswith("long one · ") for text in texts)
    assert outcome.report["label"] == "long one"
    assert outcome.notes == []


@pytest.mark.kernel
def test_a_short_cell_and_a_quiet_one_have_none(kernel):
    assert updates(kernel.run("%%vram\n1")) == []
    assert kernel.run("%%vram --quiet\nimport time\ntime.sleep(1.6)").meter == []


@pytest.mark.kernel
def test_a_hundred_thousand_prints_arrive_whole_and_in_order(kernel):
    outcome = kernel.run("%%vram\nfor i in range(100_000): print(i)\nimport time\ntime.sleep(1.5)", timeout=240)
    assert outcome.stdout == "".join(f"{i}\n" for i in range(100_000))
    assert updates(outcome)
    assert outcome.stderr == ""


@pytest.mark.kernel
def test_a_cell_that_holds_the_interpreter_is_not_delayed_or_broken(kernel):
    # a regular expression of this kind backtracks in C for a second or so without ever letting go
    code = "%%vram\nimport re, time\nbegin = time.monotonic()\nn = 20\nwhile time.monotonic() - begin < 2:\n"
    code += "    re.match('(a+)+$', 'a' * n + 'b')\n    n += 1\nn"
    outcome = kernel.run(code, timeout=120)
    assert outcome.status == "ok"
    assert outcome.report
    updates(outcome)


@pytest.mark.kernel
def test_the_users_clear_output_is_neither_set_off_nor_undone(kernel):
    code = "%%vram\nimport time\nfrom IPython.display import clear_output\n"
    code += "for i in range(8):\n    clear_output(wait=True)\n    time.sleep(0.3)\n    print('frame', i)"
    outcome = kernel.run(code)
    kinds = [kind for kind, _ in outcome.messages if kind in ("clear_output", "stream", "display_data")]
    assert kinds[-2:] == ["stream", "display_data"]
    assert kinds[:-1] == ["clear_output", "stream"] * 8
    assert updates(outcome)


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
    assert updates(outcome)


@pytest.mark.kernel
def test_capture_below_captures_the_cell_and_not_the_meter(kernel):
    outcome = kernel.run("%%vram\n%%capture captured\nimport time\nprint('in')\ntime.sleep(1.8)")
    assert updates(outcome)
    assert kernel.value("captured.stdout, captured.outputs") == "('in\\n', [])"


@pytest.mark.kernel
def test_an_error_and_an_interrupt_take_the_meter_away(kernel):
    outcome = kernel.run("%%vram\nimport time\ntime.sleep(1.6)\n1 / 0")
    assert outcome.status == "error"
    assert updates(outcome)
    done = threading.Timer(2.0, kernel.interrupt)
    done.start()
    outcome = kernel.run("%%vram\nimport time\ntime.sleep(30)")
    assert outcome.status == "error"
    assert updates(outcome)
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
        shown = b""
        try:
            while chunk := os.read(master, 4096):
                shown += chunk
        except OSError:
            pass  # the other end is closed
        out = run.stdout.read().decode()
    assert shown.count(b"\r\x1b[K") >= 3
    assert b"in a terminal" in shown
    assert shown.endswith(b"\r\x1b[K")
    assert "Peak" in out
