"""Operations on the activations of one layer of a PyTorch model while it is trained; see `spile.at_layer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from spile.augmentation.features import (
    ISDA,
    FeatureDropout,
    FeatureNoise,
    FeatureOperation,
    ManifoldMixup,
    MoEx,
    Plan,
    SemanticNoise,
    Steps,
    dropped,
    noise,
    single_point,
)
from spile.errors import AugmentationError, CaptureError
from spile.resolution import resolve
from spile.torch.observing import observe
from spile.torch.trees import inputs_of, names_of, unwrap

_EPSILON = 1e-5


class AtLayer:
    """Changes what one layer gives, in training mode only; `close` takes it off again."""

    def __init__(
        self,
        model: nn.Module,
        at: Any,
        operation: FeatureOperation,
        *,
        example: Any,
        seed: int,
        classes: int | None,
    ) -> None:
        base = unwrap(model)
        points, _ = resolve(at, None, observe(model, inputs_of(base, example)))
        self.point = single_point(points, at)
        self.operation = operation
        self.steps = Steps(operation, seed=seed, classes=classes)
        self._model = base
        module = next(m for m, names in names_of(base).items() if self.point.path in names)
        self._handle = module.register_forward_hook(self._change)

    def step(
        self, labels: Tensor, *, ids: Sequence[Any], epoch: int, progress: float | None = None
    ) -> Tensor:
        """Draw for the training batch that comes, and say what its labels are: (n, classes) weights.

        `progress` is the share of training that is done; `ISDA` and `SemanticNoise` grow with it.
        """
        weights = self.steps.begin(labels.cpu().numpy(), ids, epoch, progress)
        return torch.from_numpy(weights).to(labels.device)

    def bound(self, logits: Tensor, weight: Tensor) -> Tensor:
        """Of `ISDA`: the logits (n, classes) whose cross-entropy with the labels is the bound of the paper.

        `weight` (classes, features) is that of the linear classifier, ``model.fc.weight``; gradients flow
        into it. Call it after the pass, in training.
        """
        labels, half = self.steps.bounded(self.point, len(logits), weight.shape[1])
        spread, w = torch.from_numpy(half).to(weight), weight
        if spread.ndim == 2:
            own, crossed = spread @ w.square().T, (spread * w) @ w.T
        else:
            turned = torch.einsum("kd,ced->cke", w, spread)
            own, crossed = (turned * w).sum(2), torch.einsum("cke,ce->ck", turned, w)
        # (classes y, classes j) of (w_j - w_y)ᵀ Σ_y (w_j - w_y) λ/2
        added = own - 2 * crossed + own.diagonal()[:, None]
        return logits + added[torch.from_numpy(labels).to(logits.device)].to(logits.dtype)

    def close(self) -> None:
        """Leave the model as it was."""
        self._handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _change(self, _: nn.Module, __: Any, output: Tensor) -> Tensor | None:
        if not self._model.training:
            return None
        axis = (self.point.layout or "BC").index("B")
        drawn = self.steps.take(self.point, output.shape[axis])
        if drawn is None:
            raise CaptureError(
                f"{self.point.name}: call step(labels, ids=ids, epoch=epoch) before every training batch"
            )
        changed = self._changed(output.movedim(axis, 0), drawn)
        return None if changed is None else changed.to(output.dtype).movedim(0, axis)

    def _changed(self, x: Tensor, drawn: Plan) -> Tensor | None:
        axes = "B" + (self.point.layout or "BC").replace("B", "")
        wide = [1] * (x.ndim - 1)
        match self.operation:
            case ManifoldMixup():
                own = torch.from_numpy(drawn.own).to(x).view(-1, *wide)
                return own * x + (1 - own) * x[drawn.partners]
            case MoEx():
                channels = axes.index("C")
                mean = x.mean(channels, keepdim=True)
                std = (x.var(channels, keepdim=True, correction=0) + _EPSILON).sqrt()
                return (x - mean) / std * std[drawn.partners] + mean[drawn.partners]
            case FeatureNoise(std=std):
                scale = x.detach().flatten(1).std(1, correction=0).view(-1, *wide)
                return x + std * scale * torch.from_numpy(noise(drawn, x.shape[1:])).to(x)
            case FeatureDropout() as operation:
                channels = axes.index("C")
                strength = x.detach().float().square().sum(channels).cpu().numpy()
                kept = torch.from_numpy(dropped(operation, strength, drawn, axes, self.point)).to(x)
                return x * kept.unsqueeze(channels)
            case SemanticNoise() | ISDA():
                return self._by_class(x, axes.index("C"), drawn)
        raise AugmentationError(f"{self.operation!r} is no operation at a layer")

    def _by_class(self, x: Tensor, channels: int, drawn: Plan) -> Tensor | None:
        features = (
            x.detach().double().movedim(channels, -1).flatten(1, -2).mean(1) if x.ndim > 2 else x.detach()
        )
        added = self.steps.learn(features.cpu().numpy(), drawn)
        if added is None:
            return None
        shape = [len(x), *(-1 if axis == channels else 1 for axis in range(1, x.ndim))]
        return x + torch.from_numpy(added).to(x).view(shape)
