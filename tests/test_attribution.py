"""Categories of the patterns people train with: sizes worked out by hand, and nothing left in `other`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import ipyvram
from ipyvram.report import Report
from tests.measured import measured
from tests.networks import Checkpointed, LowRank, Recurrent, Tied, TutorialNet, needs_saved_tensors, perceptron

FLOAT, LONG = 4, 8


def size_of(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors)


def state_of(optimizer: torch.optim.Optimizer) -> int:
    return size_of(v for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))


def images(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, 3, 32, 32), torch.randint(0, 10, (count,))


def features(count: int = 128, width: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(count, width), torch.randint(0, 10, (count,))


def train(namespace: dict[str, Any], batch: Callable[[], tuple[torch.Tensor, torch.Tensor]], steps: int = 3) -> None:
    model, optimizer = namespace["model"], namespace["optimizer"]
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def named(report: Report, category: str) -> dict[str, int]:
    """Name → bytes of what was live at the peak."""
    return {t.name: t.bytes for t in report.tensors_at_peak if t.category == category}


def closes(report: Report) -> Report:
    """Every instant that the report shows is explained in full."""
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.start["other"] == report.peak["other"] == report.end["other"] == 0
    assert not report.measurement.notes
    return report


# -- the tutorial's network: known answers -----------------------------------------------------------------------------


def test_the_tutorials_network_to_the_byte():
    model = TutorialNet()
    assert sum(p.numel() for p in model.parameters()) == 62_006
    namespace = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
    report = closes(measured(lambda: train(namespace, images), namespace))
    assert report.start["parameters"] == report.peak["parameters"] == 248_024
    assert report.end["gradients"] == 248_024
    assert report.end["optimizer_state"] == 2 * 248_024 + 10 * FLOAT
    assert report.peak["inputs"] == 786_432 + 512
    assert sorted(b for n, b in named(report, "inputs").items()) == [512, 786_432]
    # saved for backward: both convolutions' results, what relu and pooling make of them (and where), three linear layers
    after_conv1, after_pool1, after_conv2, after_pool2 = 6 * 28 * 28, 6 * 14 * 14, 16 * 10 * 10, 16 * 5 * 5
    saved = FLOAT * (after_conv1 + after_pool1 + after_conv2 + after_pool2 + 120 + 84 + 10)
    saved += LONG * (after_pool1 + after_pool2)  # indices of the maxima
    total_weight = FLOAT  # of the loss
    assert max(activations(report)) == 64 * saved + total_weight


def activations(report: Report) -> list[int]:
    return report.timeline()["activations"].dropna().astype(int).tolist()


def test_tensors_carry_name_module_line_shape_and_dtype():
    model = TutorialNet()
    namespace = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
    report = measured(lambda: train(namespace, images), namespace)
    rows = {t.name: t for t in report.tensors_at_peak}
    weight = rows["fc1.weight"]
    assert (weight.category, weight.module, weight.shape, weight.dtype) == ("parameters", "fc1", (120, 400), "float32")
    assert rows["fc1.weight.exp_avg"].category == "optimizer_state"
    assert rows["fc1.bias.grad"].shape == (120,)
    batch = rows["x"]
    assert (batch.category, batch.shape) == ("inputs", (64, 3, 32, 32))
    made = next(t for t in report.tensors_at_peak if t.name == "relu output")
    assert (made.phase, made.file) == (
        "forward",
        "networks.py" if made.file == "networks.py" else "test_attribution.py",
    )
    assert rows["target"].dtype == "int64"


def test_the_peak_is_placed_in_its_step_and_phase():
    model = TutorialNet()
    namespace = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
    report = measured(lambda: train(namespace, images), namespace)
    assert (report.peak_step, report.peak_phase) == (
        2,
        "backward",
    )  # the state of Adam is there from the second step on
    assert [(p.name, p.step) for p in report.phases] == [
        (name, step) for step in (1, 2, 3) for name in ("forward", "backward", "optimizer")
    ]


# -- optimizers --------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], int, int]] = {
    # copies of the parameters, and step counters for each
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1), 0, 0),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), 1, 0),
    "Adam for-loop": (lambda p: torch.optim.Adam(p, foreach=False), 2, 1),
    "Adam foreach": (lambda p: torch.optim.Adam(p, foreach=True), 2, 1),
    "AdamW fused": (lambda p: torch.optim.AdamW(p, fused=True), 2, 1),
    "AMSGrad": (lambda p: torch.optim.Adam(p, amsgrad=True), 3, 1),
    "RMSprop": (lambda p: torch.optim.RMSprop(p), 1, 1),
    "Adagrad": (lambda p: torch.optim.Adagrad(p), 1, 1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("earlier", [True, False], ids=["made earlier", "made in the cell"])
def test_optimizers(name, earlier):
    make, copies, counters = OPTIMIZERS[name]
    namespace: dict[str, Any] = {}

    def make_both() -> None:
        namespace["model"] = perceptron()
        namespace["optimizer"] = make(namespace["model"].parameters())

    def cell() -> None:
        if not earlier:
            make_both()
        train(namespace, features)

    if earlier:
        make_both()
    report = closes(measured(cell, namespace))
    parameters = size_of(namespace["model"].parameters())
    count = len(list(namespace["model"].parameters()))
    assert report.end["parameters"] == parameters
    assert report.end["gradients"] == parameters
    assert report.end["optimizer_state"] == copies * parameters + counters * count * FLOAT
    assert report.start["parameters"] == (parameters if earlier else 0)


def test_a_closure_keeps_forward_and_backward_apart_from_the_step():
    """L-BFGS, and every optimizer under Lightning: forward and backward run inside ``step``."""
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def cell() -> None:
        for _ in range(3):
            x, y = features()

            def closure() -> torch.Tensor:
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(x), y)  # noqa: B023
                loss.backward()
                return loss

            optimizer.step(closure)

    report = closes(measured(cell, {"model": model, "optimizer": optimizer}))
    assert [p.name for p in report.phases] == ["forward", "backward", "optimizer"] * 3
    assert report.end["optimizer_state"] == report.end["gradients"] == size_of(model.parameters())
    assert max(activations(report)) > 128 * 256 * FLOAT


def test_what_an_optimizer_holds_while_its_closure_runs_is_no_batch():
    model = perceptron()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, history_size=2)

    def cell() -> None:
        x, y = features()

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer.step(closure)

    report = closes(measured(cell, {"model": model, "optimizer": optimizer}))
    assert report.timeline()["inputs"].max() == sum(size_of([t]) for t in features())
    state = optimizer.state[next(model.parameters())]
    flat = [state["d"], state["prev_flat_grad"], *state["old_dirs"], *state["old_stps"]]
    assert report.end["optimizer_state"] >= size_of({t.untyped_storage()._cdata: t for t in flat}.values())


# -- ways to train -----------------------------------------------------------------------------------------------------


def test_gradient_accumulation_keeps_one_set_of_gradients():
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def cell() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(4):
                x, y = features(32)
                (functional.cross_entropy(model(x), y) / 4).backward()
            optimizer.step()

    report = closes(measured(cell, {"model": model, "optimizer": optimizer}))
    assert report.timeline()["gradients"].max() == size_of(model.parameters())
    assert [p.name for p in report.phases if p.step == 1] == ["forward", "backward"] * 4 + ["optimizer"]


def test_mixed_precision_with_a_scaler():
    model = perceptron()
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")

    def cell() -> None:
        for _ in range(3):
            x, y = features()
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    report = closes(measured(cell, {"model": model, "optimizer": optimizer, "scaler": scaler}))
    assert report.end["parameters"] == report.end["gradients"] == size_of(model.parameters())
    half, batch = 2, 128 * 256
    weights = 256 * 256 + 256 * 10  # autocast's copies; the first layer's is not needed for backward
    assert max(activations(report)) >= half * (weights + 3 * batch)  # a copy of the batch, two layers' results


@pytest.mark.parametrize("several", [False, True])
def test_parameters_that_autocast_keeps_in_an_evaluation_are_no_results(several):
    model = perceptron()
    names = {"model": model} | ({"other": nn.Linear(3, 3)} if several else {})

    def cell() -> None:
        kept = []
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                kept.append(model(features()[0]))

    report = closes(measured(cell, names))
    cast = [t for t in report.tensors_at_peak if t.name == "parameter, cast by autocast"]
    assert sum(t.bytes for t in cast) == 2 * sum(p.numel() for p in model.parameters())
    assert {t.category for t in cast} == {"temporaries"}
    assert report.peak["outputs"] <= 3 * 128 * 10 * 2  # what the model gave


@pytest.mark.parametrize(("enabled", "samples"), [(False, 128), (True, 256)])
def test_a_result_as_large_as_the_weights_in_half_precision_is_not_taken_for_them(enabled, samples):
    layer, x = nn.Linear(256, 64, bias=False), torch.zeros(samples, 256)

    def cell() -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            for _ in range(3):
                layer(x)

    report = closes(measured(cell, {"layer": layer}))
    assert sum("autocast" in t.name for t in report.tensors_at_peak) == enabled


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointed_blocks_hold_one_blocks_activations_at_a_time(use_reentrant):
    model = Checkpointed(use_reentrant)
    namespace = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        x, y = features(512)
        return x.requires_grad_(use_reentrant), y

    report = closes(measured(lambda: train(namespace, batch), namespace))
    one = 512 * 256 * FLOAT
    forward = max(b for b, p in zip(activations(report), phase_of(report), strict=True) if p == "forward")
    assert 2 * one <= forward < 4 * one  # inputs of the second block and the head; a plain model would keep six
    assert report.end["parameters"] == size_of(model.parameters())
    assert report.peak["inputs"] == one + 512 * LONG
    recomputed = [t for t in report.tensors_at_peak if t.category == "activations" and t.phase == "backward"]
    assert {t.bytes for t in recomputed if t.bytes >= one} == {one}


def phase_of(report: Report) -> list[str]:
    times = report.timeline()["activations"].dropna().index
    return [next((p.name for p in report.phases if p.start_s <= t < p.end_s), "") for t in times]


def test_frozen_layers_have_neither_gradients_nor_state():
    model = TutorialNet()
    for layer in (model.conv1, model.conv2):
        layer.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    namespace = {"model": model, "optimizer": torch.optim.Adam(trained)}
    report = closes(measured(lambda: train(namespace, images), namespace))
    assert report.end["parameters"] == 248_024
    assert report.end["gradients"] == size_of(trained)
    assert report.end["optimizer_state"] == 2 * size_of(trained) + len(trained) * FLOAT


def test_low_rank_corrections_of_frozen_weights():
    model = nn.Sequential(LowRank(nn.Linear(256, 256)), nn.ReLU(), LowRank(nn.Linear(256, 10)))
    trained = [p for p in model.parameters() if p.requires_grad]
    namespace = {"model": model, "optimizer": torch.optim.AdamW(trained)}
    report = closes(measured(lambda: train(namespace, features), namespace))
    assert report.end["parameters"] == size_of(model.parameters())
    assert report.end["gradients"] == size_of(trained)
    assert "0.down.grad" in named(report, "gradients") or report.end["gradients"] < report.end["parameters"] / 10


def test_tied_weights_count_once():
    model = Tied()
    namespace = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.randint(0, 500, (8, 32))
        return tokens, tokens

    def cell() -> None:
        for _ in range(3):
            tokens, _ = batch()
            namespace["optimizer"].zero_grad()
            functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            namespace["optimizer"].step()

    report = closes(measured(cell, namespace))
    assert report.end["parameters"] == size_of(model.parameters()) == FLOAT * (500 * 64 + 64 * 64 + 64)
    assert report.end["gradients"] == report.end["parameters"]
    assert report.peak["inputs"] == 8 * 32 * LONG
    assert list(named(report, "parameters")).count("embed.weight") == 1


@pytest.mark.parametrize("kind", ["model", "dict"])
def test_an_average_of_the_weights_is_a_second_set_of_parameters(kind):
    model = perceptron()
    if kind == "model":
        average: Any = copy.deepcopy(model).requires_grad_(False)
        pairs = list(zip(average.parameters(), model.parameters(), strict=True))
    else:
        average = {name: p.detach().clone() for name, p in model.named_parameters()}
        pairs = [(average[name], p) for name, p in model.named_parameters()]
    namespace = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "average": average}

    def cell() -> None:
        for _ in range(3):
            train(namespace, features, steps=1)
            with torch.no_grad():
                for mean, parameter in pairs:
                    mean.lerp_(parameter, 0.1)

    report = closes(measured(cell, namespace))
    assert report.end["parameters"] == 2 * size_of(model.parameters())
    if kind == "dict":
        assert "average['0.weight']" in named(report, "parameters")


def test_an_average_that_only_a_function_holds_is_a_second_set_of_parameters():
    def cell() -> None:
        model = perceptron()
        average = torch.optim.swa_utils.AveragedModel(model)
        namespace = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)}
        for _ in range(3):
            train(namespace, features, steps=1)
            average.update_parameters(model)

    report = closes(measured(cell))
    assert report.peak["parameters"] == 2 * size_of(perceptron().parameters())
    assert report.timeline()["inputs"].max() <= 2 * sum(size_of([t]) for t in features()) + 16


def test_evaluation_keeps_no_activations():
    model = TutorialNet().eval()
    namespace: dict[str, Any] = {"model": model, "predictions": []}

    def cell() -> None:
        with torch.no_grad():
            for _ in range(5):
                x, _ = images()
                namespace["predictions"].append(model(x).argmax(1))

    report = closes(measured(cell, namespace))
    assert report.steps == 0
    assert max(activations(report), default=0) == 0
    assert report.peak["inputs"] == 786_432 + 512
    assert report.end["outputs"] >= 4 * 64 * LONG
    assert report.measurement.ended_by == "end of cell"


def test_two_models_are_told_apart():
    generator = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 256))
    critic = nn.Sequential(nn.Linear(256, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
    optimizers = torch.optim.Adam(generator.parameters()), torch.optim.Adam(critic.parameters())
    loss = nn.BCEWithLogitsLoss()

    def cell() -> None:
        for _ in range(3):
            real, noise = torch.randn(64, 256), torch.randn(64, 16)
            fake = generator(noise)
            optimizers[1].zero_grad()
            (loss(critic(real), torch.ones(64, 1)) + loss(critic(fake.detach()), torch.zeros(64, 1))).backward()
            optimizers[1].step()
            optimizers[0].zero_grad()
            loss(critic(fake), torch.ones(64, 1)).backward()
            optimizers[0].step()

    namespace = {"generator": generator, "critic": critic, "optimizers": optimizers}
    report = closes(measured(cell, namespace))
    both = size_of(generator.parameters()) + size_of(critic.parameters())
    assert report.end["parameters"] == report.end["gradients"] == both
    names = named(report, "parameters")
    assert {"generator.0.weight", "critic.0.weight"} <= set(names)
    modules = {row.key for row in report.modules_at_peak}
    assert {"generator.0", "critic.0"} <= modules
    real_and_labels = 64 * 256 * FLOAT + 64 * FLOAT
    assert report.peak["inputs"] <= real_and_labels + 64 * 16 * FLOAT + 64 * FLOAT  # never the generator's pictures


def test_raw_tensors_without_modules_or_optimizer():
    namespace: dict[str, Any] = {}

    def cell() -> None:
        w = namespace["w"] = torch.randn(256, 128, requires_grad=True)
        b = namespace["b"] = torch.zeros(128, requires_grad=True)
        x, y = torch.randn(64, 256), torch.randn(64, 128)
        namespace.update(x=x, y=y)
        for _ in range(3):
            loss = ((torch.relu(x @ w + b) - y) ** 2).mean()
            loss.backward()
            with torch.no_grad():
                for p in (w, b):
                    p -= 0.1 * p.grad
                    p.grad = None

    report = closes(measured(cell, namespace))
    assert report.peak["parameters"] == FLOAT * (256 * 128 + 128)
    assert report.peak["inputs"] == FLOAT * (64 * 256 + 64 * 128)
    assert report.timeline()["gradients"].max() == report.peak["parameters"]
    assert {"w", "b"} <= set(named(report, "parameters"))
    assert {"x", "y"} <= set(named(report, "inputs"))


@pytest.mark.parametrize("holder", ["variables", "loader"])
def test_a_data_set_that_is_kept_in_memory(holder):
    x, y = features(1000)
    data = torch.utils.data.TensorDataset(x, y)
    model = perceptron()
    namespace = {"model": model, "optimizer": torch.optim.Adam(model.parameters())}
    namespace |= (
        {"x_all": x, "y_all": y} if holder == "variables" else {"loader": torch.utils.data.DataLoader(data, 100)}
    )
    batches = iter([data[i : i + 100] for i in range(0, 300, 100)])
    report = closes(measured(lambda: train(namespace, lambda: next(batches)), namespace))
    assert report.start["inputs"] == x.nbytes + y.nbytes
    assert report.peak["inputs"] == x.nbytes + y.nbytes  # the batches are views
    expected = "x_all" if holder == "variables" else "loader.dataset.tensors[0]"
    assert named(report, "inputs")[expected] == x.nbytes


def test_several_losses_on_a_kept_graph():
    model = perceptron()
    optimizer = torch.optim.Adam(model.parameters())

    def cell() -> None:
        for _ in range(3):
            x, y = features()
            optimizer.zero_grad()
            out = model(x)
            functional.cross_entropy(out, y).backward(retain_graph=True)
            (out.pow(2).mean() + 1e-3 * sum(p.abs().sum() for p in model.parameters())).backward()
            optimizer.step()

    report = closes(measured(cell, {"model": model, "optimizer": optimizer}))
    assert report.end["gradients"] == report.end["parameters"] == size_of(model.parameters())
    assert report.peak["inputs"] == 128 * 256 * FLOAT + 128 * LONG
    assert [p.name for p in report.phases if p.step == 1] == ["forward", "backward", "backward", "optimizer"]


def test_what_a_custom_function_keeps_is_an_activation():
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            ctx.square = x * x
            return ctx.square * x

        @staticmethod
        def backward(ctx, grad):
            return 3 * ctx.square * grad

    model = nn.Linear(256, 256)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def cell() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            Cube.apply(model(torch.randn(64, 256))).sum().backward()
            optimizer.step()

    report = closes(measured(cell, {"model": model, "optimizer": optimizer}))
    assert max(activations(report)) >= 2 * 64 * 256 * FLOAT  # what went in, and its square


def test_functional_gradients_are_gradients():
    model = perceptron()
    params = {name: p.detach() for name, p in model.named_parameters()}
    namespace: dict[str, Any] = {"model": model, "params": params}

    def cell() -> None:
        x, y = features()

        def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
            return functional.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

        for _ in range(3):
            grads = namespace["grads"] = torch.func.grad(loss)(params)
            for name, grad in grads.items():
                params[name] = params[name] - 0.1 * grad

    report = closes(measured(cell, namespace))
    one = size_of(model.parameters())
    assert report.end["gradients"] == one
    assert report.end["parameters"] == 2 * one  # the model's own and the trained ones


def test_autograd_grad_gives_gradients():
    model = perceptron()

    def cell() -> None:
        for _ in range(3):
            x, y = features()
            grads = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
            with torch.no_grad():
                for parameter, grad in zip(model.parameters(), grads, strict=True):
                    parameter -= 0.1 * grad

    report = closes(measured(cell, {"model": model}))
    one = size_of(model.parameters())
    assert one <= report.timeline()["gradients"].max() <= 2 * one  # until the next step's replace them


def test_an_input_that_wants_a_gradient_is_an_input():
    model = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 1))
    optimizer = torch.optim.Adam(model.parameters())

    def cell() -> None:
        for _ in range(3):
            x = torch.randn(64, 256, requires_grad=True)
            out = model(x)
            (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            optimizer.zero_grad()
            (out.mean() + (grad.norm(2, 1) - 1).pow(2).mean()).backward()
            optimizer.step()

    report = closes(measured(cell, {"model": model, "optimizer": optimizer}))
    assert report.end["parameters"] == size_of(model.parameters())
    assert report.peak["inputs"] in (64 * 256 * FLOAT, 2 * 64 * 256 * FLOAT)  # two while the old is replaced
    assert report.end["gradients"] == size_of(model.parameters()) + 64 * 256 * FLOAT


def test_recurrent_layers_and_sparse_gradients():
    model = Recurrent()
    dense = [p for name, p in model.named_parameters() if name != "embed.weight"]
    optimizers = [torch.optim.SparseAdam([model.embed.weight]), torch.optim.Adam(dense)]

    def cell() -> None:
        for _ in range(3):
            tokens = torch.randint(0, 200, (8, 32))
            model.zero_grad()
            functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
            for optimizer in optimizers:
                optimizer.step()

    report = closes(measured(cell, {"model": model, "optimizers": optimizers}))
    grad = model.embed.weight.grad
    assert report.end["parameters"] == size_of(model.parameters())
    rows = 8 * 32
    assert report.end["gradients"] - size_of(dense) in (
        rows * 32 * FLOAT + rows * LONG,
        rows * 32 * FLOAT,  # the indices are a view of the tokens
        grad._values().nbytes + grad._indices().nbytes,
    )


def test_lazy_modules_have_parameters_once_they_are_made():
    namespace: dict[str, Any] = {}

    def cell() -> None:
        model = namespace["model"] = nn.Sequential(nn.LazyLinear(128), nn.ReLU(), nn.LazyLinear(10))
        model(torch.randn(2, 64))
        namespace["optimizer"] = torch.optim.Adam(model.parameters())
        train(namespace, lambda: features(64, 64))

    report = closes(measured(cell, namespace))
    assert report.end["parameters"] == size_of(namespace["model"].parameters())
    assert {"0.weight", "2.weight"} <= set(named(report, "parameters"))


def test_building_a_model_is_measured_without_steps():
    namespace: dict[str, Any] = {}

    def cell() -> None:
        namespace["model"] = TutorialNet()
        namespace["optimizer"] = torch.optim.Adam(namespace["model"].parameters())

    report = closes(measured(cell, namespace))
    assert report.start["parameters"] == 0
    assert report.end["parameters"] == 248_024
    assert (report.steps, report.measurement.ended_by) == (0, "end of cell")


def test_kept_losses_and_predictions_are_outputs():
    model = perceptron()
    namespace: dict[str, Any] = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "kept": []}

    def cell() -> None:
        for _ in range(3):
            x, y = features()
            namespace["optimizer"].zero_grad()
            out = model(x)
            loss = functional.cross_entropy(out, y)
            loss.backward()
            namespace["optimizer"].step()
            namespace["kept"] += [loss, out.detach()]

    report = closes(measured(cell, namespace, trace_steps=10))
    assert report.end["outputs"] == 3 * (FLOAT + 128 * 10 * FLOAT)


def test_keyword_arguments_of_a_model_are_inputs():
    """As Hugging Face's models are called: ``model(**batch)``, and the loss comes out of the model."""

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = perceptron()

        def forward(self, features: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.body(features)
            return {"loss": functional.cross_entropy(logits, labels), "logits": logits}

    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters())

    def cell() -> None:
        for _ in range(3):
            x, y = features()
            batch = {"features": x, "labels": y}
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

    report = closes(measured(cell, {"model": model, "optimizer": optimizer}))
    assert report.peak["inputs"] == 128 * 256 * FLOAT + 128 * LONG
    assert {"features", "labels"} == set(named(report, "inputs"))


@pytest.mark.parametrize("where", ["variable", "list", "function"])
def test_a_loss_that_no_backward_follows_keeps_activations(where):
    """Outside of any module the loss function's graph is only reachable through the loss that is kept."""
    model, (x, y) = perceptron(), features()
    namespace: dict[str, Any] = {"model": model, "x": x, "y": y}

    def cell() -> None:
        namespace["loss"] = functional.cross_entropy(model(x), y)
        if where == "list":
            namespace["loss"] = [namespace["loss"], *(functional.cross_entropy(model(x), y) for _ in range(2))]

    def function() -> Report | None:  # without an assertion: pytest would put `locals()` here, and it would not be read
        with ipyvram.measure("in a function") as m:
            loss = functional.cross_entropy(model(x), y)
        loss.detach()
        return m.report

    report = function() if where == "function" else measured(cell, namespace)
    assert report is not None
    closes(report)
    count = 3 if where == "list" else 1
    assert report.end["other"] == 0
    assert report.end["outputs"] == count * FLOAT
    # of each: what the two hidden layers saved, the logarithms, and the total weight that the loss was divided by
    assert report.end["activations"] == count * (2 * 128 * 256 * FLOAT + 128 * 10 * FLOAT + FLOAT)


def test_a_graph_from_before_is_not_of_this_cell():
    model, (x, y) = perceptron(), features()
    namespace: dict[str, Any] = {"model": model, "loss": functional.cross_entropy(model(x), y)}

    def cell() -> None:
        with torch.no_grad():
            model(x)

    report = closes(measured(cell, namespace))
    assert report.peak["activations"] == 0


@needs_saved_tensors
def test_a_backward_of_an_earlier_cells_loss_frees_activations():
    """On the CPU what the cell does not use is not in its account; a backward uses the graph."""
    model, (x, y) = perceptron(), features()
    namespace: dict[str, Any] = {"model": model, "x": x, "y": y, "loss": functional.cross_entropy(model(x), y)}
    report = closes(measured(lambda: namespace["loss"].backward(), namespace))
    kept = 2 * 128 * 256 * FLOAT + 128 * 10 * FLOAT + FLOAT
    assert report.start["activations"] == kept
    assert report.end["activations"] == 0
    assert report.start["inputs"] == size_of((x, y))


class Keeping(nn.Module):
    """Keeps keys as a plain attribute, made before or in its first forward, and the last batch."""

    def __init__(self, early: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(256, 64)
        self.keys = torch.zeros(128, 64) if early else None
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.keys is None:
            self.keys = torch.zeros(128, 64)
        self.seen = [x]
        return (self.linear(x) * self.keys).sum()


@pytest.mark.parametrize("grad", [True, False])
def test_what_a_module_keeps_as_a_plain_attribute_is_its_buffer(grad):
    model, (x, _) = Keeping(early=True), features()

    def cell() -> None:
        for _ in range(2):
            with torch.set_grad_enabled(grad):
                y = model(x)
            if grad:
                y.backward()

    report = closes(measured(cell, {"model": model, "x": x}))
    assert report.end["other"] == 0
    assert report.end["buffers"] == report.peak["buffers"] == 128 * 64 * FLOAT
    assert named(report, "buffers").keys() == {"keys"}
    assert report.end["inputs"] == 128 * 256 * FLOAT  # though the module keeps it, too


def test_what_a_forward_made_a_module_keep_is_a_result_with_its_name():
    model, (x, _) = Keeping(early=False), features()

    def cell() -> None:
        with torch.no_grad():
            model(x)

    report = closes(measured(cell, {"model": model, "x": x}))
    assert report.end["outputs"] == 128 * 64 * FLOAT
    assert "keys" in named(report, "outputs")
    assert report.end["inputs"] == 128 * 256 * FLOAT
