"""A PyTorch model with auxiliary heads.

The base model and the heads lie side by side in one module; a `spile.torch.taps.Tap` catches the features.
Everything a pass computes is returned, nothing is kept, so the module can be compiled whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spile.errors import SupervisionError
from spile.observation import Observation
from spile.resolution import Point, resolve
from spile.structure import last_features
from spile.supervision.heads import HeadSpec, Kept, heads_of
from spile.supervision.operations import Features
from spile.supervision.placement import final_features
from spile.supervision.settings import Certificate, Loss, Settings, SupervisedOutput
from spile.supervision.targets import checked_task, targets_of
from spile.supervision.weights import Aggregated, Uncertainty
from spile.torch.certificates import Twin
from spile.torch.gradients import scaled
from spile.torch.heads import Head, Heads, Recipe, build, canonical
from spile.torch.losses import check_classes
from spile.torch.observing import observe
from spile.torch.references import Given, logits_of
from spile.torch.steps import ADVICE, Steps
from spile.torch.taps import Tap, prefix_tokens_at
from spile.torch.terms import FINAL, Terms
from spile.torch.trees import device_of, inputs_of, unwrap
from spile.torch.weights import load_weights, save_weights


class Supervised(nn.Module):
    """A model and auxiliary heads on its layers; see `spile.supervise`.

    Call it as the model, then `loss`. Its parameters are those of the model under ``base``, of the heads
    under ``heads``, and what the targets and weights need. For several processes wrap this, not the model,
    in `DistributedDataParallel`.
    """

    twin: Twin
    """The model before it had heads, for `certificate`."""

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__()
        if unwrap(model) is not model:
            raise SupervisionError(
                f"the model is wrapped ({type(model).__name__}): supervise the model itself, and wrap or "
                "compile the result, which then holds the heads too"
            )
        self.base = model
        self.settings = replace(settings, example=None)
        example = inputs_of(model, settings.example)
        observation = observe(model, example)
        found, _ = resolve(settings.addresses, None, observation)
        points = sorted(found, key=lambda point: point.order)
        names = [point.name for point in points]
        targets = targets_of(settings.targets, names)
        checked_task(settings.task, targets)
        object.__setattr__(self, "twin", Twin(model))
        self.terms = Terms(targets, model, settings=settings, example=example)  # copies what has no hooks yet
        self.features = {point.name: _read(point, observation) for point in points}
        """What each head reads."""
        self.macs = observation.root.macs
        """Multiply-accumulates of the model for one sample, without heads."""
        self.heads = Heads(_heads(model, points, self.features, settings, observation))
        self.terms.connect(points, self.heads, observation)
        self.log_variances = None
        if isinstance(settings.weighting, Uncertainty):
            self.log_variances = nn.Parameter(torch.zeros(1 + len(points), device=device_of(model)))
        addresses = {point.name: point.address for point in points}
        if self.terms.reads_final:
            addresses[FINAL] = last_features(observation)
        tap = Tap(model, addresses, pool=None, mode="as_is")
        tap.settle(observation)
        # No submodule: the tap's own `model` would put every key of the base there a second time.
        object.__setattr__(self, "_tap", tap)
        object.__setattr__(self, "_steps", Steps(self))
        self.register_load_state_dict_post_hook(_forget_steps)  # type: ignore[no-untyped-call]
        self.register_state_dict_pre_hook(_catch_up_before_saving)  # type: ignore[no-untyped-call]
        self._stripped = False

    @property
    def points(self) -> tuple[Point, ...]:
        """Where the heads read, the shallowest first."""
        return tuple(point for point in self._taps.points if point.name in self.heads)

    @property
    def _taps(self) -> Tap:
        tap: Tap = self.__dict__["_tap"]
        return tap

    def forward(self, *args: Any, **kwargs: Any) -> SupervisedOutput:
        """Run the whole model and its heads."""
        if self._stripped:
            raise SupervisionError(
                "the heads were stripped off: call the model itself, or supervise it again"
            )
        output, activations = self._taps.with_output(*args, **kwargs)
        main = logits_of(output, self.settings.main)
        mask = self._taps.mask_of(args, kwargs)
        aux: dict[str, Tensor] = {}
        extra: dict[str, Any] = self.terms.run(args, kwargs, main.device)
        for point in self.points:
            read = canonical(scaled(activations[point.name], self.settings.gradient), point)
            head: Head = self.heads[point.name]  # type: ignore[assignment]
            own = head.features(read, mask)
            aux[point.name] = head.output(own)
            extra |= self.terms.pairs(point.name, read, own, activations.get(FINAL), extra)
        if self.log_variances is not None:
            extra["log_variances"] = self.log_variances.clone()
        return SupervisedOutput(main, aux, extra)

    def loss(
        self,
        output: SupervisedOutput,
        labels: Any,
        *,
        progress: Any,
        ids: Any = None,
        soft_labels: Any = None,
    ) -> Loss:
        """The weighted sum of all targets when the share `progress` of training is done.

        `labels` are as in `spile.torch.losses.labelled`; -1 is no label, and other numbers that are no class
        are refused where they lie on the CPU. `ids` are row numbers, for
        `SmoothedLabels`; `soft_labels` are rows of probabilities, for ``PseudoLabels(source="given")``.
        In training mode the running averages of the targets move with every call. With `Aggregated` the total
        carries no gradient: call ``supervised.backward(loss)``.
        """
        training = self.training and torch.is_grad_enabled()
        steps: Steps = self.__dict__["_steps"]
        if training:
            self._catch_up()
        labels = torch.as_tensor(labels)
        if self.settings.task in ("classification", "segmentation"):
            check_classes(labels, output.main.shape[1])
        labels = labels.to(output.main.device)
        loss = self.terms.loss(output, Given(labels, ids, soft_labels, training), progress=float(progress))
        if training:
            steps.seen(loss)
        return loss

    def _catch_up(self) -> None:
        """After an optimiser step, of which nobody tells: let averages of the model follow it."""
        steps: Steps = self.__dict__["_steps"]
        if steps.taken():
            self.terms.follow(self.base)
            steps.forget()

    def backward(self, loss: Loss) -> None:
        """Put gradients into every parameter; as ``loss.total.backward()``, and with `Aggregated` too."""
        weighting = self.settings.weighting
        if not isinstance(weighting, Aggregated):
            loss.total.backward()
            return
        from spile.torch.aggregating import backward

        backward(self.terms.by_head(loss), weighting.aggregator, list(self.parameters()))

    def set_linear(self, address: str, weight: Any, bias: Any) -> None:
        """Start a head from a linear probe on pooled features.

        `weight` is (outputs, features), `bias` (outputs,). For heads that are one
        linear layer, ``head="linear"``. Raises `SupervisionError` for others, and for other shapes.
        """
        if address not in self.heads:
            raise SupervisionError(f"no head at {address!r}: there are {', '.join(self.heads)}")
        head = self.heads[address]
        linear = head.output
        if not isinstance(linear, nn.Linear) or any(True for _ in head.trunk.parameters()):  # type: ignore[union-attr]
            raise SupervisionError(f"the head at {address!r} is not one linear layer: use head='linear'")
        for parameter, values in ((linear.weight, weight), (linear.bias, bias)):
            given = torch.as_tensor(values)
            if given.shape != parameter.shape:
                raise SupervisionError(
                    f"the head at {address!r} takes {list(parameter.shape)}, received {list(given.shape)}"
                )
            with torch.no_grad():
                parameter.copy_(given)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Warn where parameters of the heads are in no group of `optimizer`, as of one made before them."""
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        missing = [
            name
            for name, parameter in self.named_parameters()
            if parameter.requires_grad and id(parameter) not in held and not name.startswith("base.")
        ]
        if missing:
            warnings.warn(f"not in the optimiser: {', '.join(missing)}. {ADVICE}", stacklevel=2)

    def diagnose(
        self, inputs: Any, labels: Any, *, progress: float = 0.0, ids: Any = None, soft_labels: Any = None
    ) -> dict[str, dict[str, float]]:
        """By layer with weights: ``gradient_norm``, ``share/...`` of main and each head, ``cosine``.

        Runs one batch as in training, and leaves gradients, buffers, averages and random state as they are.
        """
        from spile.torch.diagnosing import diagnose

        return diagnose(self, inputs, labels, progress=progress, ids=ids, soft_labels=soft_labels)

    def head_specs(self) -> dict[str, HeadSpec | None]:
        """What each head is built of, as it is; ``None`` for one of your own."""
        recipes: dict[str, Recipe | None] = {name: head.recipe for name, head in self.heads.items()}
        return {name: None if recipe is None else Kept(recipe.operations) for name, recipe in recipes.items()}

    def save_heads(self, path: Path) -> None:
        """Write the weights of the heads alone, as safetensors."""
        save_weights(self.heads, path)

    def load_heads(self, path: Path) -> None:
        """Put back what `save_heads` wrote, of heads that are built alike. Raises `ModelError`."""
        load_weights(self.heads, path)

    def strip(self) -> nn.Module:
        """Take the heads' hooks off and give the model back, the same object. Twice is fine."""
        self._taps.close()
        self._stripped = True
        return self.base

    @contextmanager
    def without_hooks(self) -> Iterator[None]:
        """The model as `strip` leaves it, for a while."""
        self._taps.detach()
        try:
            yield
        finally:
            if not self._stripped:
                self._taps.attach()

    def certificate(self, inputs: Any) -> Certificate:
        """Check that stripping leaves the model as it was, in its outputs, keys, MACs and exported graph."""
        from spile.torch.certificates import certify

        return certify(self, inputs)

    def exits(
        self, data: Any, *, accuracy: float | None = None, budget: float | None = None, holdout: float = 0.5
    ) -> Any:
        """A model that lets samples leave at the first head that is sure; `data` is (inputs, labels)."""
        from spile.torch.calibrating import make_exits

        return make_exits(self, data, accuracy=accuracy, budget=budget, holdout=holdout)


def _catch_up_before_saving(supervised: Supervised, *_: Any) -> None:
    supervised._catch_up()


def _forget_steps(supervised: Supervised, _: Any) -> None:
    """Loaded weights are no optimiser step."""
    supervised.__dict__["_steps"].forget()


def _read(point: Point, observation: Observation) -> Features:
    found = Features.of(point, prefix_tokens=prefix_tokens_at(point, observation))
    if found is None:
        raise SupervisionError(
            f"{point.name!r} has the axes {point.layout!r}, and heads read maps (BCYX), tokens (BTC) or "
            "vectors (BC): tap another layer"
        )
    return found


def _heads(
    model: nn.Module,
    points: Sequence[Point],
    features: Mapping[str, Features],
    settings: Settings,
    observation: Observation,
) -> dict[str, nn.Module]:
    """The heads by address, where the model's parameters are and in their dtype."""
    wanted = heads_of(settings.heads, [point.name for point in points])
    modules = [id(head) for head in wanted.values() if isinstance(head, nn.Module)]
    if len(set(modules)) < len(modules):
        raise SupervisionError(
            "one module cannot be the head of several layers: give a function that makes one, e.g. "
            "head=lambda channels: MyHead(channels), or one for each address, head={address: module}"
        )
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    final, base_params = final_features(observation), sum(p.numel() for p in model.parameters())
    return {
        point.name: build(
            wanted[point.name],
            point,
            features=features[point.name],
            final=final,
            outputs=settings.outputs,
            task=settings.task,
            base_params=base_params,
            allowed=point.name in settings.allow_large,
            text=observation.text,
        ).to(device=device_of(model), dtype=dtype)
        for point in points
    }
