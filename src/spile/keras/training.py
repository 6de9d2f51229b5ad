"""Training with Keras' own `fit`: spile reads the data, checkpoints and stopping are Keras' callbacks."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from scipy.special import log_softmax

from spile.errors import TrainingError
from spile.fitting import Epoch, Fitted, Job, LabelledBatch, Optimizing
from spile.keras.engines import model_inputs
from spile.keras.trees import transform

_BACKUP, _HISTORY = "training_metadata.json", "history.json"


def fit(job: Job) -> Fitted:
    """Train the model in place. A killed run that is resumed goes on after its last whole epoch.

    Raises `TrainingError` where the job asks for what Keras has not, and where the loss is no number.
    """
    if job.precision != "float32":
        raise TrainingError(
            f"precision={job.precision!r} is not for Keras models, whose layers have their own: build the "
            "model under keras.config.set_dtype_policy('mixed_bfloat16') and leave precision at 'float32'"
        )
    strings = [logger for logger in job.loggers if not isinstance(logger, keras.callbacks.Callback)]
    folder = job.folder / "checkpoints"
    if not job.resume:
        _forget(folder)
    net = job.model if job.supervised is None else job.supervised
    compiled: dict[str, Any] = {"optimizer": _optimizer(job)}
    if job.supervised is None:
        compiled |= {"loss": _loss, "metrics": [_Accuracy()]}
    net.compile(**compiled)
    notes = _Notes(job, folder / _HISTORY)
    stopping = [] if job.patience is None else [_stopping(job.patience)]
    named = [_logger(name, job) for name in strings]
    try:
        net.fit(
            _batches(job, _begun(folder) if job.resume else 0),
            epochs=job.epochs,
            steps_per_epoch=job.batches,
            shuffle=False,
            verbose="auto" if job.progress else 0,
            callbacks=[
                notes,
                *stopping,
                *named,
                *(logger for logger in job.loggers if isinstance(logger, keras.callbacks.Callback)),
                keras.callbacks.BackupAndRestore(str(folder), delete_checkpoint=False),
            ],
        )
    finally:
        for each in named:
            if getattr(each, "csv_file", None) is not None:  # Keras leaves it open when it is interrupted
                each.csv_file.close()
    best = len(notes.history) - 1
    if job.patience is not None:
        best = min(range(len(notes.history)), key=lambda i: notes.history[i]["validation/loss"])
    return Fitted(epochs=tuple(notes.history), best=best, stopped_early=len(notes.history) < job.epochs)


class _Notes(keras.callbacks.Callback):
    """Measures after every epoch, and keeps what was found in a file beside the checkpoint."""

    def __init__(self, job: Job, path: Path) -> None:
        super().__init__()
        self._job = job
        self._path = path
        self.history: list[Epoch] = []
        if job.resume and path.is_file():
            self.history = json.loads(path.read_text(encoding="utf-8"))[: _begun(path.parent)]

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Measuring and saving do not count as training time."""
        self._started = self._ended = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """As above."""
        self._ended = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Note what the epoch gave; `logs` get it too, for the callbacks that follow."""
        logs = {} if logs is None else logs
        before = self.history[-1]["seconds"] if self.history else 0.0
        row: Epoch = {"epoch": float(epoch + 1), "seconds": before + self._ended - self._started}
        row |= _named("train", logs)
        for name, read in self._job.measured.items():
            row |= self._measured(name, read())
        row |= self._gradients((epoch + 1) / self._job.epochs)
        if not np.isfinite(row.get("train/loss", 0.0)):
            raise TrainingError(
                f"the loss is no number after epoch {epoch + 1}: write a lower rate= (--rate)"
            )
        self.history.append(row)
        logs |= row
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.history), encoding="utf-8")

    def _measured(self, name: str, batches: Iterable[LabelledBatch]) -> Epoch:
        """Loss and accuracy of all outputs. A class that is not learnt has no loss, and is wrong."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for batch in batches:
            inputs, labels = _inputs(self._job, batch), np.asarray(batch.labels)
            output = self.model(inputs, training=False)
            supervised = self._job.supervised is not None
            by_head = (
                {"": output.main, **{f"{head}/": x for head, x in output.aux.items()}}
                if supervised
                else {"": output}
            )
            for head, logits in by_head.items():
                scores = np.asarray(ops.convert_to_numpy(logits), np.float64)
                known = np.flatnonzero(labels >= 0)
                learnt = known[labels[known] < scores.shape[1]]
                logs = log_softmax(scores, axis=1)[learnt, labels[learnt]]
                right = scores.argmax(axis=1)[known] == labels[known]
                for key, value in ((f"{name}/{head}loss", -logs), (f"{name}/{head}accuracy", right)):
                    sums[key] = sums.get(key, 0.0) + float(value.sum())
                    counts[key] = counts.get(key, 0) + len(value)
        return {key: value / counts[key] if counts[key] else float("nan") for key, value in sums.items()}

    def _gradients(self, progress: float) -> Epoch:
        job = self._job
        if job.probe is None or job.supervised is None:
            return {}
        found = job.supervised.diagnose(
            _inputs(job, job.probe), job.probe.labels, progress=progress, ids=job.probe.rows
        )
        return {
            f"gradient/{layer}/{name}": float(value)
            for layer, values in found.items()
            for name, value in values.items()
        }


class _Accuracy(keras.metrics.MeanMetricWrapper):
    """Share of right answers among the rows that have a label."""

    def __init__(self) -> None:
        super().__init__(fn=_right, name="accuracy")


def _right(labels: Any, logits: Any) -> Any:
    labels = ops.argmax(labels, axis=-1) if _mixed(labels, logits) else ops.reshape(labels, (-1,))
    return ops.equal(ops.cast(labels, "int32"), ops.cast(ops.argmax(logits, axis=-1), "int32"))


def _mixed(labels: Any, logits: Any) -> bool:
    """Whether labels are weights of all classes, not class numbers."""
    return len(labels.shape) == 2 and labels.shape[1] == logits.shape[1] > 1


def _loss(labels: Any, logits: Any) -> Any:
    if _mixed(labels, logits):  # written out, as the weights of a mix need not sum to 1
        scores = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        return -ops.sum(ops.cast(labels, "float32") * scores, axis=-1)
    labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
    return keras.losses.sparse_categorical_crossentropy(labels, ops.cast(logits, "float32"), from_logits=True)


@keras.saving.register_keras_serializable("spile")
class _Rate(keras.optimizers.schedules.LearningRateSchedule):
    """`spile.fitting.Optimizing.factor` inside a compiled step, as a table over the steps."""

    def __init__(self, optimizing: Optimizing, steps: int) -> None:
        self._optimizing, self._steps = optimizing, steps
        factors = [optimizing.factor(min(1.0, step / steps)) for step in range(steps + 1)]
        self._table = np.asarray(factors, np.float32) * np.float32(optimizing.rate)

    def __call__(self, step: Any) -> Any:
        at = ops.clip(ops.cast(step, "int32"), 0, self._steps)
        return ops.take(ops.convert_to_tensor(self._table), at)

    def get_config(self) -> dict[str, Any]:
        return {"optimizing": vars(self._optimizing), "steps": self._steps}


def _optimizer(job: Job) -> keras.optimizers.Optimizer:
    wanted = job.optimizing
    common: dict[str, Any] = {"learning_rate": _Rate(wanted, job.batches * job.epochs)}
    if wanted.accumulate > 1:
        common["gradient_accumulation_steps"] = wanted.accumulate
    match wanted.name:
        case "adamw":
            return keras.optimizers.AdamW(weight_decay=wanted.decay, **common)
        case "adam":
            return keras.optimizers.Adam(**common, **_decay(wanted))
        case _:
            return keras.optimizers.SGD(momentum=0.9, **common, **_decay(wanted))


def _decay(wanted: Optimizing) -> dict[str, Any]:
    if wanted.decay:
        raise TrainingError(
            f"decay={wanted.decay} with optimizer={wanted.name!r}: Keras has decoupled decay alone, which is "
            "optimizer='adamw'"
        )
    return {}


def _batches(job: Job, begun: int) -> Iterator[tuple[Any, Any]]:
    """Batches from epoch `begun` on, one epoch after the other."""
    for epoch in range(begun, job.epochs):
        for batch in job.read(epoch):
            labels = np.asarray(batch.labels)
            given = labels if job.supervised is None else {"labels": labels, "ids": np.asarray(batch.rows)}
            yield _inputs(job, batch), given


def _inputs(job: Job, batch: LabelledBatch) -> Any:
    ready = model_inputs(batch.inputs, preprocessing=job.images)
    return transform(ready, lambda tensor: ops.convert_to_numpy(tensor))


def _named(split: str, logs: Mapping[str, Any]) -> Epoch:
    found = {f"{split}/{name}": float(value) for name, value in logs.items() if np.ndim(value) == 0}
    if f"{split}/main/accuracy" in found:
        found[f"{split}/accuracy"] = found[f"{split}/main/accuracy"]
    return found


def _stopping(patience: int) -> keras.callbacks.Callback:
    return keras.callbacks.EarlyStopping(
        monitor="validation/loss", mode="min", patience=patience, restore_best_weights=True
    )


def _logger(name: Any, job: Job) -> keras.callbacks.Callback:
    if name == "csv":
        (job.folder / "logs").mkdir(parents=True, exist_ok=True)
        return keras.callbacks.CSVLogger(str(job.folder / "logs" / "metrics.csv"), append=job.resume)
    if name == "tensorboard":
        return keras.callbacks.TensorBoard(str(job.folder / "logs"))
    raise TrainingError(f"loggers={name!r}: write 'csv', 'tensorboard', or a keras.callbacks.Callback")


def _begun(folder: Path) -> int:
    """Whole epochs that a checkpoint holds."""
    path = folder / _BACKUP
    return int(json.loads(path.read_text(encoding="utf-8"))["epoch"]) if path.is_file() else 0


def _forget(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
