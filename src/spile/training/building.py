"""From a recipe and a seed to a model that is ready to be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from spile.augmentation.augmenter import Augmenter
from spile.backend import Backend, backend_of, framework_of
from spile.errors import StoreError, TrainingError
from spile.fitting import LabelledBatch
from spile.models import LoadedModel, as_loaded, load_model
from spile.preprocessing import ImagePreprocessing
from spile.probing.ridge import fit_ridge
from spile.store import Store, open_store
from spile.structure import last_features
from spile.supervising import supervise
from spile.supervision.exits import fit_temperature
from spile.training.recipe import Recipe
from spile.training.rows import TrainingRows

_FEATURES = "features.lance"


@dataclass(frozen=True, eq=False)
class Built:
    """A model with a classifier for the task, and its heads."""

    loaded: LoadedModel
    supervised: Any
    example: Any
    augmenter: Augmenter | None = None
    drawn_from: Callable[[int], Iterable[LabelledBatch]] | None = None
    """Reads the batches that the augmenter changes."""

    @property
    def backend(self) -> Backend:
        """Of the model's framework."""
        return backend_of(self.loaded.model)


def load(recipe: Recipe, seed: int) -> LoadedModel:
    """The model of a recipe as its source gives it. Random weights are those of `seed`.

    Raises `TrainingError` where a function makes no model.
    """
    make = _maker(recipe)
    loaded = make()
    if framework_of(loaded.model) is None:
        raise TrainingError(
            f"{recipe.model!r} gives a {type(loaded.model).__name__}, which is no torch.nn.Module or "
            "keras.Model"
        )
    if _is_random(recipe):  # the framework is known, and loaded, only now
        backend_of(loaded.model).seed(seed)
        loaded = make()
    return loaded if recipe.preprocessing is None else replace(loaded, preprocessing=recipe.preprocessing)


def build(
    recipe: Recipe, loaded: LoadedModel, rows: TrainingRows, ids: list[str], *, few: Any, seed: int
) -> Built:
    """Give the model a classifier and heads. `ids` are those of the labelled rows, `few` inputs of a batch.

    The classifier's random weights come before those of the heads, so that of one seed the model is the same
    with and without heads.
    """
    backend = backend_of(loaded.model)
    images = loaded.preprocessing if isinstance(loaded.preprocessing, ImagePreprocessing) else None
    example = backend.example(few, preprocessing=images, model=loaded.model)
    probe = None
    if recipe.from_probe is not None:
        probe = _probe_head(Path(recipe.from_probe), loaded, example, rows, ids)
    backend.seed(seed)
    loaded = replace(loaded, model=backend.with_classifier(loaded.model, example, len(rows.classes)))
    if probe is not None:
        backend.set_classifier(loaded.model, example, *probe)
    supervised = None
    if recipe.supervise is not None:
        wanted = recipe.supervise
        supervised = supervise(
            loaded,
            example=example,
            num_classes=len(rows.classes),
            taps=wanted.taps,
            head=wanted.head,
            targets=wanted.targets,
            weight=wanted.weight,
            gradient=wanted.gradient,
            allow_large=wanted.allow_large,
            main=recipe.main,
        )
    return Built(loaded, supervised, example)


def _maker(recipe: Recipe) -> Callable[[], LoadedModel]:
    model = recipe.model
    if isinstance(model, str):
        return lambda: load_model(
            model,
            weights=None if recipe.weights is None else Path(recipe.weights),
            pretrained=recipe.pretrained,
            input_size=recipe.input_size,
            device=recipe.device,
        )
    if framework_of(model) is None and not isinstance(model, LoadedModel) and callable(model):
        return lambda: _made_by(model)
    return lambda: as_loaded(model)


def _made_by(function: Callable[[], Any]) -> LoadedModel:
    """What a function makes: a model, or one and its preprocessing, as those of files do."""
    made = function()
    if isinstance(made, tuple) and len(made) == 2:
        return replace(as_loaded(made[0]), preprocessing=made[1])
    return as_loaded(made)


def _is_random(recipe: Recipe) -> bool:
    if isinstance(recipe.model, str):
        return not recipe.pretrained or ".py:" in recipe.model
    return not isinstance(recipe.model, LoadedModel) and framework_of(recipe.model) is None


def _probe_head(
    run: Path, loaded: LoadedModel, example: Any, rows: TrainingRows, ids: list[str]
) -> tuple[Any, Any]:
    """Weights (features, classes) and biases of a ridge classifier on the run's last features, tempered.

    Fitted on the labelled training rows alone. Ridge scores lie near -1..1, which cross-entropy takes for
    doubt: they are divided by the temperature that suits them best.
    """
    store = _open_features(run)
    backend = backend_of(loaded.model)
    if store.manifest.fingerprinted["weights"] != backend.weights_hash(loaded.model):
        raise TrainingError(
            f"{run} was made with another model or other weights than {loaded.reference or 'this one'}: run "
            "spile transfer with it first"
        )
    address = last_features(backend.observe(loaded.model, example))
    if address not in store.points:
        raise TrainingError(f"{run} holds no features at {address}, which the classifier reads")
    place = {one: row for row, one in enumerate(store.ids.tolist())}
    found = [
        (place[one], code) for one, code in zip(ids, rows.codes[rows.labelled], strict=True) if one in place
    ]
    if len(found) < len(ids) / 2:
        raise TrainingError(
            f"{run} holds features of {len(found)} of {len(ids)} training rows: is it other data?"
        )
    found.sort()
    at, codes = np.array([row for row, _ in found]), np.array([code for _, code in found])
    X = store[address].take(at).reshape(len(at), -1)
    fit = fit_ridge(X, codes, classes=np.arange(len(rows.classes)))
    coef = fit.coef / fit.scale[:, None]
    intercept = fit.intercept - (fit.mean / fit.scale) @ fit.coef
    if coef.shape[1] == 1:
        coef, intercept = np.hstack([-coef, coef]), np.concatenate([-intercept, intercept])
    temperature = fit_temperature(X @ coef + intercept, codes)
    return coef / temperature, intercept / temperature


def _open_features(run: Path) -> Store:
    try:
        return open_store(run / _FEATURES)
    except StoreError as error:
        raise TrainingError(f"{run} is no run of spile transfer ({error})") from error
