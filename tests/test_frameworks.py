"""Loops that somebody else's library runs: hooks are global, so nothing has to know them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from tests.measured import measured
from tests.networks import perceptron

pytestmark = pytest.mark.extras

ROWS, WIDTH, BATCH = 96, 256, 32


def data() -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.randn(ROWS, WIDTH), torch.randint(0, 10, (ROWS,))), BATCH)


def check(report: Any, model: nn.Module) -> None:
    parameters = sum(p.nbytes for p in model.parameters())
    count = len(list(model.parameters()))
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.peak["other"] == report.end["other"] == 0
    assert report.steps == 3
    assert report.end["parameters"] == report.peak["parameters"] == parameters
    assert report.timeline()["gradients"].max() == parameters
    assert report.end["optimizer_state"] == 2 * parameters + 4 * count
    assert [p.name for p in report.phases[:3]] == ["forward", "backward", "optimizer"]
    saved = report.timeline()["activations"].max()
    assert saved >= 2 * BATCH * WIDTH * 4
    assert any(t.name.endswith("0.weight.exp_avg") for t in report.tensors_at_peak)


def test_a_loop_with_accelerate():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = perceptron(WIDTH)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), data())

    def cell() -> None:
        for x, y in loader:
            optimizer.zero_grad()
            accelerator.backward(functional.cross_entropy(model(x), y))
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    check(measured(cell, {"model": model, "optimizer": optimizer, "loader": loader}), model)


def test_a_loop_with_lightning(tmp_path):
    lightning = pytest.importorskip("lightning")

    class Lit(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = perceptron(WIDTH)

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            x, y = batch
            return functional.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters())

    model = Lit()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    loader = data()
    check(measured(lambda: trainer.fit(model, loader), {"model": model, "trainer": trainer, "loader": loader}), model)
