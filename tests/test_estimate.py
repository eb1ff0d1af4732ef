"""`estimate`: what it answers, on code that uses a card as people do; this machine needs none."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import ipyvram
from ipyvram.devices import keeps_workspaces
from ipyvram.recording import CATEGORIES


class Net(nn.Module):
    def __init__(self, width=256):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, 10))

    def forward(self, x):
        return self.body(x)


@pytest.fixture
def notebook():
    """The variables of a small notebook, its model still on the host."""
    torch.manual_seed(0)
    model = Net()
    data = TensorDataset(torch.randn(512, 64), torch.randint(0, 10, (512,)))
    return {
        "torch": torch,
        "nn": nn,
        "np": np,
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters(), lr=1e-3),
        "loader": DataLoader(data, batch_size=32, shuffle=True),
        "device": "cpu",
        "losses": [],
    }


STEP = """
    x, y = x.to(device), y.to(device)
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
TRAIN = "model.to(device)\nfor x, y in loader:" + STEP


def test_a_training_cell_is_reported_like_a_measured_one(notebook):
    report = ipyvram.estimate(TRAIN, card="T4", namespace=notebook, label="try")
    weights = sum(p.numel() * 4 for p in Net().parameters())
    assert (report.kind, report.label, report.device_name, report.steps) == ("estimated", "try", "Tesla T4", 3)
    assert sum(report.peak.values()) == report.peak_bytes
    assert set(report.provenance.values()) == {"predicted"}
    assert report.end["parameters"] >= weights
    assert report.end["optimizer_state"] >= 2 * weights
    assert report.end["workspaces"] == (2 * 8_519_680 if keeps_workspaces() else 0)
    assert report.end["other"] == 0
    held = report.peak_reserved_bytes
    assert report.peak_bytes <= held <= report.card_bytes
    assert sum(report.card.values()) + report.peak_bytes == report.card_bytes
    assert ipyvram.last is report


def test_lines_are_those_of_the_text(notebook):
    report = ipyvram.estimate(TRAIN, card="T4", namespace=notebook)
    named = {t.name: (t.line, t.source) for t in report.tensors_at_peak}
    assert named["loss"] == (4, "loss = nn.functional.cross_entropy(model(x), y)")


def test_the_account_is_the_categories_in_order(notebook):
    frame = ipyvram.estimate(TRAIN, card="T4", namespace=notebook).to_frame()
    assert list(frame.index[: len(CATEGORIES)]) == list(CATEGORIES)


def test_twice_the_batch_takes_more_activations_and_the_same_weights(notebook):
    small = ipyvram.estimate(TRAIN, card="T4", namespace=notebook)
    notebook["loader"] = DataLoader(notebook["loader"].dataset, batch_size=256)
    large = ipyvram.estimate(TRAIN, card="T4", namespace=notebook)
    assert large.end["parameters"] == small.end["parameters"]
    assert large.end["inputs"] > small.end["inputs"]
    assert large.peak_bytes > small.peak_bytes


@pytest.mark.parametrize("name", ["device", "DEVICE", "dev", "my_dev"])
def test_a_variable_of_an_earlier_cell_that_says_cpu_chooses_the_card(notebook, name):
    notebook[name] = notebook.pop("device")
    report = ipyvram.estimate(TRAIN.replace("device", name), card="T4", namespace=notebook)
    assert report.peak["parameters"] > 0
    assert notebook[name] == "cpu"
    assert "nothing_on_card" not in {f.kind for f in report.findings}


@pytest.mark.parametrize(("name", "chosen"), [("DEVICE", True), ("cpu_device", False), ("HOST_DEV", False)])
def test_a_module_that_says_cpu_chooses_the_card(notebook, monkeypatch, name, chosen):
    """As keras does when it is imported, or a file of the user's."""
    config = types.ModuleType("config_of_the_users")
    vars(config).update({"torch": torch, name: torch.device("cpu")})
    monkeypatch.setitem(sys.modules, config.__name__, config)
    notebook["config"] = config
    code = "for _ in range(3):\n    net = nn.Linear(64, 64).to(device)\n    net(x.to(device)).sum().backward()"
    report = ipyvram.estimate(
        code.replace("device", f"config.{name}"), card="T4", namespace={**notebook, "x": torch.ones(2, 64)}
    )
    assert (report.peak["parameters"] > 0) is chosen
    assert vars(config)[name] == torch.device("cpu")


def test_that_nothing_was_on_the_card_is_said():
    code = (
        "model = nn.Linear(4, 4)\nfor _ in range(3):\n    model(torch.ones(2, 4)).sum().backward(); model.zero_grad()"
    )
    report = ipyvram.estimate(code, card="T4", namespace={"torch": torch, "nn": nn})
    (finding,) = [f for f in report.findings if f.kind == "nothing_on_card"]
    assert report.peak_bytes == 0
    assert ".to('cuda')" in finding.text


@pytest.mark.parametrize(
    ("line", "left"),
    [
        ("F.cross_entropy(model(x.cuda()), y)", "a tensor (4)"),
        ("F.cross_entropy(model(x), y)", "2 tensors (4×8, 4)"),
        ("F.cross_entropy(model(x.cuda()), y.cuda())", ""),
        ("model(x.cuda())[y]", ""),  # an index may be on the host
        (
            "F.ctc_loss(model(x.cuda()).log_softmax(1)[:, None], y.cuda()[None], torch.tensor([4]), torch.tensor([4]))",
            "",
        ),
    ],
)
def test_what_the_cell_forgets_to_move_is_said(line, left):
    source = f"""
import torch
import torch.nn.functional as F
model = torch.nn.Linear(8, 8).cuda()
x, y = torch.randn(4, 8), torch.tensor([1, 2, 3, 4])
{line}.sum().backward()
"""
    found = [f.text for f in ipyvram.estimate(source, card="T4").findings if f.kind == "left_on_host"]
    assert [text.split(" on the CPU")[0] for text in found] == ([f"The cell leaves {left}"] if left else [])


@pytest.mark.parametrize(
    "line",
    [
        "F.mse_loss(linear(x.cuda()), x)",
        "F.smooth_l1_loss(x, linear(x.cuda()))",
        "F.binary_cross_entropy(linear(x.cuda()).sigmoid(), x)",
        "nn.LayerNorm(8).cuda()(x)",
        "nn.GroupNorm(2, 8).cuda()(x)",
        "nn.BatchNorm1d(8).cuda()(x)",
        "nn.LSTM(8, 8).cuda()(x)[0]",
        "nn.GRUCell(8, 8).cuda()(x, x)",
        "torch.autograd.grad(linear(x.cuda()).tanh(), list(linear.parameters()), grad_outputs=x, create_graph=True)[0]",
    ],
)
def test_a_kernel_of_every_kind_may_meet_what_the_cell_forgets_to_move(line):
    source = f"""
import torch
import torch.nn.functional as F
from torch import nn
linear, x = nn.Linear(8, 8).cuda(), torch.rand(4, 8)
{line}.sum().backward()
"""
    (found,) = [f.text for f in ipyvram.estimate(source, card="T4").findings if f.kind == "left_on_host"]
    assert "on the CPU" in found


def test_what_numpy_cannot_take_is_said_as_a_card_says_it():
    source = "import torch\nx = torch.ones(2, device='cuda')\nassert x.numpy(force=True).shape == (2,)\n"
    for way in ("x.numpy()", "np.asarray(x)"):
        with pytest.raises(TypeError, match=r"can't convert cuda:0 .* Use Tensor\.cpu\(\)"):
            ipyvram.estimate(f"import numpy as np\n{source}{way}", card="T4")


@pytest.mark.parametrize(
    "choice",
    [
        'device = "cuda"',
        'device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")',
        "device = 0",
        'device = torch.device("mps")',
        "device = torch.accelerator.current_accelerator() if hasattr(torch, 'accelerator') else 'cuda'",
        "",
    ],
)
def test_whatever_device_the_cell_chooses_is_the_card(notebook, choice):
    report = ipyvram.estimate(choice + "\n" + TRAIN, card="T4", namespace=notebook)
    assert report.device == "cuda:0"
    assert report.steps == 3
    assert report.end["optimizer_state"] > 0


CALLS = {
    "item": "v = loss.item(); assert isinstance(v, float)",
    "float": "v = float(loss) + 1; losses.append(v)",
    "print": "print(loss, f'{loss:.3f}', loss.item(), y)",
    "cpu numpy": "p = model(x).argmax(1).cpu().numpy(); assert p.shape == (32,)",
    "detach numpy": "assert model(x).detach().cpu().numpy().dtype == np.float32",
    "metric": "correct = (model(x).argmax(1) == y).sum().item(); acc = correct / len(y)",
    "if": "if loss < 0.1: raise SystemExit",
    "nan check": "assert not torch.isnan(loss)",
    "tolist": "assert len(y.tolist()) == 32",
    "synchronize": "torch.cuda.synchronize()",
    "events": "s = torch.cuda.Event(enable_timing=True); s.record(); s.elapsed_time(s)",
    "memory": "assert 0 < torch.cuda.memory_allocated() <= torch.cuda.max_memory_allocated()",
    "reset": "torch.cuda.reset_peak_memory_stats(); torch.cuda.empty_cache()",
    "properties": "assert torch.cuda.get_device_properties(0).total_memory > 1 << 30; torch.cuda.get_device_name()",
    "mem_get_info": "free, total = torch.cuda.mem_get_info(); assert free < total",
    "seed": "torch.cuda.manual_seed_all(0)",
    "devices": "assert x.device.type == 'cuda' and x.is_cuda and x.device == next(model.parameters()).device",
    "mask": "z = x[y > 3]; assert z.shape[1] == 64",
    "nonzero": "z = (y == 3).nonzero()",
    "unique": "z = y.unique()",
    "clip": "nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
    "no grad": "with torch.no_grad(): z = model(x).softmax(1)",
    "inference": "with torch.inference_mode(): z = model(x).softmax(1)",
    "save": "torch.save(model.state_dict(), '/nowhere/at/all.pt')",
    "generator": "g = torch.Generator('cuda').manual_seed(1); torch.randn(3, device='cuda', generator=g)",
    "back to the host": "z = model(x).cpu() * 2; assert z.device.type == 'cpu' and z.sum().item() == 0",
    "pin": "z = torch.randn(8).pin_memory().to(device, non_blocking=True)",
    "default device": "torch.set_default_device('cuda'); assert torch.zeros(2).is_cuda; torch.set_default_device('cpu')",
    "factory": "with torch.device('cuda'): assert torch.zeros(2).is_cuda",
    "deepcopy": "import copy; ema = copy.deepcopy(model)",
    "state_dict": "z = {k: v.clone() for k, v in model.state_dict().items()}; model.load_state_dict(z)",
    "double backward": "g, = torch.autograd.grad(model(x).sum(), [next(model.parameters())], create_graph=True); g.sum().backward()",
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_cells_do_with_a_card_works_without_one(notebook, call):
    report = ipyvram.estimate(TRAIN + "    " + call.replace("\n", "\n    "), card="T4", namespace=notebook)
    assert report.steps == 3
    source = TRAIN.replace("    optimizer.step()\n", "    " + call + "\n    optimizer.step()\n")
    assert ipyvram.estimate(source, card="T4", namespace=notebook).steps == 3


def test_tqdm_and_workers_and_a_scheduler(notebook):
    pytest.importorskip("tqdm")
    notebook["loader"] = DataLoader(notebook["loader"].dataset, 32, num_workers=2, pin_memory=True)
    source = (
        """
from tqdm import tqdm
model.to(device)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
for x, y in tqdm(loader, disable=None):
"""
        + STEP
        + "    scheduler.step()"
    )
    assert ipyvram.estimate(source, card="T4", namespace=notebook).steps == 3


def test_an_endless_loop_ends_after_the_traced_steps(notebook):
    source = (
        "model.to(device)\nx, y = next(iter(loader))\nwhile True:\n    try:\n"
        + "\n".join("    " + line for line in STEP.splitlines())
        + "\n    except Exception:\n        pass"
    )
    report = ipyvram.estimate(source, card="T4", namespace=notebook, steps=2)
    assert (report.steps, report.measurement.ended_by) == (2, "2 steps")


def test_endless_inference_ends_and_says_where(notebook):
    source = "model.to(device)\nx = torch.randn(8, 64, device=device)\nwhile True:\n    with torch.no_grad(): model(x)"
    report = ipyvram.estimate(source, card="T4", namespace=notebook)
    assert report.steps == 0
    assert "without an optimizer step" in report.measurement.ended_by


def test_an_operator_of_an_extension_is_refused_by_name(notebook):
    library = torch.library.Library("ipyvram_tests", "FRAGMENT")
    library.define("mystery(Tensor x) -> Tensor")
    library.impl("mystery", lambda x: x * 2, "CPU")
    try:
        with pytest.raises(ValueError, match="ipyvram_tests::mystery"):
            ipyvram.estimate("torch.ops.ipyvram_tests.mystery(torch.ones(3, device='cuda'))", namespace=notebook)
    finally:
        library._destroy()


def test_an_unknown_card_offers_the_nearest(notebook):
    with pytest.raises(ValueError, match="RTX 4090"):
        ipyvram.estimate(TRAIN, card="RTX 4091", namespace=notebook)


def test_an_estimate_says_how_the_name_of_several_cards_was_taken(notebook):
    notes = ipyvram.estimate(TRAIN, card="A100", namespace=notebook).measurement.notes
    assert [n for n in notes if "A100 80GB" in n] == [
        "A100 is taken as the card of 40 GB: write A100 80GB for the other"
    ]


def test_text_that_is_not_python_is_refused(notebook):
    with pytest.raises(ValueError, match="not Python"):
        ipyvram.estimate("for x in:", namespace=notebook)


def test_what_the_code_raises_is_raised(notebook):
    with pytest.raises(RuntimeError, match=r"reduction dim|cannot be multiplied"):
        ipyvram.estimate("model.to(device)(torch.randn(4, 63, device=device))", namespace=notebook)


def test_a_card_too_small_is_said_with_what_is_missing(notebook):
    source = "model.to(device)\nbig = torch.empty(300 << 20, dtype=torch.uint8, device='cuda')"
    report = ipyvram.estimate(source, card="512MiB", namespace=notebook)
    assert report.findings[0].kind == "does_not_fit"
    assert "Does not fit on a card of 512 MiB" in report.findings[0].text
    assert report.card["free"] < 0


def test_a_function_can_be_estimated(notebook):
    model = notebook["model"]

    def forward():
        model.cuda()(torch.randn(16, 64, device="cuda"))

    report = ipyvram.estimate(forward, card="24GiB")
    assert report.end["parameters"] > 0
    assert next(model.parameters()).device.type == "cpu"


def test_steps_are_bounded_by_the_argument(notebook):
    assert ipyvram.estimate(TRAIN, card="T4", namespace=notebook, steps=1).steps == 1


EVALUATE = """
with torch.no_grad():
    model(torch.zeros(4096, 64, device="cuda"))
"""


def evaluates_later(report) -> bool:
    return "evaluates_later" in [finding.kind for finding in report.findings]


def test_an_evaluation_that_an_estimate_does_not_reach_is_told(notebook):
    cell = TRAIN.replace("model.to(device)", "model.to('cuda'); device = 'cuda'")
    report = ipyvram.estimate(cell + EVALUATE, namespace=notebook)
    assert evaluates_later(report)
    assert "not in it: what comes after 3 steps" in report.measurement.notes[0]
    assert not evaluates_later(ipyvram.estimate(cell, namespace=notebook))
    assert not evaluates_later(ipyvram.estimate("model.to('cuda')" + EVALUATE + cell, namespace=notebook))
    one = ipyvram.estimate(
        "device = 'cuda'; model.cuda()\nfor x, y in [next(iter(loader))]:" + STEP + EVALUATE, namespace=notebook
    )
    assert not evaluates_later(one)
    assert "not in it" not in one.measurement.notes[0]


def test_an_evaluation_in_a_function_of_another_cell_is_told(notebook):
    exec(
        "class Trainer:\n    def test(self, model):\n        with torch.inference_mode():\n            model(self.data)",
        notebook,
    )
    exec("def finish():\n    Trainer().test(model)", notebook)
    cell = TRAIN.replace("model.to(device)", "model.to('cuda'); device = 'cuda'")
    assert evaluates_later(ipyvram.estimate(cell + "\nfinish()", namespace=notebook))
    assert not evaluates_later(ipyvram.estimate(cell, namespace=notebook))


@pytest.mark.parametrize("data", ["[[1.0] * 1000] * 100", "tuple(range(100_000))", "range(100_000)", "3.0"])
def test_a_list_that_becomes_a_tensor_on_the_card_counts(data, notebook):
    report = ipyvram.estimate(f"x = torch.tensor({data}, device='cuda')", namespace=notebook)
    x = torch.tensor(eval(data))
    assert report.end["inputs"] == -(-x.nbytes // 512) * 512


def test_a_gradient_scaler_that_is_switched_off_is_none():
    """As in programs that run in bfloat16 or on a CPU with the same lines."""
    model = nn.Linear(64, 64)
    names = {"model": model, "scaler": torch.amp.GradScaler("cpu", enabled=False), "torch": torch}
    names["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    source = (
        "loss = model(torch.randn(8, 64)).sum()\nscaler.scale(loss).backward()\nscaler.step(optimizer)\nscaler.update()"
    )
    report = ipyvram.estimate(source, card="T4", namespace=names)
    assert report.peak["parameters"] > 0
    assert report.steps == 1
