"""Programs that make a finding appear, and near misses that look alike and must not: measured for real, on the CPU."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import nn

from ipyvram.analysis import analyse
from ipyvram.options import Options
from ipyvram.probes import keeping
from ipyvram.recording import Cell
from ipyvram.run import Run

MODEL = """
import torch
from torch import nn
def new_model(width=256):
    return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))
model = new_model()
optimizer = torch.optim.Adam(model.parameters())
x = torch.randn(64, 64)
def train(steps=3, batch=64):
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(torch.randn(batch, 64)).square().mean()
        loss.backward()
        optimizer.step()
"""


class Notebook:
    """Cells that share a namespace, as IPython keeps it; ``%%vram`` is `measure`."""

    def __init__(self) -> None:
        self.names: dict = {"__name__": "__main__", "_oh": {}}
        self.count = 0

    def run(self, source: str) -> None:
        self.count += 1
        exec(compile(source, f"<ipython-input-{self.count}>", "exec"), self.names)

    def display(self, expression: str) -> None:
        """An expression at the end of a cell: its value goes to ``Out[n]``, ``_n`` and ``_``."""
        self.count += 1
        value = eval(expression, self.names)
        self.names["_oh"][self.count] = self.names[f"_{self.count}"] = self.names["_"] = value

    def fail(self, source: str) -> None:
        """A cell that raises: IPython keeps its exception for ``%debug``."""
        try:
            self.run(source)
        except Exception as error:
            sys.last_value, sys.last_type, sys.last_traceback = error, type(error), error.__traceback__
            return
        raise AssertionError("it did not raise")

    def measure(self, source: str, **options):
        """The report of one measured cell."""
        run = Run(Options(**options), Cell(source, f"<ipython-input-{self.count + 1}>"), self.names)
        run.start()
        error = None
        try:
            self.run(source)
        except Exception as raised:
            error = raised
        report = analyse(run.stop(error))
        assert report.measurement.notes == ()
        return report


@pytest.fixture
def notebook():
    keeping._models.clear()
    made = Notebook()
    made.run(MODEL)
    yield made
    for name in ("last_value", "last_type", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)


def found(report, kind: str) -> list[str]:
    return [f.text for f in report.findings if f.kind == kind]


def bytes_of(report, kind: str) -> int:
    return next((f.bytes for f in report.findings if f.kind == kind), 0)


# -- what lives on -----------------------------------------------------------------------------------------------------

BROKEN = "def f():\n    big = torch.zeros(1_000_000)\n    raise KeyError('x')\nf()"


def test_traceback(notebook):
    notebook.fail(BROKEN)
    report = notebook.measure("train()")
    assert bytes_of(report, "traceback") == 4_000_000
    assert "KeyError" in found(report, "traceback")[0]


def test_traceback_of_what_a_variable_holds_as_well(notebook):
    notebook.run("big = torch.zeros(1_000_000)")
    notebook.fail("def f(tensor):\n    raise KeyError('x')\nf(big)")
    assert not found(notebook.measure("train()"), "traceback")


def test_the_error_of_the_measured_cell_itself(notebook):
    assert bytes_of(notebook.measure(BROKEN), "traceback") == 4_000_000


def test_out(notebook):
    notebook.run("kept = torch.zeros(1_000_000)")
    notebook.display("kept")
    notebook.run("del kept")
    report = notebook.measure("train()")
    assert bytes_of(report, "out") == 4_000_000
    assert "`Out[3]`, `_3`, `_` hold 3.81 MiB" in found(report, "out")[0]


def test_out_of_a_variable_that_lives(notebook):
    notebook.run("kept = torch.zeros(1_000_000)")
    notebook.display("kept")
    assert not found(notebook.measure("train()"), "out")


def test_old_model_held_by_its_optimizer(notebook):
    notebook.measure("train()")
    notebook.run("model = new_model()")
    report = notebook.measure("model(x)")
    assert "previous `model`" in found(report, "old_model")[0]
    assert "held by `optimizer`" in found(report, "old_model")[0]
    size = sum(p.nbytes for p in notebook.names["model"].parameters())
    assert bytes_of(report, "old_model") == 2 * size  # and its gradients


@pytest.mark.parametrize(
    "again",
    [
        "model = new_model(); optimizer = torch.optim.Adam(model.parameters())",
        "teacher = model; model = new_model(); optimizer = torch.optim.Adam(model.parameters())",
        "models = [model]; model = new_model(); optimizer = torch.optim.Adam(model.parameters())",
        "model = nn.Sequential(model, nn.ReLU())",  # wrapped: the old one is a part of the new one
    ],
    ids=["both-anew", "kept-as-teacher", "kept-in-a-list", "wrapped"],
)
def test_a_model_made_anew_in_order(notebook, again):
    notebook.measure("train()")
    notebook.run(again)
    assert not found(notebook.measure("train()"), "old_model")


def test_orphan_optimizer(notebook):
    notebook.run("model = new_model()")
    report = notebook.measure("train()")
    assert "`optimizer` updates 6 parameters" in found(report, "orphan_optimizer")[0]


def test_an_optimizer_of_the_model_before_is_an_orphan_though_old_gradients_are_left(notebook):
    """The tutorials' loop clears gradients at its beginning: after it, those of the last step are there."""
    cell = """
for _ in range(3):
    optimizer.zero_grad(set_to_none=False)
    model(x).square().mean().backward()
    optimizer.step()
"""
    assert not found(notebook.measure(cell), "orphan_optimizer")
    notebook.run("model = new_model()")
    report = notebook.measure(cell)
    assert "`optimizer` updates 6 parameters" in found(report, "orphan_optimizer")[0]


FUNCTIONAL = """
weights = [torch.randn(64, 8, requires_grad=True)]
optimizer = torch.optim.SGD(weights, lr=0.1)
for _ in range(3):
    (x @ weights[0]).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""
TWO = """
other = new_model()
other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
for _ in range(3):
    model(x).mean().backward()
    optimizer.step()
    other(x).mean().backward()
    other_optimizer.step()
"""


COPIES = """
halves = new_model().bfloat16()
masters = [p.detach().float().requires_grad_() for p in halves.parameters()]
optimizer = torch.optim.SGD(masters, lr=0.1)
for _ in range(3):
    halves(x.bfloat16()).square().mean().backward()
    for master, half in zip(masters, halves.parameters()):
        master.grad, half.grad = half.grad.float(), None
    optimizer.step()
"""


@pytest.mark.parametrize(
    "cell", ["train()", FUNCTIONAL, TWO, COPIES], ids=["module", "raw-tensors", "two-models", "32-bit-copies"]
)
def test_an_optimizer_that_trains_is_no_orphan(notebook, cell):
    assert not found(notebook.measure(cell), "orphan_optimizer")


PERCEPTUAL = """
image = torch.randn(64, 64, requires_grad=True)
optimizer = torch.optim.Adam([image])
for _ in range(3):
    model(image).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
"""


def test_gradients_that_no_optimizer_uses(notebook):
    notebook.run("del optimizer")
    report = notebook.measure(PERCEPTUAL)
    weights = sum(p.nbytes for p in notebook.names["model"].parameters())
    assert bytes_of(report, "untrained") == report.peak["gradients"] == weights
    assert "for 6 parameters of `model` that no optimizer updates" in found(report, "untrained")[0]
    frozen = notebook.measure("model.zero_grad(); model.requires_grad_(False)" + PERCEPTUAL)
    assert not found(frozen, "untrained")
    assert frozen.peak["gradients"] <= 64 * 64 * 4


def test_gradients_that_no_optimizer_of_a_function_uses(notebook):
    lines = PERCEPTUAL.replace("\n", "\n    ")
    report = notebook.measure(f"def main():\n    model = new_model(){lines}\nmain()")
    assert "for 6 parameters that no optimizer updates" in found(report, "untrained")[0]


@pytest.mark.parametrize("cell", ["train()", FUNCTIONAL, TWO, COPIES, PERCEPTUAL])
def test_gradients_that_an_optimizer_uses(notebook, cell):
    """In the last one the optimizer of the model steps in another cell."""
    assert not found(
        notebook.measure(cell.replace("optimizer", "another") if cell is PERCEPTUAL else cell), "untrained"
    )


def test_graphs_of_kept_losses(notebook):
    report = notebook.measure("losses = []\nfor _ in range(5):\n    losses.append(model(x).square().mean())")
    assert "`losses` keeps 5 autograd graphs" in found(report, "graphs")[0]
    saved = 64 * 256 * 4 * 2 + 64 * 8 * 4  # two outputs of ReLU and what square saves; x and the weights live anyway
    assert bytes_of(report, "graphs") == 5 * saved


@pytest.mark.parametrize(
    "cell",
    [
        "losses = []\nfor _ in range(5):\n    loss = model(x).square().mean()\n    losses.append(loss.item())",
        "losses = []\nfor _ in range(5):\n    loss = model(x).square().mean()\n    losses.append(loss.detach())",
        "losses = []\nfor _ in range(5):\n    loss = model(x).square().mean(); loss.backward(); losses.append(loss)",
        "loss = model(x).square().mean()",
    ],
    ids=["item", "detach", "after-backward", "one-loss"],
)
def test_losses_that_keep_nothing(notebook, cell):
    assert not found(notebook.measure(cell), "graphs")


# -- steps -------------------------------------------------------------------------------------------------------------


def test_evaluation_without_no_grad(notebook):
    report = notebook.measure("right = 0\nfor _ in range(4):\n    right += model(torch.randn(512, 64)).argmax(1).sum()")
    assert "4 forwards recorded a graph" in found(report, "unused_graph")[0]


@pytest.mark.parametrize(
    "cell",
    [
        "with torch.no_grad():\n    for _ in range(4):\n        model(torch.randn(512, 64))",
        "train(batch=512)",
        "outs = [model(torch.randn(512, 64)) for _ in range(4)]\nsum(o.mean() for o in outs).backward()",
        "for _ in range(2):\n    for _ in range(4):\n        model(torch.randn(512, 64)).mean().backward()\n    optimizer.step()",
        "for _ in range(3):\n    a, b = (model(torch.randn(512, 64)) for _ in range(2))\n    (a @ b.T).mean().backward()",
        "out = model(torch.randn(512, 64))",  # its backward may be in the next cell
    ],
    ids=["no-grad", "training", "one-backward-for-all", "accumulation", "two-of-one-loss", "one-forward"],
)
def test_forwards_whose_graph_is_used(notebook, cell):
    assert not found(notebook.measure(cell), "unused_graph")


def test_one_forward_whose_graph_is_still_there_when_steps_go_on(notebook):
    """Samples of a generator, drawn once in a while, until the next ones take their name."""
    cell = "for i in range(3):\n    train(1)\n    if i == 0:\n        samples = model(torch.randn(512, 64))"
    assert "A forward recorded a graph and no backward followed" in found(notebook.measure(cell), "unused_graph")[0]
    with_it = notebook.measure(cell).peak_bytes
    without = notebook.measure(cell.replace("samples = model", "samples = torch.no_grad()(model)")).peak_bytes
    assert with_it - without >= 512 * 256 * 4


def test_second_step_above_the_first(notebook):
    report = notebook.measure("optimizer = torch.optim.Adam(model.parameters())\ntrain(batch=512)")
    state = 2 * sum(p.nbytes for p in notebook.names["model"].parameters())
    assert abs(bytes_of(report, "second_step") - state) <= state // 10


@pytest.mark.parametrize("optimizer", ["SGD(model.parameters(), lr=0.1)", "Adam(model.parameters())"])
def test_steps_that_peak_alike(notebook, optimizer):
    """Without state, or with state from an earlier cell."""
    notebook.run(f"optimizer = torch.optim.{optimizer}\ntrain(1)")
    assert not found(notebook.measure("train(batch=512)"), "second_step")


def test_first_step_needs_the_flag(notebook):
    cell = "for b in (4096, 64, 64):\n    model(torch.randn(b, 64)).mean().backward()\n    optimizer.step()\n    optimizer.zero_grad()"
    notebook.run("train(1)")
    assert not found(notebook.measure(cell), "first_step")
    torch.backends.cudnn.benchmark = True
    try:
        assert found(notebook.measure(cell), "first_step")
    finally:
        torch.backends.cudnn.benchmark = False


def test_growth(notebook):
    cell = (
        "kept = []\nfor _ in range(3):\n    optimizer.zero_grad()\n    out = model(torch.randn(512, 64))\n"
        "    out.mean().backward()\n    optimizer.step()\n    kept.append(torch.zeros(100_000))"
    )
    assert not found(notebook.measure("train(3, batch=512)"), "growth")
    notebook.run("train(1)")
    report = notebook.measure(cell.replace("    optimizer.step()\n    kept.append(torch.zeros(100_000))", "    kept.append(torch.zeros(100_000))\n    optimizer.step()"))  # fmt: skip
    assert bytes_of(report, "growth") == 400_000


def test_one_larger_batch_is_no_growth(notebook):
    cell = "for b in (64, 64, 2048):\n    optimizer.zero_grad()\n    inputs = torch.randn(b, 64)\n    model(inputs).mean().backward()\n    optimizer.step()"
    notebook.run("train(1)")
    assert not found(notebook.measure(cell), "growth")


# -- the account -------------------------------------------------------------------------------------------------------


def test_lever_is_the_batch_or_the_model(notebook):
    assert "batch size is the lever" in found(notebook.measure("train(batch=2048)"), "lever")[0]
    assert "a smaller batch lowers only the rest" in found(notebook.measure("train(batch=2)"), "lever")[0]


STEP = "optimizer.zero_grad(); nn.MSELoss()(model(x), y).backward(); optimizer.step()"
SAME = "the same in every step"


@pytest.mark.parametrize(
    ("loop", "same"),
    [
        (f"for _ in range(3): {STEP}", True),  # a full graph: there are no others
        (f"for i in range(3):\n    with torch.no_grad(): model(torch.randn(8, 64))\n    {STEP}", True),
        (f"for i in range(3):\n    x = torch.randn(2048, 64); {STEP}", False),
        (f"X = torch.randn(3 * 2048, 64)\nfor i in range(3):\n    x = X[i * 2048:(i + 1) * 2048]; {STEP}", False),
        (f"X = torch.randn(3 * 2048, 64)\nfor i in range(3):\n    x = X[torch.arange(2048)]; {STEP}", False),
    ],
)
def test_what_every_step_is_given_may_be_all_there_is(loop, same, notebook):
    notebook.run("x = torch.randn(2048, 64)\ny = model(x).detach()")
    (text,) = found(notebook.measure(loop), "lever")
    assert (SAME in text) == same


EPISODE = """
for length in (600, 400, 500, 450):
    chosen = [model(torch.randn(1, 64)).log_softmax(1)[0, 0] for _ in range(length)]
    optimizer.zero_grad(); torch.stack(chosen).sum().backward(); optimizer.step()
"""
ROLLOUT = """
for length in (3000, 2000, 2500, 2200):
    optimizer.zero_grad(); model(torch.randn(length, 64)).log_softmax(1)[:, 0].sum().backward(); optimizer.step()
"""


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        (EPISODE, "until one backward: a backward after fewer of them is the lever."),
        (ROLLOUT, "of which steps have 2000 to 3000: where these can be cut into batches"),
    ],
)
def test_the_length_of_an_episode_is_no_free_choice(loop, said, notebook):
    (text,) = found(notebook.measure(loop), "lever")
    assert said in text


def test_a_peak_in_an_evaluation_is_lowered_there(notebook):
    cell = "train(batch=8)\nwith torch.no_grad():\n    model(torch.randn(4096, 64))"
    assert "samples in a forward without gradients" in found(notebook.measure(cell), "lever")[0]


def test_optimizer_temporaries(notebook):
    notebook.run("optimizer = torch.optim.Adam(model.parameters(), foreach=True)")
    assert found(notebook.measure("train(batch=2)"), "optimizer_temporaries")
    notebook.run("optimizer = torch.optim.Adam(model.parameters(), foreach=False)")
    assert not found(notebook.measure("train(batch=2)"), "optimizer_temporaries")


def test_nothing_is_run_or_changed_by_looking(notebook):
    """Objects with properties, broken dictionaries and generators are passed by."""

    class Odd:
        @property
        def trap(self):
            raise AssertionError("a property was read")

        def __getattr__(self, name):
            raise AssertionError(f"{name} was asked for")

        def __iter__(self):
            raise AssertionError("it was iterated over")

    def endless():
        tensor = torch.zeros(1000)
        while True:
            yield tensor

    generator = endless()
    next(generator)
    notebook.names |= {"odd": Odd(), "generator": generator, "module": types, "itself": notebook.names}
    notebook.fail(BROKEN)
    assert bytes_of(notebook.measure("train()"), "traceback") == 4_000_000


def test_a_parametrized_module_is_not_parametrized_again(notebook):
    """Reading a parametrised weight computes it; looking must not."""
    calls = []

    class Counted(nn.Module):
        def forward(self, weight):
            calls.append(1)
            return weight * 2

    layer = nn.Linear(64, 64)
    nn.utils.parametrize.register_parametrization(layer, "weight", Counted())
    notebook.names["layer"] = layer
    notebook.fail(BROKEN)
    calls.clear()
    notebook.measure("train()")
    assert calls == []


def test_one_step_tells_what_a_second_would_need(notebook):
    """The optimizer's state is made at the end of the first: who chose a batch by one step would run out of memory."""
    found = {f.kind: f for f in notebook.measure("train(steps=1, batch=1024)").findings}
    notebook.run(MODEL)
    two = notebook.measure("train(steps=2, batch=1024)")
    assert two.peak_step == 2
    assert "only_step" not in {f.kind for f in two.findings}
    first = two.step_accounts[0].peak_bytes
    assert found["only_step"].bytes == pytest.approx(two.peak_bytes - first, rel=0.02)


def test_one_step_of_an_optimizer_that_has_its_state_says_nothing_of_a_second(notebook):
    notebook.run("train(steps=1)")
    assert "only_step" not in {f.kind for f in notebook.measure("train(steps=1, batch=1024)").findings}
    notebook.run("optimizer = torch.optim.SGD(model.parameters(), lr=0.1)")
    assert "only_step" not in {f.kind for f in notebook.measure("train(steps=1, batch=1024)").findings}


# -- an optimizer that keeps more with every step ---------------------------------------------------------------------------

CLOSURES = """
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.01)
target = torch.randn(32, 1000)
def closure():
    optimizer.zero_grad()
    loss = (model(torch.ones(32, 1000)).sum(1) - target.sum(1)).square().mean()
    loss.backward()
    return loss
for _ in range({steps}): optimizer.step(closure)
"""


def test_the_state_of_l_bfgs_does_not_end_with_its_first_step(notebook):
    notebook.run("torch.manual_seed(0)\nmodel = nn.Sequential(nn.Linear(1000, 64), nn.Tanh(), nn.Linear(64, 10))")
    two = notebook.measure(CLOSURES.format(steps=2))
    (said,) = found(two, "second_step")
    assert "until its history_size is full" in said
    assert "exists only" not in said
    assert "a smaller history_size of L-BFGS, or an optimizer with less state" in found(two, "lever")[0]
    three = notebook.measure(CLOSURES.format(steps=3))
    assert found(three, "growth")
    assert not found(three, "second_step")  # the same, said once
