"""Loops that somebody else's library runs: hooks are global, so nothing has to know them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from ipyvram.analysis import analyse
from ipyvram.options import Options
from ipyvram.report import Report
from ipyvram.run import Run
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


def test_checkpoints_of_transformers_save_what_is_promised():
    """The way out names the call, and the call saves at least what it says."""
    transformers = pytest.importorskip("transformers")

    newer = hasattr(transformers.BertForMaskedLM, "activation_checkpointing_enable")
    enable = "activation_checkpointing_enable" if newer else "gradient_checkpointing_enable"

    def run(checkpoints: bool, **options: int) -> Report:
        torch.manual_seed(0)
        model = transformers.BertForMaskedLM(
            transformers.BertConfig(hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, vocab_size=500)
        )  # fmt: skip
        if checkpoints:
            getattr(model, enable)()
        optimizer, ids = torch.optim.AdamW(model.parameters()), torch.randint(500, (8, 128))
        run = Run(Options(**options), namespace={"model": model, "optimizer": optimizer, "ids": ids})
        run.start()
        error = None
        try:
            for _ in range(2):
                model(input_ids=ids, labels=ids).loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        except torch.OutOfMemoryError as caught:
            error = caught
        return analyse(run.stop(error))

    whole, checkpointed = run(False).peak_bytes, run(True).peak_bytes
    failed = run(False, budget_bytes=round(0.95 * whole))
    assert failed.oom is not None
    way = next(r for r in failed.oom.remedies if r.kind == "checkpointing")
    assert way.text.startswith(f"model.{enable}() before")
    assert 0.6 * (whole - checkpointed) <= way.saves_bytes <= whole - checkpointed


def test_a_transformers_trainer(tmp_path):
    """Evaluation among the steps, a batch that is given by keyword, keys and values that the model returns."""
    transformers = pytest.importorskip("transformers")
    words, length = 100, 16
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=words, n_positions=length, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(words, (24, length))]
    arguments = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, per_device_eval_batch_size=12, eval_strategy="steps", eval_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, num_train_epochs=1,
    )  # fmt: skip
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    report = measured(trainer.train, {"model": model, "trainer": trainer})
    parameters = sum(p.nbytes for p in model.parameters())
    assert sum(report.peak.values()) == report.peak_bytes
    assert report.peak["other"] == 0
    assert (report.steps, report.batch, {row.batch for row in report.step_accounts}) == (3, 8, {8})
    assert report.peak["parameters"] == parameters
    assert report.peak["optimizer_state"] >= 2 * parameters
    assert any(t.name.endswith("transformer.wte.weight.exp_avg") for t in report.tensors_at_peak)

    def inference() -> None:
        with torch.no_grad():
            model(torch.randint(words, (2, length)), use_cache=True)

    names = {t.name for t in measured(inference, {"model": model}).tensors_at_peak}
    assert any(name.startswith("output of model[") for name in names)
