"""Activations as scikit-learn features: `ActivationTransformer`, for pipelines, unions and searches."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from spile.backend import backend_of
from spile.data import BadSample, batches, read_image
from spile.errors import DataError, ModelError
from spile.interfaces import Tap
from spile.models import LoadedModel, as_loaded, load_model
from spile.preprocessing import ImagePreprocessing, Preprocessing
from spile.probing.features import joined
from spile.probing.preparing import example_of, few_samples, listed, open_samples
from spile.taps import tap as make_tap

__all__ = ["ActivationTransformer"]

Array = npt.NDArray[Any]


class ActivationTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """What flows out of layers of a PyTorch or Keras model, as features (n, d) float32.

    Nothing is learnt: `fit` only looks up the layers. The network is never copied, so that ``clone``, as in
    cross-validation, is free, and what was computed for a sample is kept by its content, so that the network
    sees each sample once however many folds there are.

    Args:
        model: a model object, a reference such as ``"timm:resnet50"``, or what `spile.load_model` gave.
        layers: an address or a list of them, see `spile.tap`.
        pool: what is kept of each layer.
        preprocessing: what uint8 images get; a reference brings its own.
        batch_size: samples a batch.
        unit_rows: divide each row of each layer by its length, as `spile.probe` does where it combines some.
        cache: keep features by sample content: ``True``, or at most so many samples; oldest go first. The
            cache belongs to the model and is shared by clones; it is not pickled.

    `X` is what `spile.extract` reads: an array (n, ...) of samples of any number of axes, images of which
    uint8 (n, height, width, channels) are preprocessed, or a list, tuple, array or pandas series of paths,
    Pillow images or texts. A row alone gives the same features as the row in a batch.

    Pickling stores the reference of a model that came from one, without its weights; a model object is
    pickled whole.
    """

    def __init__(
        self,
        model: Any = None,
        layers: Any = "stages",
        *,
        pool: Any = "auto",
        preprocessing: Preprocessing | None = None,
        batch_size: int = 32,
        unit_rows: bool = False,
        cache: bool | int = True,
    ) -> None:
        self.model = model
        self.layers = layers
        self.pool = pool
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.unit_rows = unit_rows
        self.cache = cache

    def fit(self, X: Any, y: Any = None) -> ActivationTransformer:
        """Look up the layers with a few samples of `X`; `y` is not looked at."""
        X = self._checked(X, reset=True)
        loaded = self._loaded()
        example = example_of(loaded, few_samples(loaded, open_samples(X[:2])))
        with make_tap(loaded, self.layers, pool=self.pool, example=example) as tap:
            found = tap(**example) if isinstance(example, Mapping) else tap(example)
            self.points_ = tuple(point.name for point in tap.points)
            self.widths_ = tuple(_width(value) for value in found.values())
        return self

    def transform(self, X: Any) -> Array:
        """(n, d) float32: the points side by side, in the order of `get_feature_names_out`."""
        check_is_fitted(self)
        X = self._checked(X, reset=False)
        if not self.unit_rows:
            return self._activations(X)
        parts = np.split(self._activations(X), np.cumsum(self.widths_)[:-1], axis=1)
        return joined(parts, unit_rows=True).astype(np.float32)

    def _activations(self, X: Any) -> Array:
        """(n, d), from the cache where they are there."""
        if not self.cache:
            return self._run(X)
        held = self._held()
        keys = [_content(sample) for sample in X]
        unknown: dict[Any, int] = {}
        for i, key in enumerate(keys):
            if key is None or key not in held:
                unknown.setdefault(key or i, i)
        fresh = dict(zip(unknown, self._run(_pick(X, list(unknown.values()))), strict=True))
        values = [fresh[key or i] if (key or i) in fresh else held[key or b""] for i, key in enumerate(keys)]
        known = {key: row for key, row in fresh.items() if isinstance(key, bytes)}
        held.update(known)
        most = len(held) if self.cache is True else int(self.cache)
        for key in list(held)[: max(0, len(held) - most)]:
            del held[key]
        return np.stack(values)

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """(d,) names such as ``layer3[0]``."""
        check_is_fitted(self)
        names = [
            f"{point}[{i}]"
            for point, width in zip(self.points_, self.widths_, strict=True)
            for i in range(width)
        ]
        return np.asarray(names, dtype=object)

    def __sklearn_clone__(self) -> ActivationTransformer:
        """A fresh one with the same network, by reference."""
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        model = state.get("model")
        if isinstance(model, LoadedModel) and model.reference:
            state["model"] = _Reference(model)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if isinstance(state.get("model"), _Reference):
            state = {**state, "model": state["model"].load()}
        super().__setstate__(state)

    @property
    def _n_features_out(self) -> int:
        return sum(self.widths_)

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """Arrays checked as scikit-learn does; lists of paths, images or texts are left to the reader."""
        if isinstance(X, np.ndarray) and X.ndim > 2:
            if not len(X):
                raise ValueError(
                    f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 is required."
                )
            return X
        X = listed(X)
        if isinstance(X, list) and X and isinstance(X[0], str | Path | Image.Image):
            return X
        return validate_data(self, X, reset=reset, dtype=np.float32)

    def _loaded(self) -> LoadedModel:
        if self.model is None:
            raise ModelError(
                "ActivationTransformer needs a model: ActivationTransformer('timm:resnet50', 'layer3')"
            )
        loaded = _from_reference(self.model) if isinstance(self.model, str) else as_loaded(self.model)
        return loaded if self.preprocessing is None else replace(loaded, preprocessing=self.preprocessing)

    def _held(self) -> dict[bytes, Array]:
        """Features by sample content, of the model as it is now: other weights are another cache."""
        loaded = self._loaded()
        model = loaded.model
        wanted = repr((self.layers, self.pool, loaded.preprocessing))
        settings = (wanted, backend_of(model).weights_hash(model))
        caches = _CACHES.setdefault(model, {})
        for stale in [key for key in caches if key[1] != settings[1]]:
            del caches[stale]
        return caches.setdefault(settings, {})

    def _run(self, X: Any) -> Array:
        if not len(X):
            return np.empty((0, sum(self.widths_)), np.float32)
        loaded = self._loaded()
        preprocessing = loaded.preprocessing
        images = preprocessing if isinstance(preprocessing, ImagePreprocessing) else None
        found = []
        tap: Tap
        with make_tap(loaded, self.layers, pool=self.pool) as tap:
            engine = backend_of(tap.model).engine(tap, preprocessing=images, precision="float32")
            source = open_samples(X)
            reading = batches(
                source,
                None if source.kind == "array" else preprocessing,
                batch_size=self.batch_size,
                tokenizer=loaded.tokenize,
            )
            for batch in reading:
                if batch.skipped:
                    raise DataError(f"{batch.skipped[0].id} cannot be used: {batch.skipped[0].reason}")
                n = len(batch.records)
                parts = [np.asarray(values).reshape(n, -1) for values in engine(batch.inputs).values()]
                found.append(np.concatenate(parts, axis=1).astype(np.float32, copy=False))
        return np.concatenate(found)


class _Reference:
    """What is pickled in place of a model that can be loaded again."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.reference, self.input_size = loaded.reference, loaded.input_size
        self.weights = backend_of(loaded.model).weights_hash(loaded.model)

    def load(self) -> LoadedModel:
        """The model again. Raises `ModelError` where it has other weights, as from a local file."""
        loaded = load_model(self.reference, input_size=self.input_size)
        if backend_of(loaded.model).weights_hash(loaded.model) != self.weights:
            raise ModelError(
                f"{self.reference} has other weights now than when this transformer was pickled. Load it as "
                "it was, spile.load_model(..., weights=...), and pass it: ActivationTransformer(model, ...)"
            )
        return loaded


_MOST_MODELS = 4
_LOADED: dict[str, LoadedModel] = {}
"""Models by reference, so that clones and folds do not load one again."""
_CACHES: WeakKeyDictionary[Any, dict[tuple[str, str], dict[bytes, Array]]] = WeakKeyDictionary()
"""Features by model, then by settings and weights, then by sample; gone with the model."""


def _from_reference(reference: str) -> LoadedModel:
    if reference not in _LOADED:
        _LOADED[reference] = as_loaded(reference)
        while len(_LOADED) > _MOST_MODELS:
            del _LOADED[next(iter(_LOADED))]
    return _LOADED[reference]


def _content(sample: Any) -> bytes | None:
    """A hash of what a sample holds; ``None`` where that cannot be told, so that it is never cached."""
    if isinstance(sample, Image.Image):
        try:
            sample = read_image(sample)
        except BadSample:  # which the reader names
            return None
    if isinstance(sample, np.ndarray | np.generic):
        head = f"{sample.dtype}{sample.shape}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(sample).tobytes()).digest()
    if not isinstance(sample, str | Path):
        return None
    text = str(sample)
    try:  # a path's file may have changed
        about = Path(text).stat()
        text += f"\0{about.st_mtime_ns}\0{about.st_size}"
    except (OSError, ValueError):
        pass
    return hashlib.sha256(text.encode()).digest()


def _pick(X: Any, rows: Sequence[int]) -> Any:
    return X[list(rows)] if isinstance(X, np.ndarray) else [X[i] for i in rows]


def _width(value: Any) -> int:
    return int(np.prod(tuple(value.shape)[1:], dtype=int))
