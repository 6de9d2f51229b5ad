"""Training with Lightning, whose loop, checkpoints, early stopping, mixed precision and loggers are used."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import rich
import torch
from torch import Tensor, nn

from spile.errors import MissingDependency, TrainingError
from spile.fitting import Epoch, Fitted, Job, LabelledBatch
from spile.loading import library
from spile.torch import losses
from spile.torch.inputs import model_inputs
from spile.torch.observing import takes_channels_last
from spile.torch.references import logits_of
from spile.torch.trees import device_of, transform

try:
    import lightning.pytorch as pl
    from lightning.pytorch import callbacks as pl_callbacks
    from lightning.pytorch import loggers as pl_loggers
except ImportError:
    raise MissingDependency("lightning", extra="lightning", purpose="training a PyTorch model") from None

_PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
_LAST = "last.ckpt"


def fit(job: Job) -> Fitted:
    """Train the model in place. A killed run that is resumed ends with the same weights as one that was not.

    Raises `TrainingError` for an unknown logger, and where the loss is no number.
    """
    folder = job.folder / "checkpoints"
    last = folder / _LAST
    module = Training(job)
    stopping = _stopping(job, folder)
    device = device_of(job.model)
    with _quiet():
        trainer = pl.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=_PRECISIONS[job.precision],
            max_epochs=job.epochs,
            limit_train_batches=_used(job),
            accumulate_grad_batches=job.optimizing.accumulate,
            callbacks=[*stopping, *([_Bar(console_kwargs={"stderr": True})] if job.progress else [])],
            logger=[_logger(wanted, job) for wanted in job.loggers] or False,
            default_root_dir=job.folder,
            enable_progress_bar=job.progress,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1,
            reload_dataloaders_every_n_epochs=1,
        )
        resumed = str(last) if job.resume and last.is_file() else None
        module.train()  # a model that was loaded is in evaluation mode
        trainer.fit(module, ckpt_path=resumed, weights_only=True)
    best = len(module.history) - 1
    if job.patience is not None:
        best = min(range(len(module.history)), key=lambda i: module.history[i]["validation/loss"])
        kept = torch.load(stopping[0].best_model_path, weights_only=True, map_location=device)  # type: ignore[attr-defined]
        module.load_state_dict(kept["state_dict"])
    job.model.to(device).eval()
    return Fitted(epochs=tuple(module.history), best=best, stopped_early=len(module.history) < job.epochs)


class Training(pl.LightningModule):
    """One job as Lightning sees it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.net: Any = job.model if job.supervised is None else job.supervised
        self.history: list[Epoch] = []
        self._job = job
        self._seconds = 0.0
        self._channels_last: bool | None = None
        self._means = Means()
        self._names = list(job.measured)
        # A Jacobian aggregator fills the gradients itself.
        self.automatic_optimization = not (job.supervised is not None and _aggregates(job.supervised))
        if not self.automatic_optimization:
            _check_aggregated(job)

    @property
    def _progress(self) -> float:
        """The share of training that is done, in steps of the optimiser: accumulation cannot shift it."""
        return min(1.0, self.trainer.global_step / max(1, self._job.steps))

    def train_dataloader(self) -> Iterable[LabelledBatch]:
        """The batches of the epoch that comes."""
        return _Epoch(self._job, self.current_epoch)

    def val_dataloader(self) -> list[Iterable[LabelledBatch]]:
        """What is measured after every epoch."""
        return [_Measured(read) for read in self._job.measured.values()]

    def configure_optimizers(self) -> Any:
        """The optimiser over the model and its heads, and the rate by progress."""
        wanted = self._job.optimizing
        parameters = [p for p in self.net.parameters() if p.requires_grad]
        common: dict[str, Any] = {"lr": wanted.rate, "weight_decay": wanted.decay}
        made: torch.optim.Optimizer
        match wanted.name:
            case "adamw":
                made = torch.optim.AdamW(parameters, **common)
            case "adam":
                made = torch.optim.Adam(parameters, **common)
            case _:
                made = torch.optim.SGD(parameters, momentum=0.9, **common)
        steps = max(1, self._job.steps)
        rate = torch.optim.lr_scheduler.LambdaLR(made, lambda step: wanted.factor(min(1.0, step / steps)))
        return {"optimizer": made, "lr_scheduler": {"scheduler": rate, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Random numbers of an epoch are made of (seed, epoch), so that resuming does not change them."""
        torch.manual_seed(self._job.seed * 100_003 + self.current_epoch)
        self._means = Means()
        self._begun = time.perf_counter()

    def training_step(self, batch: LabelledBatch, index: int) -> Tensor | None:
        """The loss of a batch."""
        inputs, labels = self._ready(batch)
        if self._job.supervised is None:
            logits = logits_of(_called(self.net, inputs), self._job.main)
            total, found = _plain_loss(logits, labels)
        else:
            output = _called(self.net, inputs)
            loss = self.net.loss(
                output, labels, progress=self._progress, ids=_tensor(batch.rows, self.device)
            )
            total, found = loss.total, {**loss.terms, **loss.stats}
            found["loss"], found["accuracy"] = total, loss.stats.get("main/accuracy")
        self._means.add("train/", found, len(labels))
        if self.automatic_optimization:
            return total
        self._step(loss)
        return None

    def _step(self, loss: Any) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.net.backward(loss)
        optimizer.step()
        self.lr_schedulers().step()  # type: ignore[union-attr]

    def on_train_batch_end(self, *_: Any) -> None:
        """Measuring and saving do not count as training time."""
        self._ended = time.perf_counter()

    def validation_step(self, batch: LabelledBatch, index: int, dataloader_idx: int = 0) -> None:
        """Measure a batch; heads are measured too. A class that is not learnt has no loss, and is wrong."""
        inputs, labels = self._ready(batch)
        output = _called(self.net, inputs)
        by_head = (
            {"": logits_of(output, self._job.main)}
            if self._job.supervised is None
            else {"": output.main, **{f"{name}/": logits for name, logits in output.aux.items()}}
        )
        for head, logits in by_head.items():
            learnt = torch.where(labels < logits.shape[1], labels, losses.NO_LABEL)
            loss, _ = _plain_loss(logits, learnt)
            right = losses.accuracy(logits, labels, task="classification")
            name = f"{self._names[dataloader_idx]}/{head}"
            self._means.add(name, {"loss": loss}, int((learnt >= 0).sum()))
            self._means.add(name, {"accuracy": right}, int((labels >= 0).sum()))

    def shown(self) -> dict[str, Any]:
        """For the progress bar: the mean loss of the epoch so far."""
        loss = self._means.values().get("train/loss")
        return {} if loss is None else {"loss": f"{loss:.3f}"}

    def on_train_epoch_end(self) -> None:
        """Note what the epoch gave."""
        self._seconds += self._ended - self._begun
        row: Epoch = {
            "epoch": float(self.current_epoch + 1),
            "seconds": self._seconds,
            "rate": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
            **self._means.values(),
            **self._gradients(),
        }
        if row.get("train/loss") is not None and not row["train/loss"] == row["train/loss"]:
            raise TrainingError(
                f"the loss is no number after epoch {self.current_epoch + 1}: write a lower rate= (--rate), "
                "or precision='float32'"
            )
        self.history.append(row)
        self.log_dict({name: value for name, value in row.items() if name != "epoch"})

    def _gradients(self) -> Epoch:
        """Of every layer, on one fixed batch: the gradient, and how well main and heads agree."""
        job = self._job
        if job.probe is None or job.supervised is None:
            return {}
        inputs, labels = self._ready(job.probe)
        with torch.enable_grad():
            found = self.net.diagnose(
                inputs, labels, progress=self._progress, ids=_tensor(job.probe.rows, self.device)
            )
        return {
            f"gradient/{layer}/{name}": float(value)
            for layer, values in found.items()
            for name, value in values.items()
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What was noted so far comes along."""
        checkpoint["history"] = self.history
        checkpoint["seconds"] = self._seconds

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from what was noted."""
        self.history = list(checkpoint["history"])
        self._seconds = checkpoint["seconds"]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are moved when they are prepared."""
        return batch

    def _ready(self, batch: LabelledBatch) -> tuple[Any, Tensor]:
        inputs = model_inputs(batch.inputs, preprocessing=self._job.images, device=self.device)
        if self._job.supervised is None:  # else its tap sees to it
            if self._channels_last is None:
                self._channels_last = takes_channels_last(self.net, inputs)
            inputs = inputs if self._channels_last else transform(inputs, Tensor.contiguous)
        return inputs, _tensor(batch.labels, self.device)


class _Bar(pl_callbacks.RichProgressBar):
    """With the number of the epoch from 1, and the loss in place of Lightning's version number."""

    def get_metrics(self, trainer: pl.Trainer, pl_module: Any) -> dict[str, Any]:
        """What stands behind the bar."""
        return pl_module.shown()  # type: ignore[no-any-return]

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch + 1} of {self.trainer.max_epochs}"


class Means:
    """Means of numbers over the samples of an epoch; what is not a number of a batch is left out."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._counts: dict[str, Any] = {}

    def add(self, prefix: str, values: dict[str, Any], count: int) -> None:
        """Take in the means over one batch of `count` samples."""
        for name, value in values.items():
            if value is None:
                continue
            value = torch.as_tensor(value).detach().double()
            known = (~value.isnan()) * count if name != "loss" else count
            added = value.nan_to_num(0.0) * count if name != "loss" else value * count
            key = f"{prefix}{name}"
            self._sums[key] = self._sums.get(key, 0.0) + added
            self._counts[key] = self._counts.get(key, 0) + known

    def values(self) -> Epoch:
        """By name; NaN, not known, where no batch told."""
        counts = {name: float(count) for name, count in self._counts.items()}
        return {
            name: float(total) / counts[name] if counts[name] else float("nan")
            for name, total in self._sums.items()
        }


class _Epoch:
    """Batches of one epoch, whose number Lightning can ask for."""

    def __init__(self, job: Job, epoch: int) -> None:
        self._job = job
        self._epoch = epoch

    def __iter__(self) -> Iterator[LabelledBatch]:
        return iter(self._job.read(self._epoch))

    def __len__(self) -> int:
        return self._job.batches


class _Measured:
    def __init__(self, read: Any) -> None:
        self._read = read

    def __iter__(self) -> Iterator[LabelledBatch]:
        return iter(self._read())


def _plain_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, Any]]:
    loss = losses.labelled(logits, labels, task="classification", smoothing=0.0)
    return loss, {"loss": loss, "accuracy": losses.accuracy(logits.detach(), labels, task="classification")}


def _called(net: nn.Module, inputs: Any) -> Any:
    return net(**inputs) if isinstance(inputs, dict) else net(inputs)


def _tensor(values: Any, device: torch.device) -> Tensor:
    return torch.as_tensor(values, device=device)


def _used(job: Job) -> int:
    """Batches an epoch that fill whole steps."""
    return max(1, job.batches - job.batches % job.optimizing.accumulate)


def _aggregates(supervised: Any) -> bool:
    from spile.supervision.weights import Aggregated

    return isinstance(supervised.settings.weighting, Aggregated)


def _check_aggregated(job: Job) -> None:
    if job.optimizing.accumulate > 1:
        raise TrainingError("accumulate= does not go with weight=Aggregated(...): write accumulate=1")
    if job.precision == "float16":  # whose losses are scaled, and the aggregator's gradients would not be
        raise TrainingError(
            "precision='float16' does not go with weight=Aggregated(...): write 'bfloat16' or 'float32'"
        )


def _stopping(job: Job, folder: Any) -> list[pl.Callback]:
    """The checkpoint of the last epoch, and of the best one where validation decides when to stop."""
    common: dict[str, Any] = {
        "dirpath": folder,
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    if job.patience is None:
        return [pl_callbacks.ModelCheckpoint(filename="last", **common)]
    lowest: dict[str, Any] = {"monitor": "validation/loss", "mode": "min"}
    return [
        pl_callbacks.ModelCheckpoint(filename="best", save_last=True, **lowest, **common),
        pl_callbacks.EarlyStopping(patience=job.patience, check_on_train_epoch_end=True, **lowest),
    ]


def _logger(wanted: Any, job: Job) -> Any:
    if wanted == "csv":
        return pl_loggers.CSVLogger(save_dir=job.folder, name="logs")
    if wanted == "tensorboard":
        library("tensorboard", extra="tensorboard", purpose="loggers=['tensorboard']")
        return pl_loggers.TensorBoardLogger(save_dir=job.folder, name="logs")
    if isinstance(wanted, pl_loggers.Logger):
        return wanted
    raise TrainingError(
        f"loggers={wanted!r}: write 'csv', 'tensorboard', or a logger of lightning.pytorch.loggers"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning tells which accelerators there are, each time, and uses what PyTorch deprecates.

    Its bar sets up the console that Rich keeps for everybody, which gets its settings back.
    """
    console = rich.get_console()
    settings = dict(vars(console))
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*treespec, LeafSpec", category=FutureWarning)
            warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
            warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")
            yield
    finally:
        log.setLevel(level)
        vars(console).update(settings)
