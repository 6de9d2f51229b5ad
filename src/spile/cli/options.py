"""Options and arguments that several commands share."""

from __future__ import annotations

import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from spile.models import LoadedModel


class Rule(StrEnum):
    """How a layer is chosen."""

    best = "best"
    one_standard_error = "1se"


class Combine(StrEnum):
    """Whether layers are combined."""

    single = "single"
    greedy = "greedy"
    banded = "banded"


class Head(StrEnum):
    """What is fitted on the features."""

    ridge = "ridge"
    svm = "svm"
    linear_svm = "linear_svm"
    logistic = "logistic"
    knn = "knn"
    lda = "lda"
    hist_gradient_boosting = "hist_gradient_boosting"


class Dtype(StrEnum):
    """What a store holds."""

    float16 = "float16"
    float32 = "float32"


class Precision(StrEnum):
    """What is computed in."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Engine(StrEnum):
    """How a model is run."""

    auto = "auto"
    eager = "eager"
    compile = "compile"
    openvino = "openvino"


class Which(StrEnum):
    """Which layers are listed."""

    all = "all"
    blocks = "blocks"
    stages = "stages"


ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="timm:NAME, torchvision:NAME, hf:NAME, keras:NAME, keras_hub:PRESET, FILE.py:FACTORY, "
        "FILE.keras, FILE.pt2, demo:NAME, or a folder that spile train wrote.",
    ),
]
Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA", help="A folder of class folders, a .csv, .parquet or .npz file, or demo:NAME."
    ),
]
Weights = Annotated[Path | None, typer.Option(help="A local weights file, .safetensors or .pth.")]
InputSize = Annotated[int | None, typer.Option(min=1, help="Side of square inputs, in pixels.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; by default the CPU.")]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layers", "-l", help="An address; may be repeated. Default: stages."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples a batch.")]
RuleName = Annotated[Rule, typer.Option(help="The best layer, or the cheapest within one standard error.")]
CombineName = Annotated[
    Combine, typer.Option(help="One layer, layers added while they help, or all with a penalty each.")
]
MetricName = Annotated[
    str,
    typer.Option(help="auto, accuracy, balanced_accuracy, roc_auc, neg_log_loss, average_precision or r2."),
]
MaxMacs = Annotated[int | None, typer.Option(min=1, help="Most multiply-accumulates a sample.")]
MaxParams = Annotated[int | None, typer.Option(min=1, help="Most parameters.")]
MaxBytes = Annotated[int | None, typer.Option(min=1, help="Most bytes of float32 weights.")]
GroupDuplicates = Annotated[
    bool, typer.Option("--group-duplicates", help="Keep near-duplicates on one side of every split.")
]
UnitRows = Annotated[
    bool, typer.Option("--unit-rows", help="Divide rows of single layers by their length before scaling.")
]
MaxBad = Annotated[float, typer.Option(min=0, max=1, help="Share of samples that may be unreadable.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


def numbers(text: str | None) -> tuple[int, ...] | None:
    """Whole numbers separated by commas. Raises a usage error for anything else."""
    if text is None:
        return None
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of whole numbers: write 5,10,50") from None
    if min(found) < 2:
        raise typer.BadParameter(f"{min(found)} labels a class are too few to cross-validate: 2 or more")
    return found


def load(model: str, weights: Path | None, input_size: int | None, device: str | None) -> LoadedModel:
    """The model that the options name."""
    import spile

    return spile.load_model(model, weights=weights, input_size=input_size, device=device)


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["spile", *sys.argv[1:]])
