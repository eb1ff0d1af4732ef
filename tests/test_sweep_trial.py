"""One trial: what it sees, how it ends, and that everything is as before, whatever happened in it."""

from __future__ import annotations

import contextlib
import gc
import io
import signal
import sys
import types

import pytest
import torch

from ipyvram import journal, measuring
from ipyvram.probes.residents import look
from ipyvram.recording import Cell
from ipyvram.sweep.bodies import CellBody, FunctionBody
from ipyvram.sweep.trial import MeasuredTrials, ProgramFailed
from tests.sweep_programs import OUTER_CELL, OUTER_SETUP, fingerprint, global_fingerprint

MIB = 2**20

#: Trains for long; `crash` is called with the step and the place.
CELL = """\
batch_size = 8
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.Adam(model.parameters())
for step in range(1000):
    optimizer.zero_grad()
    loss = model(torch.randn(batch_size, 64)).square().mean()
    crash(step, "backward")
    loss.backward()
    crash(step, "optimizer")
    optimizer.step()
"""


@pytest.fixture
def helpers():
    """A library module of which the sweep saves nothing."""
    module = types.ModuleType("helpers")
    exec("kept = []\nclass Cache:\n    items = {}\n", module.__dict__)
    sys.modules["helpers"] = module
    yield module
    del sys.modules["helpers"]


def body(cell: str, namespace: dict, name: str = "batch_size") -> CellBody:
    return CellBody(name, Cell(cell, "<cell>"), namespace, lambda tree: compile(tree, "<cell>", "exec"))


def space(setup: str = "", **more) -> dict:
    namespace = {"__name__": "__main__", "torch": torch, **more}
    exec(setup, namespace)
    return namespace


def crashing(*places: tuple[int, str], error: BaseException | None = None):
    """A `crash` that raises at these places of the trial, once per call of the cell."""

    def crash(step: int, place: str) -> None:
        if (step, place) in places:
            raise error if error is not None else torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")

    return crash


# -- what a trial sees -----------------------------------------------------------------------------------------------


def test_a_trial_stops_after_its_steps_and_knows_its_batch():
    namespace = space(crash=crashing())
    trial = MeasuredTrials(body(CELL, namespace))(16, 4)
    assert (trial.steps, trial.timed_steps) == (6, 4)
    assert trial.shape == (16, 64)
    assert not trial.out_of_memory
    assert trial.peak_bytes == sum(trial.categories.values())
    assert trial.categories["parameters"] == 4 * (64 * 64 + 64)
    assert trial.categories["optimizer_state"] >= 2 * trial.categories["parameters"]
    assert trial.samples_per_s == pytest.approx(16 / trial.step_s)
    assert trial.reserved_bytes is None
    assert trial.needed_bytes == trial.peak_bytes


def test_a_bare_except_exception_does_not_keep_a_trial_going():
    cell = CELL.replace(
        "    optimizer.step()", "    try:\n        optimizer.step()\n    except Exception:\n        pass"
    )
    assert MeasuredTrials(body(cell, space(crash=crashing())))(16, 3).steps == 5


def test_a_cell_without_optimizer_steps_runs_to_its_end():
    cell = "batch_size = 8\nmodel = torch.nn.Linear(4, 4)\nfor _ in range(5):\n    y = model(torch.ones(batch_size, 4))"
    trial = MeasuredTrials(body(cell, space()))(32, 3)
    assert (trial.steps, trial.step_s) == (0, None)
    assert trial.shape == (32, 4)
    assert trial.samples_per_s > 0


def test_updates_by_hand_are_steps_of_a_trial():
    update = """
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
            p.grad = None"""
    trial = MeasuredTrials(body(CELL.replace("    optimizer.step()", update[1:]), space(crash=crashing())))(16, 3)
    assert (trial.steps, trial.timed_steps) == (5, 3)
    assert trial.samples_per_s == pytest.approx(16 / trial.step_s)


def test_a_step_that_calls_that_of_its_base_counts_once():
    own = "class Own(torch.optim.Adam):\n    def step(self):\n        super().step()\n"
    cell = "torch.optim.Adam([torch.ones(1)])\n" + own + CELL.replace("torch.optim.Adam(", "Own(")
    assert "Own(model" in cell
    assert MeasuredTrials(body(cell, space(crash=crashing())))(16, 3).steps == 5


def test_a_lazy_model_beside_it_is_no_matter():
    """It has no memory yet, and is asked for some wherever all tensors are looked at."""
    namespace = space(crash=crashing(), lazy=torch.nn.LazyLinear(10))
    assert MeasuredTrials(body(CELL, namespace))(16, 3).steps == 5
    assert look(namespace)


def test_a_cell_with_few_steps_says_how_many_were_timed():
    trial = MeasuredTrials(body(CELL.replace("1000", "3"), space(crash=crashing())))(32, 3)
    assert (trial.steps, trial.timed_steps) == (3, 1)


def test_gradient_accumulation_counts_all_samples_of_a_step():
    cell = CELL.replace("    optimizer.step()", "    if step % 4 == 3:\n        optimizer.step()")
    trial = MeasuredTrials(body(cell, space(crash=crashing())))(16, 3)
    assert trial.samples_per_s == pytest.approx(4 * 16 / trial.step_s)


def test_the_first_of_two_optimizers_counts_the_steps():
    cell = CELL.replace("    optimizer.step()", "    optimizer.step()\n    second.step()").replace(
        "for step", "second = torch.optim.SGD(model.parameters(), 1e-3)\nfor step"
    )
    assert MeasuredTrials(body(cell, space(crash=crashing())))(16, 3).steps == 5


def test_a_loss_that_is_given_all_words_in_a_row_is_not_the_batch():
    cell = """
batch_size = 4
model = torch.nn.Sequential(torch.nn.Embedding(10, 8), torch.nn.Linear(8, 10))
criterion = torch.nn.CrossEntropyLoss()
for _ in range(3):
    words = torch.randint(10, (batch_size, 50))
    criterion(model(words).view(-1, 10), words.view(-1)).backward()
"""
    assert MeasuredTrials(body(cell, space()))(6, 3).shape == (6, 50)


def test_a_model_called_with_keywords_shows_its_batch():
    setup = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
    def forward(self, *, ids):
        return self.embed(ids).mean()
"""
    cell = """
batch_size = 8
model = Net()
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(9):
    model(ids=torch.zeros(batch_size, 3, dtype=torch.long)).backward()
    optimizer.step()
"""
    assert MeasuredTrials(body(cell, space(setup)))(16, 3).shape == (16, 3)


@pytest.mark.parametrize("evaluate", ["model.eval()\n    with torch.no_grad():\n        ", "model.eval()\n    "])
def test_a_validation_within_the_steps_is_not_the_batch(evaluate):
    cell = f"""
batch_size = 8
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(9):
    {evaluate}model(torch.zeros(64, 4))
    model.train()
    model(torch.zeros(batch_size, 4)).sum().backward()
    optimizer.step()
"""
    assert MeasuredTrials(body(cell, space()))(16, 3).shape == (16, 4)


def test_the_last_smaller_batch_of_an_epoch_is_not_the_batch():
    cell = """
batch_size = 8
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for _ in range(5):
    for rows in torch.zeros(20, 4).split(batch_size):
        model(rows).sum().backward()
        optimizer.step()
"""
    assert MeasuredTrials(body(cell, space()))(8, 3).shape == (8, 4)


def test_trials_are_not_kept_as_reports():
    journal.clear()
    MeasuredTrials(body(CELL, space(crash=crashing())))(16, 3)
    assert journal.last() is None
    assert not measuring.is_busy()


def test_what_the_cell_prints_is_not_shown(capsys):
    cell = "batch_size = 8\nprint('noise', batch_size)"
    MeasuredTrials(body(cell, space()), None, lambda: contextlib.redirect_stdout(io.StringIO()))(16, 3)
    assert capsys.readouterr().out == ""


# -- out of memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [(0, "backward"), (1, "optimizer"), (4, "backward"), (4, "optimizer")])
def test_an_out_of_memory_anywhere_ends_the_trial_and_is_said(place):
    trial = MeasuredTrials(body(CELL, space(crash=crashing(place))))(16, 3)
    assert trial.out_of_memory
    assert trial.error.startswith("OutOfMemoryError: CUDA out of memory")


def test_a_byte_budget_is_out_of_memory_in_the_warm_up_the_backward_and_the_optimizer_step(helpers):
    cell = CELL.replace("crash(step, ", "helpers.kept.append(")
    namespace = space(helpers=helpers)
    peak = MeasuredTrials(body(cell, namespace))(16, 3).peak_bytes
    ends = set()
    for percent in range(10, 100, 10):
        helpers.kept.clear()
        trial = MeasuredTrials(body(cell, namespace), peak * percent // 100)(16, 3)
        assert trial.out_of_memory
        assert "Tried to allocate" in trial.error
        ends.add((helpers.kept or ["before"])[-1])
    assert ends == {"before", "backward", "optimizer"}
    helpers.kept.clear()
    assert not MeasuredTrials(body(cell, namespace), peak)(16, 3).out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUBLAS error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        MemoryError(),
    ],
)
def test_other_ways_to_say_out_of_memory(error):
    assert MeasuredTrials(body(CELL, space(crash=crashing((0, "backward"), error=error))))(16, 3).out_of_memory


def test_an_out_of_memory_wrapped_by_the_program_is_one():
    cell = CELL.replace(
        '    crash(step, "backward")',
        '    try:\n        crash(step, "backward")\n    except RuntimeError as e:\n        raise ValueError("training failed") from e',
    )
    assert MeasuredTrials(body(cell, space(crash=crashing((0, "backward")))))(16, 3).out_of_memory


def test_an_out_of_memory_that_the_program_gets_over_is_one():
    cell = CELL.replace(
        "    optimizer.step()",
        "    try:\n        torch.zeros(2**22)\n    except torch.OutOfMemoryError:\n        pass\n    optimizer.step()",
    )
    trial = MeasuredTrials(body(cell, space(crash=crashing())), 8 * MIB)(16, 3)
    assert trial.out_of_memory
    assert trial.error == "caught by the program"
    assert not MeasuredTrials(body(cell, space(crash=crashing())), 64 * MIB)(16, 3).out_of_memory


@pytest.mark.extras
@pytest.mark.parametrize("library", ["accelerate", "lightning"])
def test_a_trial_ends_a_loop_that_a_library_runs(library):
    pytest.importorskip(library)
    programs = {"accelerate": accelerated, "lightning": lit}
    trials = MeasuredTrials(FunctionBody(programs[library]))
    assert [trials(size, 3).shape for size in (8, 16)] == [(8, 16), (16, 16)]
    assert trials(8, 3).steps == 5
    assert trials(8, 3).leftover == ""


def accelerated(batch: int) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = torch.nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(torch.randn(400, 16), batch_size=batch)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for x in loader:
        accelerator.backward(model(x).square().mean())
        optimizer.step()


def lit(batch: int) -> None:
    import lightning

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Linear(16, 4)

        def training_step(self, x, index):
            return self.model(x).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    loader = torch.utils.data.DataLoader(torch.randn(400, 16), batch_size=batch)
    lightning.Trainer(max_epochs=2, accelerator="cpu", **quiet).fit(Lit(), loader)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory is only mentioned here"),
        KeyError("x"),
        SystemExit(3),
    ],
)
def test_any_other_error_ends_the_sweep_with_that_error(error):
    trials = MeasuredTrials(body(CELL, space(crash=crashing((0, "backward"), error=error))))
    with pytest.raises(ProgramFailed) as caught:
        trials(16, 3)
    assert caught.value.__cause__ is error
    assert error.__traceback__ is not None, "the user is to see where"
    assert not measuring.is_busy()


# -- everything is as before -----------------------------------------------------------------------------------------

ENDINGS = {
    "well": None,
    "out of memory": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB."),
    "error": ZeroDivisionError("mine"),
    "interrupt": KeyboardInterrupt(),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("place", ["warm-up", "timed"])
def test_the_users_state_is_as_before_bit_for_bit(ending, place):
    namespace = space(OUTER_SETUP)
    error, after = ENDINGS[ending], 3 if place == "warm-up" else 30
    namespace["crash"] = crash = types.FunctionType(_crash.__code__, {"error": error, "after": after, "calls": [0]})
    cell = OUTER_CELL.replace("        optimizer.zero_grad()", "        crash()\n        optimizer.zero_grad()")
    before, world = fingerprint(namespace), global_fingerprint()
    trials = MeasuredTrials(body(cell, namespace))
    for size in (8, 16, 32):  # it ends that way in one of them, the third at the latest
        with contextlib.suppress(ProgramFailed, KeyboardInterrupt):
            trials(size, 9)
        assert fingerprint(namespace) == before
        assert global_fingerprint() == world
    assert crash.__globals__["calls"][0] >= after


def _crash() -> None:
    calls[0] += 1  # type: ignore[name-defined]  # noqa: F821
    if error is not None and calls[0] == after:  # type: ignore[name-defined]  # noqa: F821
        raise error  # type: ignore[name-defined]  # noqa: F821


def test_the_allocators_and_the_process_settings_are_as_before():
    cell = CELL.replace("for step", "torch.manual_seed(1); torch.backends.cudnn.benchmark = True\nfor step")
    before = global_fingerprint()
    MeasuredTrials(body(cell, space(crash=crashing())))(8, 3)
    assert global_fingerprint() == before


def test_trials_do_not_see_one_another():
    """The same size twice gives the same bytes, although the cell trains an outer model that gains optimizer state."""
    namespace = space(OUTER_SETUP)
    trials = MeasuredTrials(body(OUTER_CELL, namespace))
    first, _, again = trials(16, 3), trials(64, 3), trials(16, 3)
    assert again.categories == first.categories
    assert again.leftover == ""


def test_ctrl_c_during_the_putting_back_comes_after_it(monkeypatch):
    namespace = space(OUTER_SETUP)
    before = fingerprint(namespace)
    trials = MeasuredTrials(body(OUTER_CELL, namespace))
    restore = trials._saved.restore
    monkeypatch.setattr(trials._saved, "restore", lambda: (signal.raise_signal(signal.SIGINT), restore()))
    with pytest.raises(KeyboardInterrupt):
        trials(8, 3)
    monkeypatch.undo()
    assert fingerprint(namespace) == before
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_real_ctrl_c_in_the_middle():
    namespace = space(OUTER_SETUP)
    before = fingerprint(namespace)
    namespace["stop"] = lambda: signal.raise_signal(signal.SIGINT)
    before = fingerprint(namespace)
    cell = OUTER_CELL.replace("        scaler.update()", "        stop()\n        scaler.update()")
    with pytest.raises(KeyboardInterrupt):
        MeasuredTrials(body(cell, namespace))(8, 3)
    assert fingerprint(namespace) == before
    assert not measuring.is_busy()


# -- isolation -------------------------------------------------------------------------------------------------------


def test_what_a_trial_leaves_is_named_and_marks_the_later_ones(helpers):
    cell = CELL.replace("for step", "helpers.kept.append(torch.zeros(2**19))\nfor step")
    trials = MeasuredTrials(body(cell, space(crash=crashing(), helpers=helpers)), None)
    assert trials(8, 3).leftover == ""
    assert trials(16, 3).leftover == "2.00 MiB left by the trial, held by helpers.kept[…]"
    helpers.kept.clear()


@pytest.mark.parametrize(
    ("line", "holder"),
    [
        ("helpers.last = torch.zeros(2**19)", "helpers.last"),
        ("helpers.Cache.items['x'] = torch.zeros(2**19)", "Cache.items['x']"),
        ("helpers.kept.append({'x': [torch.zeros(2**19)]})", "helpers.kept[…]['x'][…]"),
    ],
)
def test_the_holder_is_found_through_containers(helpers, line, holder):
    trials = MeasuredTrials(
        body(CELL.replace("for step", f"{line}\nfor step"), space(crash=crashing(), helpers=helpers))
    )
    trials(8, 3)
    assert holder in trials(16, 3).leftover


def test_a_loss_that_keeps_its_graph_counts_with_all_the_graph_holds(helpers):
    cell = CELL.replace(
        "    loss.backward()",
        "    if step == 0: helpers.kept.append((model(torch.randn(9000, 64)) ** 2).sum())\n    loss.backward()",
    )
    trials = MeasuredTrials(body(cell, space(crash=crashing(), helpers=helpers)))
    trials(8, 3)
    assert "held by helpers.kept" in trials(16, 3).leftover
    helpers.kept.clear()


def test_a_gradient_of_an_earlier_cell_is_no_leftover():
    cell = """\
batch_size = 8
for step in range(9):
    optimizer.zero_grad()
    model(torch.randn(batch_size, 1024)).sum().backward()
    optimizer.step()
"""
    setup = "model = torch.nn.Linear(1024, 1024)\noptimizer = torch.optim.Adam(model.parameters())\n"
    namespace = space(setup + "model(torch.randn(8, 1024)).sum().backward()")
    trials = MeasuredTrials(body(cell, namespace))
    assert [trials(size, 3).leftover for size in (8, 16, 32)] == ["", "", ""]


def test_small_change_is_no_leftover(helpers):
    cell = CELL.replace("for step", "helpers.kept.append(torch.zeros(1000))\nfor step")
    trials = MeasuredTrials(body(cell, space(crash=crashing(), helpers=helpers)))
    trials(8, 3)
    assert trials(16, 3).leftover == ""


def test_an_out_of_memory_lets_go_of_what_its_frames_held():
    def train(batch: int) -> None:
        big = torch.zeros(2**20)
        raise torch.OutOfMemoryError(f"CUDA out of memory with {big.numel()}")

    trials = MeasuredTrials(FunctionBody(train))
    assert trials(8, 3).out_of_memory
    assert trials(16, 3).leftover == ""
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and o.numel() == 2**20]


# -- functions -------------------------------------------------------------------------------------------------------


def test_a_function_and_all_it_can_reach_is_put_back():
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    seen = []

    def train(batch: int) -> None:
        for _ in range(20):
            model(torch.randn(batch, 8)).sum().backward()
            optimizer.step()
            seen.append(batch)

    before = [p.clone() for p in model.parameters()]
    trial = MeasuredTrials(FunctionBody(train))(16, 3)
    assert trial.shape == (16, 8)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not optimizer.state
    assert seen == []


def test_a_function_that_takes_no_size_is_refused():
    with pytest.raises(ValueError, match=r"calls fn\(batch_size\)"):
        FunctionBody(lambda: None)
