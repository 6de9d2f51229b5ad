"""What heads are compared with besides the labels: teachers, averaged predictions, confident predictions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spile.errors import SupervisionError
from spile.resolution import Point
from spile.supervision.settings import MainOutput
from spile.supervision.targets import PseudoLabels, SmoothedLabels, Target, Teacher
from spile.torch.losses import NO_LABEL
from spile.torch.processes import gathered
from spile.torch.quiet import quiet_pass
from spile.torch.taps import Tap
from spile.torch.trees import device_of, transform


class Given(NamedTuple):
    """What `loss` is given beside the output."""

    labels: Tensor
    ids: Tensor | None
    soft_labels: Tensor | None
    update: bool
    """Whether running averages move."""


class Confident(NamedTuple):
    """Predictions to learn from, by row."""

    classes: Tensor
    confident: Tensor


class Soft(NamedTuple):
    """Soft labels, and the rows that have any."""

    probabilities: Tensor
    known: Tensor


class Frozen(nn.Module):
    """A copy of a model that stays in evaluation mode and is never trained."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own output."""
        return self.model(*args, **kwargs)


class Averaged(nn.Module):
    """State of `SmoothedLabels`: running sums of probabilities, one row a sample, and how often it was
    seen."""

    sums: Tensor
    seen: Tensor

    def __init__(self, target: SmoothedLabels, classes: int) -> None:
        super().__init__()
        self.decay = target.decay
        self.register_buffer("sums", torch.zeros(target.samples, classes))
        self.register_buffer("seen", torch.zeros(target.samples, dtype=torch.long))

    def soft(self, ids: Tensor) -> Soft:
        """The averages of these rows, corrected for the start; unknown for rows never seen."""
        seen = self.seen[ids]
        correction = 1 - self.decay ** seen.clamp(min=1).to(self.sums.dtype)
        return Soft(self.sums[ids] / correction[:, None], seen > 0)

    @torch.no_grad()
    def move(self, ids: Tensor, probabilities: Tensor) -> None:
        """Take in one more prediction of these rows."""
        ids, probabilities = gathered(ids), gathered(probabilities)
        self.sums[ids] = self.decay * self.sums[ids] + (1 - self.decay) * probabilities.to(self.sums)
        self.seen[ids] += 1

    def rows(self, ids: Tensor | None, samples: int) -> Tensor:
        """`ids` as an index. Raises `SupervisionError` where they cannot be one."""
        if ids is None:
            raise SupervisionError(
                "SmoothedLabels keeps an average for every row: call sup.loss(..., ids=row_numbers)"
            )
        ids = torch.as_tensor(ids, device=self.sums.device)
        whole = not (ids.is_floating_point() or ids.dtype == torch.bool)
        if not whole or tuple(ids.shape) != (samples,) or ids.min() < 0 or ids.max() >= len(self.sums):
            raise SupervisionError(
                f"ids={ids.tolist() if ids.numel() < 8 else f'{list(ids.shape)} {ids.dtype}'}: write one row "
                f"number a sample, from 0 to {len(self.sums) - 1} (samples={len(self.sums)})"
            )
        return ids.long()


class Thresholds(nn.Module):
    """State of adaptive `PseudoLabels`: running means over unlabelled rows (FreeMatch, section 4.1)."""

    confidence: Tensor
    probabilities: Tensor

    def __init__(self, classes: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("confidence", torch.tensor(1.0 / classes))
        self.register_buffer("probabilities", torch.full((classes,), 1.0 / classes))

    def by_class(self) -> Tensor:
        """The threshold of each class: the mean confidence, less where a class is predicted more rarely."""
        return self.confidence * self.probabilities / self.probabilities.max()

    @torch.no_grad()
    def move(self, probabilities: Tensor, unlabelled: Tensor) -> None:
        """Take in the predictions of the unlabelled rows of one batch."""
        probabilities, unlabelled = gathered(probabilities), gathered(unlabelled)
        count = unlabelled.sum()
        kept = torch.where(unlabelled[:, None], probabilities, 0)
        weight = torch.where(count > 0, 1 - self.decay, 0.0)
        self.confidence.lerp_(kept.amax(1).sum() / count.clamp(min=1), weight)
        self.probabilities.lerp_(kept.sum(0) / count.clamp(min=1), weight)


class Reference(nn.Module):
    """What all heads with one target are compared with. `run` belongs to the pass, `of` to the loss."""

    def __init__(
        self, target: Target, base: nn.Module, *, classes: int, main: MainOutput, example: Any
    ) -> None:
        super().__init__()
        self.target = target
        self.main = main
        self.ema = Frozen(base) if isinstance(target, PseudoLabels) and target.source == "ema" else None
        self.averaged = Averaged(target, classes) if isinstance(target, SmoothedLabels) else None
        adaptive = isinstance(target, PseudoLabels) and target.threshold == "adaptive"
        self.thresholds = Thresholds(classes, target.decay) if adaptive else None  # type: ignore[attr-defined]
        device = device_of(base)
        teacher = _teacher(target, example, device) if isinstance(target, Teacher) else None
        object.__setattr__(self, "_teacher", teacher)  # no submodule: its weights are not part of this model
        self.to(device)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Any:
        """What has to be computed from the inputs, without gradients; ``None`` if nothing."""
        runner: Any = self.ema if self.ema is not None else self.__dict__["_teacher"]
        if runner is None:
            return None
        with torch.no_grad():
            found = runner(*args, **kwargs)
            if not isinstance(runner, Tap):
                found = logits_of(found, self.main)
        return transform(dict(found) if isinstance(found, Mapping) else found, lambda t: t.to(device))

    def points(self) -> dict[str, Point]:
        """The teacher's, by address."""
        tap = self.__dict__["_teacher"]
        return {point.name: point for point in tap.points} if isinstance(tap, Tap) else {}

    def of(self, main: Tensor, ran: Any, given: Given) -> Any:
        """What the loss compares with."""
        target = self.target
        if isinstance(target, SmoothedLabels) and self.averaged is not None:
            ids = self.averaged.rows(given.ids, len(main))
            soft = self.averaged.soft(ids)
            if given.update:
                self.averaged.move(ids, main.detach().float().softmax(1))
            return soft
        if isinstance(target, PseudoLabels):
            return self._confident(target, main, ran, given)
        return ran

    def _confident(self, target: PseudoLabels, main: Tensor, ran: Any, given: Given) -> Confident:
        if target.source == "given":
            if given.soft_labels is None or given.soft_labels.shape != main.shape:
                found = None if given.soft_labels is None else list(given.soft_labels.shape)
                raise SupervisionError(
                    f"PseudoLabels(source='given') needs sup.loss(..., soft_labels=p), one row of "
                    f"probabilities a sample {list(main.shape)}; received {found}"
                )
            probabilities = given.soft_labels.float()
        else:
            probabilities = (main.detach() if target.source == "main" else ran).float().softmax(1)
        confidence, classes = probabilities.max(1)
        wanted: Any = target.threshold
        if self.thresholds is not None:
            if given.update:
                self.thresholds.move(probabilities, given.labels == NO_LABEL)
            wanted = self.thresholds.by_class()[classes]
        return Confident(classes, confidence >= wanted)

    @torch.no_grad()
    def follow(self, base: nn.Module) -> None:
        """After an optimiser step: move the averaged model towards the model."""
        if self.ema is None:
            return
        decay = self.target.decay  # type: ignore[attr-defined]
        for own, other in zip(self.ema.model.parameters(), base.parameters(), strict=True):
            own.lerp_(other.detach().to(own), 1 - decay)
        for buffer, source in zip(self.ema.model.buffers(), base.buffers(), strict=True):
            buffer.copy_(source)


def logits_of(output: Any, main: MainOutput) -> Tensor:
    """The logits in a model's output. Raises `SupervisionError` where `main` does not lead to a tensor."""
    found = output
    if callable(main):
        found = main(output)
    elif main is not None and not isinstance(output, Tensor):
        try:
            found = _entry(output, main)
        except (KeyError, IndexError, TypeError):
            found = None
    if isinstance(found, Tensor):
        return found
    if isinstance(output, Mapping):
        there = f"a {type(output).__name__} with {', '.join(map(repr, output))}"
    else:
        there = f"a {type(output).__name__}" + (
            f" of {len(output)}" if isinstance(output, tuple | list) else ""
        )
    raise SupervisionError(
        f"main={main!r} leads to no tensor: the model's output is {there}. Say where its logits are: "
        "main='out' (a key or attribute), a position, or a function of the output"
    )


def _entry(output: Any, main: str | int) -> Any:
    """An attribute where that is what there is, else an item."""
    if (
        isinstance(main, str)
        and not (isinstance(output, Mapping) and main in output)
        and hasattr(output, main)
    ):
        return getattr(output, main)
    return output[main]


def _teacher(target: Teacher, example: Any, device: torch.device) -> Callable[..., Any]:
    if not isinstance(target.model, nn.Module):
        raise SupervisionError(
            f"the teacher is a {type(target.model).__name__}: a PyTorch model needs a torch.nn.Module"
        )
    target.model.to(device)  # where its inputs are
    if target.at is None:
        return _Whole(target.model)
    places = [target.at] if isinstance(target.at, str) else list(dict.fromkeys(target.at.values()))
    return Tap(target.model, places, pool=None, example=example)


class _Whole:
    """A teacher's own output, in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with _evaluating(self.model):
            return self.model(*args, **kwargs)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    if not torch.compiler.is_compiling():
        with quiet_pass(model, evaluate=True):
            yield
    elif any(module.training for module in model.modules()):
        raise SupervisionError("call teacher.eval() before the supervised model is compiled")
    else:
        yield
