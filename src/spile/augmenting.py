"""`guide` and `augment`: maps of where a layer is active, and what is done to images by them."""

from __future__ import annotations

from typing import Any

from spile.augmentation.augmenter import Augmenter
from spile.augmentation.centring import checked_centres
from spile.augmentation.features import FeatureOperation
from spile.augmentation.policies import Policy
from spile.augmentation.reductions import checked_reduce
from spile.augmentation.settings import BankLike, Given, GuideLike, GuideSettings
from spile.backend import backend_named, backend_of
from spile.errors import AugmentationError
from spile.interfaces import AtLayer
from spile.models import as_loaded, example_for
from spile.preprocessing import ImagePreprocessing
from spile.resolution import AddressLike


def guide(
    model: Any,
    at: AddressLike,
    *,
    reduce: str = "l2",
    resolution: float = 1.0,
    centres: str = "fields",
    given: Given = None,
    preprocessing: ImagePreprocessing | None = None,
    example: Any = None,
) -> GuideLike:
    """Make a guide: it says where in each image of a batch a layer is active.

    Called with a batch it gives `spile.augmentation.Maps`, placed to the pixel by the strides and padding on
    the way to the layer. The model is only read: truncated after the layer, in evaluation mode, no gradient
    kept.

    Args:
        model: as of `spile.tap`; its own or another than the one that is trained.
        at: one address: a map of a CNN, or the tokens of a vision transformer.
        reduce: ``"l2"``, ``"mean"``, ``"max"``, ``"pca"``, ``"gradcam"`` or ``"rollout"``, see
            `spile.augmentation.reductions`.
        resolution: sides of what the guide sees as a share of the images' own; 0.5 costs a quarter.
        centres: where a cell lies: ``"fields"``, in the middle of its receptive field, or ``"measured"``,
            where the trained weights look in it (`spile.augmentation.centring`); that is found out once, at
            first use, from a few mirrored pictures, and needs a map of 10 x 10 cells or more.
        given: what the numbers of float images mean: a range, by default (0, 1) in PyTorch and (0, 255) in
            Keras; the `spile.ImagePreprocessing` that was applied to them already; ``"ready"`` for the guide.
        preprocessing: the guide's own; a reference brings it along, a model object does not.
        example: a batch or its shape, as of `spile.tap`; by default the first batch.

    Raises `AugmentationError`, `AddressError`.
    """
    loaded = as_loaded(model)
    if not 0 < resolution <= 4:
        raise AugmentationError(f"resolution={resolution!r}: write a share of the images' sides, e.g. 0.5")
    known = preprocessing or loaded.preprocessing
    settings = GuideSettings(
        at=at,
        reduce=checked_reduce(reduce),
        resolution=resolution,
        centres=checked_centres(centres),
        given=given,
        preprocessing=known if isinstance(known, ImagePreprocessing) else None,
        example=example if example is not None else example_for(loaded),
    )
    return backend_of(loaded.model).guide(loaded.model, settings)


def augment(
    source: GuideLike | BankLike,
    policy: Policy,
    *,
    seed: int = 0,
    maps: str = "guided",
    classes: int | None = None,
    framework: str | None = None,
) -> Augmenter:
    """Make an augmenter: ``augment(images, labels, ids=ids, epoch=epoch)`` changes a batch.

    Args:
        source: a guide, or a `spile.MapBank` of kept maps.
        policy: what is done where, see `spile.augmentation`.
        seed: all random numbers are made of it, the epoch and a sample's id, and of nothing else.
        maps: ``"guided"``, or a placebo to hold it against: ``"permuted"``, ``"random"`` or ``"centre"``.
        classes: how many, for a mix of class numbers.
        framework: ``"torch"`` or ``"keras"``, whose images are changed; by default that of the guide.

    Raises `AugmentationError`.
    """
    if not isinstance(policy, Policy):
        raise AugmentationError(
            f"policy={policy!r} is no policy: write e.g. ByLevel(...) or MapCutMix() of spile.augmentation"
        )
    chosen = framework or getattr(source, "framework", None)
    if chosen not in ("torch", "keras"):
        raise AugmentationError(
            f"framework={framework!r}: write 'torch' or 'keras', as whose images are changed is not known"
        )
    return Augmenter(policy, source, backend_named(chosen).canvas(), seed=seed, maps=maps, classes=classes)


def at_layer(
    model: Any,
    at: AddressLike,
    operation: FeatureOperation,
    *,
    example: Any = None,
    seed: int = 0,
    classes: int | None = None,
) -> AtLayer:
    """Change what a layer gives while the model is trained, without rewriting it.

    Before every training batch, ``labels = layer.step(labels, ids=ids, epoch=epoch)`` draws and says what the
    labels are; a training pass without it raises. In evaluation nothing is changed. ``close`` takes it off.

    Args:
        model: as of `spile.tap`; it is not copied.
        at: one address, of a layer that runs once.
        operation: `spile.augmentation.ManifoldMixup`, `MoEx`, `FeatureDropout`, `FeatureNoise`,
            `SemanticNoise` or `ISDA`.
        example: a batch or its shape, for the dry pass.
        seed: all random numbers are made of it, the epoch and a sample's id.
        classes: how many, where labels are class numbers.

    Raises `AugmentationError`, `AddressError`.
    """
    loaded = as_loaded(model)
    given = example_for(loaded) if example is None else example
    return backend_of(loaded.model).at_layer(
        loaded.model, at, operation, example=given, seed=seed, classes=classes
    )
