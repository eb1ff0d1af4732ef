"""After an estimate the notebook is as before, bit for bit, however it ended."""

import collections
import copy
import os
import random
import sys
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ipyvram
from ipyvram.simulated.memory import DeviceMemory


class Meter:
    """A running average, as tutorials write it."""

    def __init__(self):
        self.total, self.count, self.history = 0.0, 0, []

    def update(self, value):
        self.total += value
        self.count += 1
        self.history.append(value)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(50, 16), nn.BatchNorm1d(16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.words.weight
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        return self.head(self.norm(self.words(x).mean(1)))


def begun(loader):
    """An iterator that an earlier cell has taken a batch from."""
    torch.manual_seed(3)
    iterator = iter(loader)
    next(iterator)
    return iterator


def make_notebook():
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = Tied()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    model(torch.randint(0, 50, (8, 5))).sum().backward()  # state and gradients of an earlier cell
    optimizer.step()
    weight = torch.randn(4, 4, requires_grad=True)
    loader = DataLoader(TensorDataset(torch.randint(0, 50, (64, 5)), torch.randint(0, 50, (64,))), 8, shuffle=True)

    def train_step(x, y):  # reads its closure, not the cell's namespace
        loss = nn.functional.cross_entropy(model(x), y) + (weight**2).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss

    return {
        "torch": torch, "nn": nn, "np": np, "random": random, "copy": copy,
        "model": model, "optimizer": optimizer, "scheduler": scheduler, "weight": weight, "loader": loader,
        "train_step": train_step, "device": "cpu", "losses": [1.0], "seen": collections.Counter(a=1), "names": {"x"},
        "meter": Meter(), "array": np.arange(6.0), "tensor": torch.arange(6.0), "view": model.head.weight.detach()[3:],
        "generator": torch.Generator().manual_seed(5), "iterator": begun(loader), "config": {"lr": 1, "deep": [1, {"k": 2}]},
    }  # fmt: skip


CELL = """
model.to("cuda").train()
for epoch in range(3):
    for x, y in loader:
        loss = train_step(x.to("cuda"), y.to("cuda"))
        losses.append(loss.item()); meter.update(loss.item()); seen["b"] += 1; names.add("y"); epoch_new = epoch
        array[0] = 9; tensor.add_(1); view.mul_(2); config["lr"] = 0; config["deep"][1]["k"] = 3; config["deep"].append(4)
        torch.rand(1); np.random.rand(1); random.random(); torch.rand(1, generator=generator); next(iterator)
        model.extra = epoch; model.seen += 1; torch.backends.cudnn.benchmark = True; device = "cuda"
        model.head.register_forward_hook(lambda *a: None); weight.register_hook(lambda g: g)
        del_me = copy.deepcopy(model)
"""


def picture(notebook):
    """Everything that could have changed, as values that compare with ``==``."""
    model, optimizer = notebook["model"], notebook["optimizer"]

    def bits(tensor):
        return (
            str(tensor.device),
            tensor.dtype,
            tuple(tensor.shape),
            tensor.detach().numpy().tobytes(),
            tensor.requires_grad,
        )

    return {
        "names": sorted(notebook),
        "model": {k: bits(v) for k, v in model.state_dict().items()},
        "identity": [id(p) for p in model.parameters()],
        "tied": model.head.weight is model.words.weight,
        "shared": notebook["view"].untyped_storage().data_ptr() == model.head.weight.untyped_storage().data_ptr(),
        "grads": [None if p.grad is None else bits(p.grad) for p in model.parameters()],
        "optimizer": [
            (g["lr"], [sorted((k, bits(v)) for k, v in optimizer.state[p].items()) for p in g["params"]])
            for g in optimizer.param_groups
        ],
        "scheduler": {k: v for k, v in notebook["scheduler"].state_dict().items() if not k.startswith("_get")},
        "attributes": sorted(vars(model)),
        "hooks": (len(model.head._forward_hooks), notebook["weight"]._backward_hooks),
        "weight": (bits(notebook["weight"]), notebook["weight"].grad),
        "rng": (
            torch.get_rng_state().numpy().tobytes(),
            np.random.get_state()[1].tobytes(),
            random.getstate(),
            notebook["generator"].get_state().numpy().tobytes(),
        ),
        "python": copy.deepcopy(
            [notebook[n] for n in ("losses", "seen", "names", "config", "device")] + [vars(notebook["meter"])]
        ),
        "array": notebook["array"].tobytes(),
        "tensors": [bits(notebook["tensor"]), bits(notebook["view"])],
        "switches": (torch.backends.cudnn.benchmark, torch.cuda.is_available(), torch.get_default_dtype()),
        "functions": (torch.save, torch.load, torch.compile, torch.cuda.synchronize, nn.init.normal_, DataLoader.__iter__),
        "modes": (torch._C._len_torch_dispatch_stack(), torch._C._len_torch_function_stack()),
        "autocast": torch.is_autocast_enabled("cuda"),
        "dropout": torch.ops.aten.dropout(torch.ones(3, device="meta", requires_grad=True), 0.5, True).grad_fn.name(),
    }  # fmt: skip


def the_rest_of_the_iterator(notebook):
    return [x.tolist() for x, _ in notebook["iterator"]]


ENDINGS = {
    "steps": (CELL, None),
    "end": ("model.to('cuda')\ntrain_step(torch.zeros(8, 5, dtype=int, device='cuda'), torch.zeros(8, dtype=int, device='cuda'))", None),
    "error": (CELL.replace("next(iterator)", "raise KeyError('k')"), KeyError),
    "interrupt": (CELL.replace("next(iterator)", "raise KeyboardInterrupt"), KeyboardInterrupt),
    "exit": (CELL.replace("next(iterator)", "raise SystemExit"), SystemExit),
    "error in forward": (CELL.replace("x.to(\"cuda\")", "x[None].to(\"cuda\")"), RuntimeError),
    "error in backward": (
        "def fail(g): raise ZeroDivisionError\nw = weight * 2; w.register_hook(fail); w.sum().backward()", ZeroDivisionError,
    ),
    "refusal": (CELL.replace("next(iterator)", "torch.repeat_interleave(torch.randint(3, (4,), device='cuda'))"), ValueError),
}  # fmt: skip


@pytest.mark.parametrize(("cell", "error"), ENDINGS.values(), ids=ENDINGS)
def test_everything_is_as_before(cell, error):
    notebook, untouched = make_notebook(), make_notebook()
    before = picture(notebook)
    if error is None:
        assert ipyvram.estimate(cell, card="T4", namespace=notebook).peak_bytes > 0
    else:
        with pytest.raises(error):
            ipyvram.estimate(cell, card="T4", namespace=notebook)
    after = picture(notebook)
    for key in before:
        assert after[key] == before[key], key
    assert the_rest_of_the_iterator(notebook) == the_rest_of_the_iterator(untouched)


def test_training_goes_on_as_if_nothing_had_been():
    with_estimate, without = make_notebook(), make_notebook()
    ipyvram.estimate(CELL, card="T4", namespace=with_estimate)
    results = []
    for notebook in (with_estimate, without):
        torch.manual_seed(1)
        losses = [notebook["train_step"](x, y).item() for x, y in notebook["loader"]]
        results.append((losses, [p.detach().numpy().tobytes() for p in notebook["model"].parameters()]))
    assert results[0] == results[1]


def test_a_graph_of_an_earlier_cell_still_runs_backward():
    notebook = make_notebook()
    loss = notebook["model"](torch.randint(0, 50, (8, 5))).sum()
    notebook["model"].zero_grad()
    ipyvram.estimate(CELL, card="T4", namespace=notebook)
    loss.backward()
    assert notebook["model"].words.weight.grad.abs().sum() > 0


def test_an_estimate_leaves_no_tensor_and_no_file(tmp_path):
    notebook = make_notebook()
    path = tmp_path / "model.pt"
    torch.save(notebook["model"].state_dict(), path)
    written = path.read_bytes()
    cell = f"model.load_state_dict(torch.load({str(path)!r}, map_location='cuda'))\n" + CELL
    cell += f"        torch.save(model.state_dict(), {str(path)!r})\n"
    ipyvram.estimate(cell, card="T4", namespace=notebook)
    assert path.read_bytes() == written


def test_a_generator_of_an_earlier_cell_is_refused_before_it_is_advanced():
    notebook = make_notebook()
    notebook["stream"] = (i for i in range(10))
    with pytest.raises(ValueError, match="stream"):
        ipyvram.estimate("for i in stream: model(torch.zeros(2, 2, dtype=int))", namespace=notebook)
    assert list(notebook["stream"]) == list(range(10))


def test_a_variable_around_a_function_is_as_before():
    def counter():
        calls = 0

        def count():
            nonlocal calls
            calls += 1
            return calls

        return count

    notebook = make_notebook() | {"count": counter()}
    ipyvram.estimate("model.to('cuda'); count(); count()", namespace=notebook)
    assert notebook["count"]() == 1


def test_one_estimate_inside_another_is_refused():
    notebook = make_notebook() | {"ipyvram": ipyvram}
    with pytest.raises(ValueError, match="inside"):
        ipyvram.estimate("ipyvram.estimate('1', namespace={})", namespace=notebook)
    assert ipyvram.estimate("torch.zeros(3, device='cuda')", namespace=notebook).peak_bytes == 512


def test_an_interrupt_while_everything_is_put_back_waits_until_it_is(monkeypatch):
    import signal

    from ipyvram.simulated.swap import Swap

    back = Swap.back

    def interrupted(self):
        signal.raise_signal(signal.SIGINT)
        back(self)

    monkeypatch.setattr(Swap, "back", interrupted)
    notebook = make_notebook()
    before = picture(notebook)
    with pytest.raises(KeyboardInterrupt):
        ipyvram.estimate(CELL, card="T4", namespace=notebook)
    assert picture(notebook) == before


def test_torch_is_not_made_to_warn_of_what_the_notebook_keeps(recwarn):
    """A kept loss has a history and no gradient; to ask for that is what torch warns of."""
    notebook = make_notebook()
    notebook["kept"] = torch.ones(3, requires_grad=True).exp()
    ipyvram.estimate("kept.sum()", card="T4", namespace=notebook)
    assert [str(w.message) for w in recwarn if ".grad attribute" in str(w.message)] == []


def test_a_default_device_that_the_cell_sets_is_its_own():
    before = torch.get_default_device()
    untouched = not hasattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context")
    ipyvram.estimate("torch.set_default_device('cuda'); torch.zeros(3)", card="T4", namespace=make_notebook())
    assert torch.get_default_device() == before  # torch 2.6 cannot tell it after one was set and taken away
    assert untouched == (not hasattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context"))


def test_a_ctrl_c_while_a_storage_ends_is_not_lost(monkeypatch):
    """What is raised in the callback of a weak reference would be dropped."""
    free = DeviceMemory.free

    def arm():
        def interrupted(memory, serial, size):
            monkeypatch.setattr(DeviceMemory, "free", free)
            raise KeyboardInterrupt

        monkeypatch.setattr(DeviceMemory, "free", interrupted)

    code = "x = torch.zeros(1000, device='cuda')\narm()\ndel x\nfor _ in range(3000):\n    time.sleep(0.001)"
    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt):
        ipyvram.estimate(code, card="T4", namespace={"torch": torch, "arm": arm, "time": time})
    assert sys.unraisablehook is before


def test_settings_of_the_process_are_as_before(monkeypatch):
    cell = (
        "import os, torch\nos.environ['IPYVRAM_TEST'] = '1'; os.chdir('/'); torch.use_deterministic_algorithms(True)\n"
        "torch.backends.cuda.enable_cudnn_sdp(False); torch.backends.cuda.matmul.allow_tf32 = True; torch.zeros(4, device='cuda')"
    )
    monkeypatch.delenv("IPYVRAM_TEST", raising=False)
    before = _settings()
    assert ipyvram.estimate(cell, card="T4", namespace={}).peak_bytes == 512
    assert _settings() == before


def _settings():
    sdp, tf32 = torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.matmul.allow_tf32
    return os.environ.get("IPYVRAM_TEST"), os.getcwd(), torch.are_deterministic_algorithms_enabled(), sdp, tf32
