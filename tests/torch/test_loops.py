"""A supervised model in the loops that people have: their own, Lightning's, Hugging Face's."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import spile
from spile.supervision import LinearDecay

STEPS = 12


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )


def supervised() -> Any:
    weight = LinearDecay(0.4, end=1.0)
    return spile.supervise(
        net(), example=(2, 1, 6, 6), num_classes=2, taps=["0"], head="linear", weight=weight
    )


@pytest.fixture
def rows() -> TensorDataset:
    torch.manual_seed(1)
    y = torch.arange(96) % 2
    return TensorDataset(torch.randn(96, 1, 6, 6) * 0.3 + y[:, None, None, None], y)


def right(model: nn.Module, rows: TensorDataset) -> float:
    x, y = rows.tensors
    with torch.no_grad():
        return float((model.eval()(x).argmax(1) == y).float().mean())


def test_a_plain_loop(rows: TensorDataset) -> None:
    sup = supervised()
    optimizer = torch.optim.Adam(sup.parameters(), lr=0.05)
    head = next(iter(sup.heads["0"].parameters()))
    before, used = head.detach().clone(), []
    for step, (x, y) in enumerate(DataLoader(rows, batch_size=8)):
        loss = sup.loss(sup(x), y, progress=step / STEPS)
        used.append(float(loss.stats["0/weight"]))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert used == pytest.approx([0.4 * (1 - step / STEPS) for step in range(STEPS)])
    assert not torch.equal(before, head)
    assert right(sup.strip(), rows) > 0.9


def test_lightning(rows: TensorDataset, tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    used: list[float] = []

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.sup = supervised()

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            progress = self.global_step / self.trainer.estimated_stepping_batches
            loss = self.sup.loss(self.sup(x), y, progress=progress)
            self.log_dict(loss.scalars())
            used.append(float(loss.stats["0/weight"]))
            return loss.total

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.05)

    module = Module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers, and what PyTorch deprecates
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, DataLoader(rows, batch_size=8))
    assert used == pytest.approx([0.4 * (1 - step / STEPS) for step in range(STEPS)])
    assert {"0/accuracy", "main/labels", "loss"} <= trainer.callback_metrics.keys()
    assert right(module.sup.strip(), rows) > 0.9


def test_hugging_face_trainer(rows: TensorDataset, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    used: list[float] = []

    class Trainer(transformers.Trainer):  # type: ignore[misc, name-defined]
        def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            output = model(inputs["x"])
            progress = self.state.global_step / self.state.max_steps
            loss = self.model.loss(output, inputs["labels"], progress=progress)
            used.append(float(loss.stats["0/weight"]))
            return (loss.total, output) if return_outputs else loss.total

    def collate(samples: Any) -> dict[str, Tensor]:
        return {"x": torch.stack([x for x, _ in samples]), "labels": torch.stack([y for _, y in samples])}

    sup = supervised()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = transformers.TrainingArguments(
            tmp_path,
            num_train_epochs=1,
            per_device_train_batch_size=8,
            learning_rate=0.05,
            report_to=[],
            remove_unused_columns=False,
            use_cpu=True,
            save_strategy="no",
            disable_tqdm=True,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
        )
        Trainer(model=sup, args=arguments, train_dataset=rows, data_collator=collate).train()
    assert used == pytest.approx([0.4 * (1 - step / STEPS) for step in range(STEPS)])
    assert right(sup.strip(), rows) > 0.9
