"""What a training run, or a comparison, leaves for its report: ``run.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import spile
from spile.data import Skipped, Source
from spile.fitting import Epoch, Fitted
from spile.probing.record import about, write_json
from spile.training.building import Built
from spile.training.recipe import Recipe
from spile.training.rows import TrainingRows

_SKIPPED = 50
"""Skipped samples that are listed; all are counted."""
_LAYERS = 6
"""Layers whose gradients are drawn; ``run.json`` holds them all."""


def write_record(
    folder: Path,
    *,
    recipe: Recipe,
    seed: int,
    built: Built,
    rows: TrainingRows,
    source: Source,
    skipped: Mapping[int, Skipped],
    fitted: Fitted,
    augmented: Sequence[Mapping[str, Any]],
    title: str | None,
    command: str | None,
) -> None:
    """Write ``run.json`` and, with every number of every epoch, ``epochs.json``."""
    model, epochs = built.loaded.model, fitted.epochs
    name = built.loaded.reference or type(model).__name__
    options = {**recipe.described(), "seed": str(seed)}
    heads = list(built.supervised.heads) if built.supervised is not None else []
    write_json(
        folder / "run.json",
        {
            **about(title or f"{name} on {source.name}", command),
            "model": {
                "reference": name,
                "name": type(model).__name__,
            },
            "data": {
                "name": source.name,
                "samples": len(source.records),
                "classes": rows.classes,
                "train_rows": len(rows.train),
                "test_rows": len(rows.test),
                "labels_per_class": recipe.shots,
            },
            **left_out(skipped),
            "versions": {"spile": spile.__version__, **built.backend.versions(model)},
            "timings": [{"step": "train", "seconds": epochs[-1]["seconds"]}],
            "training": {
                "epochs": [row["epoch"] for row in epochs],
                "best": fitted.best,
                "score": known(epochs[fitted.best], "test/accuracy"),
                "seconds": epochs[-1]["seconds"],
                "heads": heads,
                "options": {key: value for key, value in options.items() if value not in ("None", "")},
                "charts": charts(epochs, heads),
                "augmented": augmented,
            },
        },
    )
    write_json(folder / "epochs.json", epochs)


def left_out(skipped: Mapping[int, Skipped]) -> dict[str, Any]:
    """What could not be read, by position, as ``run.json`` has it."""
    listed = [skipped[at] for at in sorted(skipped)[:_SKIPPED]]
    return {
        "skipped": [{"id": bad.id, "reason": bad.reason} for bad in listed],
        "skipped_total": len(skipped),
    }


def charts(epochs: Sequence[Epoch], heads: Sequence[str]) -> list[dict[str, Any]]:
    """The curves of a run: losses, accuracies, weights of the heads, gradients. Empty ones are left out."""

    def lines(names: Mapping[str, str]) -> list[dict[str, Any]]:
        found = [
            {"name": shown, "values": [known(row, name) for row in epochs]} for shown, name in names.items()
        ]
        return [line for line in found if any(value is not None for value in line["values"])]

    def of_heads(pattern: str) -> dict[str, str]:
        return {head: pattern.format(head) for head in heads}

    splits = {"held out": "test", "validation": "validation"}
    layers = gradient_layers(epochs)
    drawn = _spread(layers, _LAYERS)
    shares = {f"{layer} {head}": f"gradient/{layer}/share/{head}" for layer in drawn[:1] for head in heads}
    made = [
        chart("Loss", lines({"training": "train/loss", **{k: f"{v}/loss" for k, v in splits.items()}})),
        chart(
            "Accuracy",
            lines({"training": "train/accuracy", **{k: f"{v}/accuracy" for k, v in splits.items()}}),
            share=True,
        ),
        chart(
            "Accuracy of the heads",
            lines({"main": "test/accuracy", **of_heads("test/{}/accuracy")}) if heads else [],
            words="On held-out rows.",
            share=True,
        ),
        chart("Loss of the heads", lines(of_heads("train/{}/loss")), words="In training, before weighting."),
        chart("Weight of the heads", lines(of_heads("train/{}/weight"))),
        chart(
            "Pseudo-labels",
            lines(
                {f"{head} {kind}": f"train/{head}/{kind}" for head in ("main", *heads) for kind in _PSEUDO}
            ),
            words="Coverage: the share of unlabelled rows that are confident. Precision: of confident rows "
            "with a label, the share that is right.",
            share=True,
        ),
        chart(
            "Gradient norm",
            lines({layer: f"gradient/{layer}/gradient_norm" for layer in drawn}),
            words="Of the whole loss, on one fixed batch, input side first.",
            logarithmic=True,
        ),
        chart(
            "Agreement of gradients",
            lines({layer: f"gradient/{layer}/cosine" for layer in drawn}),
            words="Cosine between the gradient of the main loss and that of the heads.",
        ),
        chart(
            "Share of each head in the first layer's gradient",
            lines(shares),
            share=True,
        ),
    ]
    return [each for each in made if each["lines"]]


def known(row: Epoch, name: str) -> float | None:
    """A number of an epoch; ``None`` where there is none, or it is not known."""
    value = row.get(name)
    return None if value is None or value != value else value


_PSEUDO = ("coverage", "precision")


def chart(
    title: str,
    lines: list[dict[str, Any]],
    *,
    words: str = "",
    share: bool = False,
    logarithmic: bool = False,
) -> dict[str, Any]:
    """One chart as ``run.json`` has it."""
    return {"title": title, "lines": lines, "words": words, "share": share, "logarithmic": logarithmic}


def gradient_layers(epochs: Sequence[Epoch]) -> list[str]:
    """Layers whose gradients were looked at, in forward order."""
    ends = "/gradient_norm"
    names = (name for row in epochs for name in row if name.startswith("gradient/") and name.endswith(ends))
    return list(dict.fromkeys(name.removeprefix("gradient/").removesuffix(ends) for name in names))


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Up to `count` names at even distances, the first and the last among them."""
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
