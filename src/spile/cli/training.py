"""`spile train`: its options to a recipe, one run or a comparison."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from spile.cli.options import (
    AsJson,
    BatchSize,
    Data,
    Device,
    InputSize,
    MaxBad,
    ModelName,
    Quiet,
    Weights,
    typed,
)
from spile.cli.showing import print_line, show, table_of
from spile.errors import AugmentationError, SupervisionError, nearest

if TYPE_CHECKING:
    from spile.supervision import Target
    from spile.supervision.weights import Schedule, Weighting
    from spile.training import Augmentation, Recipe, Supervision


class Head(StrEnum):
    """Kinds of auxiliary heads."""

    linear = "linear"
    bottleneck = "bottleneck"
    mlp = "mlp"
    token = "token"
    flatten = "flatten"


class Optimizer(StrEnum):
    """How weights are changed."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"


class RateSchedule(StrEnum):
    """How the learning rate goes."""

    cosine = "cosine"
    constant = "constant"


class MixedPrecision(StrEnum):
    """What is computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


TARGETS = ("labels", "pseudo-labels", "self-distill", "smoothed-labels", "teacher:MODEL")
WEIGHTS = ("constant", "linear", "cosine", "ramp", "uncertainty")
_SEEDS = 5


def train(
    data: Data,
    model: ModelName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder.")] = Path("run"),
    supervise: Annotated[
        str | None,
        typer.Option(help="Layers with auxiliary heads, e.g. layer2,layer3; or auto. Default: no heads."),
    ] = None,
    head: Annotated[Head | None, typer.Option(help="What sits on these layers. Default: bottleneck.")] = None,
    targets: Annotated[
        str | None,
        typer.Option(help=f"What the heads learn, one or several of {', '.join(TARGETS)}. Default: labels."),
    ] = None,
    weight: Annotated[
        str | None,
        typer.Option(
            help="How much the heads count in total: 0.3, cosine:0.4, linear:0.4, ramp:0.4, uncertainty. "
            "Default: cosine:0.4."
        ),
    ] = None,
    gradient: Annotated[
        float | None,
        typer.Option(min=0, help="Factor of the heads' gradients into the model; 0 stops them. Default: 1."),
    ] = None,
    augment: Annotated[
        str | None,
        typer.Option(help="Guided augmentation, POLICY:LAYER, e.g. bylevel:layer3; see spile augment."),
    ] = None,
    maps: Annotated[
        str | None,
        typer.Option(help="What guides: guided, or a placebo: permuted, random, centre. Default: guided."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training rows.")] = 10,
    batch_size: BatchSize = None,
    optimizer: Annotated[Optimizer, typer.Option(help="How weights are changed.")] = Optimizer.adamw,
    rate: Annotated[float, typer.Option(help="Learning rate.")] = 1e-3,
    decay: Annotated[float, typer.Option(min=0, help="Weight decay.")] = 0.0,
    schedule: Annotated[RateSchedule, typer.Option(help="Of the learning rate.")] = RateSchedule.cosine,
    warmup: Annotated[float, typer.Option(help="Share of training in which the rate rises.")] = 0.0,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches a step.")] = 1,
    precision: Annotated[MixedPrecision, typer.Option(help="What is computed in.")] = MixedPrecision.float32,
    patience: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many epochs without a lower validation loss.")
    ] = None,
    shots: Annotated[int | None, typer.Option(min=2, help="Use only so many labels of every class.")] = None,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Begin with random weights.")] = False,
    from_probe: Annotated[
        Path | None, typer.Option(help="Begin with the head of this run of spile transfer.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of all random numbers. Default: 0.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut off.")] = False,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Train with and without heads, or with guided and permuted maps, and say whether it helps.",
        ),
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=2, help=f"How many seeds --compare takes. Default: {_SEEDS}.")
    ] = None,
    accuracy: Annotated[
        float | None, typer.Option(min=0, max=1, help="That --compare takes the time to.")
    ] = None,
    max_bad: MaxBad = 0.01,
    weights: Weights = None,
    input_size: InputSize = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a classifier, with auxiliary heads on its layers or without, and write a report with curves."""
    import spile
    from spile.training import Recipe

    heads = {"--head": head, "--targets": targets, "--weight": weight, "--gradient": gradient}
    _belong_to("--supervise auto", supervise is not None, heads)
    _belong_to("--augment bylevel:layer3", augment is not None, {"--maps": maps})
    _belong_to("--compare", compare, {"--seeds": seeds, "--accuracy": accuracy})
    if compare and seed is not None:
        raise typer.BadParameter("--seed does not go with --compare, whose seeds count from 0: write --seeds")
    if compare and resume:
        raise typer.BadParameter("--resume does not go with --compare, which begins anew: leave it out")
    recipe = Recipe(
        model=model,
        data=data,
        weights=weights,
        device=device,
        supervise=_supervision(supervise, head or Head.bottleneck, targets, weight, gradient, data),
        augment=augmentation_named(augment, maps or "guided"),
        epochs=epochs,
        batch_size=batch_size or 32,
        optimizer=optimizer.value,
        rate=rate,
        decay=decay,
        schedule=schedule.value,
        warmup=warmup,
        accumulate=accumulate,
        precision=precision.value,
        pretrained=not from_scratch,
        input_size=input_size,
        shots=shots,
        patience=patience,
        from_probe=from_probe,
        max_bad=max_bad,
    )
    if compare:
        _compare(recipe, out, seeds or _SEEDS, accuracy, quiet=quiet, as_json=as_json)
        return
    with _results_alone():
        run = spile.train(recipe, out=out, seed=seed or 0, resume=resume, progress=not quiet, command=typed())
    rows = [_row(number, epoch) for number, epoch in enumerate(run.epochs, 1)]
    table = table_of(rows, "epoch", "train loss", "train", "validation", "test", "seconds")
    show(
        table,
        {"accuracy": run.accuracy, "best": run.best + 1, "epochs": run.epochs, "report": str(run.report)},
        as_json,
    )
    if not as_json:
        print_line(str(run))


def _results_alone() -> redirect_stdout[TextIO]:
    """Keeps what is printed on the way, such as Keras' bar, out of standard output."""
    return redirect_stdout(sys.stderr)


def _belong_to(option: str, given: bool, others: Mapping[str, Any]) -> None:
    """Raises a usage error for one of the `others` without the option that it is of."""
    lone = next((name for name, value in others.items() if value is not None), None)
    if lone is not None and not given:
        raise typer.BadParameter(
            f"{lone} is of {option.partition(' ')[0]}, which is not there: add {option}, or leave {lone} out"
        )


def _compare(
    recipe: Recipe, out: Path, seeds: int, accuracy: float | None, *, quiet: bool, as_json: bool
) -> None:
    import spile

    if (recipe.supervise is None) == (recipe.augment is None):
        raise SupervisionError(
            "--compare holds training with heads against training without, or guided maps against permuted "
            "ones: say one of the two, --supervise auto or --augment bylevel:layer3"
        )
    baseline, names = replace(recipe, supervise=None), ("without heads", "with heads")
    if recipe.augment is not None:
        baseline = replace(recipe, augment=replace(recipe.augment, maps="permuted"))
        names = ("permuted maps", f"{recipe.augment.maps} maps")
    with _results_alone():
        found = spile.compare(
            baseline,
            recipe,
            seeds,
            names=names,
            accuracy=accuracy,
            out=out,
            progress=not quiet,
            command=typed(),
        )
    if as_json:
        show(None, {**found.to_json(), "report": str(found.report)}, as_json)
        return
    print_line(f"{found}\nreport: {found.report}")


def _row(number: int, epoch: dict[str, float]) -> dict[str, Any]:
    named = {"train loss": "train/loss", "train": "train/accuracy", "seconds": "seconds"}
    named |= {"validation": "validation/accuracy", "test": "test/accuracy"}
    from spile.training.record import known

    return {"epoch": number, **{shown: known(epoch, name) for shown, name in named.items()}}


def _supervision(
    layers: str | None,
    head: Head,
    targets: str | None,
    weight: str | None,
    gradient: float | None,
    data: str,
) -> Supervision | None:
    if layers is None:
        return None
    from spile.training import Supervision

    listed = [part.strip() for part in layers.split(",") if part.strip()]
    return Supervision(
        taps="auto" if listed == ["auto"] else listed,
        head=head.value,
        targets=[target_named(name.strip(), data) for name in (targets or "labels").split(",")],
        weight=weighting_named(weight or "cosine:0.4"),
        gradient=1.0 if gradient is None else gradient,
    )


def augmentation_named(text: str | None, maps: str) -> Augmentation | None:
    """Guided augmentation as ``bylevel:layer3``. Raises `AugmentationError` for anything else."""
    if text is None:
        return None
    from spile.augmentation.presets import NAMES
    from spile.training import Augmentation

    policy, colon, at = text.partition(":")
    if not colon or not at or policy not in NAMES:
        raise AugmentationError(
            f"--augment {text!r}: write a policy and a layer, {nearest(policy, NAMES, n=1)[0]}:layer3. "
            f"Policies: {', '.join(NAMES)}"
        )
    return Augmentation(at=at, policy=policy, maps=maps)


def target_named(name: str, data: str) -> Target:
    """A target by its name. Raises `SupervisionError` for another."""
    from spile.data import Source, open_source
    from spile.supervision import Labels, PseudoLabels, SelfDistill, SmoothedLabels, Teacher

    if name.startswith("teacher:") and name != "teacher:":
        return Teacher(model=name.removeprefix("teacher:"))
    match name:
        case "labels":
            return Labels()
        case "pseudo-labels":
            return PseudoLabels()
        case "self-distill":
            return SelfDistill()
        case "smoothed-labels":
            source = open_source(data)
            return SmoothedLabels(samples=len(source.records) if isinstance(source, Source) else 1)
    near = nearest(name, TARGETS, n=1)[0]
    raise SupervisionError(
        f"--targets {name!r}: did you mean {near!r}? Allowed: {', '.join(TARGETS)}, e.g. "
        "teacher:timm:resnet50 or the folder of a run, teacher:run"
    )


def weighting_named(text: str) -> Weighting:
    """A weighting as ``0.3`` or ``cosine:0.4``. Raises `SupervisionError` for anything else."""
    from spile.supervision import Constant, CosineDecay, DepthRamp, LinearDecay, Uncertainty

    name, _, number = text.partition(":")
    if name == "uncertainty" and not number:
        return Uncertainty()
    made: dict[str, type[Schedule]] = {
        "constant": Constant,
        "linear": LinearDecay,
        "cosine": CosineDecay,
        "ramp": DepthRamp,
    }
    try:
        if name in made:
            return made[name](float(number or 0.4))
        return Constant(float(text))
    except ValueError:
        near = nearest(name, WEIGHTS, n=1)[0]
        raise SupervisionError(
            f"--weight {text!r}: write a number, or one of constant, linear, cosine, ramp with a number "
            f"({near}:0.4), or uncertainty"
        ) from None
