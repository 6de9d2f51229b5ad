"""Operations on the activations of one layer of a PyTorch model while it is trained; see `spile.at_layer`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from spile.augmentation.features import (
    FeatureDropout,
    FeatureNoise,
    FeatureOperation,
    ManifoldMixup,
    MoEx,
    Plan,
    dropped,
    mixed_labels,
    plan,
)
from spile.augmentation.randomness import Draw
from spile.errors import AugmentationError, CaptureError
from spile.resolution import Point, resolve
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
        if len(points) != 1 or points[0].side != "out" or points[0].item or not points[0].only_call:
            names = ", ".join(point.name for point in points[:8])
            raise AugmentationError(f"at={at!r} names {names}: name the output of one layer that runs once")
        self.point: Point = points[0]
        self.operation = operation
        self._model, self._seed, self._classes = base, seed, classes
        self._drawn: Plan | None = None
        module = next(m for m, names in names_of(base).items() if self.point.path in names)
        self._handle = module.register_forward_hook(self._change)

    def step(self, labels: Tensor, *, ids: Sequence[Any], epoch: int) -> Tensor:
        """Draw for the training batch that comes, and say what its labels are: (n, classes) weights."""
        if len(ids) != len(labels):
            raise AugmentationError(f"{len(ids)} ids for {len(labels)} labels: pass one a sample")
        self._drawn = plan(self.operation, ids, Draw(self._seed, epoch))
        if labels.ndim == 1:
            if self._classes is None:
                raise AugmentationError("write classes= (of spile.at_layer), or pass labels as weights")
            weights = np.eye(self._classes)[labels.cpu().numpy()]
        else:
            weights = labels.double().cpu().numpy()
        return torch.from_numpy(mixed_labels(weights, self._drawn)).to(labels.device)

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
        drawn, self._drawn = self._drawn, None
        if drawn is None:
            raise CaptureError(
                f"{self.point.name}: call step(labels, ids=ids, epoch=epoch) before every training batch"
            )
        axis = (self.point.layout or "BC").index("B")
        if output.shape[axis] != len(drawn.partners):
            raise CaptureError(
                f"{self.point.name} holds {output.shape[axis]} samples, and step was told of "
                f"{len(drawn.partners)}"
            )
        changed = self._changed(output.movedim(axis, 0), drawn)
        return changed.to(output.dtype).movedim(0, axis)

    def _changed(self, x: Tensor, drawn: Plan) -> Tensor:
        axes = "B" + (self.point.layout or "BC").replace("B", "")
        match self.operation:
            case ManifoldMixup():
                own = torch.from_numpy(drawn.own).to(x).view(-1, *[1] * (x.ndim - 1))
                return own * x + (1 - own) * x[drawn.partners]
            case MoEx():
                channels = axes.index("C")
                mean = x.mean(channels, keepdim=True)
                std = (x.var(channels, keepdim=True, correction=0) + _EPSILON).sqrt()
                return (x - mean) / std * std[drawn.partners] + mean[drawn.partners]
            case FeatureNoise(std=std):
                generators = (np.random.Generator(np.random.Philox(key)) for key in drawn.keys)
                drawn_noise = np.stack([each.standard_normal(tuple(x.shape[1:])) for each in generators])
                noise = torch.from_numpy(drawn_noise).to(x)
                scale = x.detach().flatten(1).std(1, correction=0).view(-1, *[1] * (x.ndim - 1))
                return x + std * scale * noise
            case FeatureDropout() as operation:
                if sorted(axes) != ["B", "C", "X", "Y"]:
                    raise AugmentationError(f"{self.point.name} is no map: FeatureDropout drops cells of one")
                channels = axes.index("C")
                strength = x.detach().float().square().sum(channels).cpu().numpy()
                kept = torch.from_numpy(dropped(operation, strength, drawn)).to(x)
                return x * kept.unsqueeze(channels)
        raise AugmentationError(f"{self.operation!r} is no operation at a layer")
