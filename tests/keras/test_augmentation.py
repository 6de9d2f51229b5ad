"""Guides, policies and mixes on Keras: the same choices as on PyTorch, on pixels in Keras' order."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from PIL import Image

import spile
from spile.augmentation import (
    AttentionCrop,
    AttentiveCutMix,
    Augmenter,
    Axis,
    ByLevel,
    Frame,
    Grid,
    Inside,
    KeepSalient,
    MapCutMix,
    Maps,
    Outside,
    Photometric,
    Policy,
    Quantile,
    SaliencyMix,
    SnapMix,
    TargetedCutout,
)
from spile.errors import AugmentationError
from spile.keras.augmentation import KerasCanvas

pytestmark = pytest.mark.filterwarnings("ignore:Tensor.T is deprecated on 0-D")  # in Keras on PyTorch

SIDE = 32
GRID = Grid(Axis(8, 4.0, 1.5), Axis(8, 4.0, 1.5))
QUARTER = Quantile(0.75)
IDS = ["a", "b", "c", "d"]
IMAGES = spile.ImagePreprocessing(crop=(SIDE, SIDE))


class Given:
    framework = "keras"
    fingerprint = "by hand"
    preprocessing = None

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, images: Any, labels: Any = None) -> Maps:
        count = len(images)
        return Maps(self.values[:count], (GRID,) * count, (Frame.whole((SIDE, SIDE)),) * count)


def corner(count: int = 4) -> np.ndarray:
    values = np.zeros((count, 8, 8), np.float32)
    values[:, :4, :4] = 1
    return values


def augmenter(policy: Policy, values: np.ndarray | None = None, **options: Any) -> Augmenter:
    return Augmenter(policy, Given(corner() if values is None else values), KerasCanvas(), **options)


def pictures(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)


INVERT = Photometric(lambda pixels: 255 - pixels)
WHITE, BLACK = (layers.RandomBrightness((level, level)) for level in (1.0, -1.0))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="early")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="late")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, name="scores")(x))


@pytest.mark.parametrize("reduce", ["mean", "max", "l2", "pca", "gradcam"])
def test_a_guide_leaves_the_model_as_it_was(model: keras.Model, reduce: str) -> None:
    before = [ops.convert_to_numpy(v.value).copy() for v in model.variables]
    guide = spile.guide(model, "early", reduce=reduce, preprocessing=IMAGES)
    maps = guide(pictures())
    assert maps.values.shape == (4, 16, 16)
    for variable, was in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable.value), was)
    alone = guide(pictures()[2:3])
    np.testing.assert_allclose(alone.values[0], maps.values[2], atol=5e-3)


def test_grad_cam_by_finite_differences(model: keras.Model) -> None:
    """The score's change along a nudge of the activation is its gradient there."""
    from spile.keras.attributing import score_gradients
    from spile.keras.taps import Tap

    image = pictures(1).astype(np.float32) / 255
    value, gradient = score_gradients(Tap(model, "late", pool=None, example=image), image, np.array([2]))
    kernel = ops.convert_to_numpy(model.get_layer("scores").kernel)
    cells = value.shape[1] * value.shape[2]
    expected = np.broadcast_to(kernel[:, 2] / cells, value.shape[1:])
    np.testing.assert_allclose(ops.convert_to_numpy(gradient)[0], expected, atol=1e-6)


def test_measured_centres_are_where_the_weights_look() -> None:
    inputs = keras.Input((64, 64, 3))
    convolution = layers.Conv2D(3, 5, strides=4, padding="same", use_bias=False, name="one")
    model = keras.Model(inputs, layers.Conv2D(2, 1)(convolution(inputs)))
    kernel = np.zeros((5, 5, 3, 3), np.float32)
    kernel[0, 4] = np.eye(3)
    convolution.set_weights([kernel])
    seen = np.zeros((1, 64, 64, 3), np.uint8)
    images = spile.ImagePreprocessing(crop=(64, 64))
    fields, own = (
        spile.guide(model, "one", centres=centres, preprocessing=images)(seen).grids[0]
        for centres in ("fields", "measured")
    )
    middle = fields.rows.first
    assert own.rows.first == pytest.approx(middle - 2, abs=0.4)
    assert own.columns.first == pytest.approx(middle + 2, abs=0.4)


def test_the_guide_normalises_for_itself(model: keras.Model) -> None:
    pixels = pictures()
    expected = ops.convert_to_numpy(spile.guide(model, "early", preprocessing=IMAGES).ready(pixels))
    reference = (pixels / 255 - np.array(IMAGES.mean)) / np.array(IMAGES.std)
    np.testing.assert_allclose(expected, reference, atol=1e-4)
    for given, form in ((None, pixels), ((0, 1), pixels / 255), ((-1, 1), pixels / 127.5 - 1)):
        guide = spile.guide(model, "early", preprocessing=IMAGES, given=given)
        np.testing.assert_allclose(
            ops.convert_to_numpy(guide.ready(form.astype(np.float32))), expected, atol=1e-4
        )
    with pytest.raises(AugmentationError, match=r"told 0\.\.255"):
        spile.guide(model, "early", preprocessing=IMAGES).ready(pixels.astype(np.float32) / 255)
    with pytest.raises(AugmentationError, match="write preprocessing="):
        spile.guide(model, "early").ready(pixels)


def vit() -> keras.Model:
    keras.utils.set_random_seed(1)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(8, 8, strides=8, name="patches")(inputs)
    x = layers.Reshape((16, 8))(x)
    for number in range(2):
        attend = layers.MultiHeadAttention(2, 4, name=f"attend{number}")
        x = layers.LayerNormalization(name=f"block{number}")(x + attend(x, x))
    return keras.Model(inputs, layers.Dense(5)(layers.GlobalAveragePooling1D()(x)))


def test_rollout_asks_attention_layers_for_one_pass_only() -> None:
    """By hand: the matrices that each layer gives when it is asked for them."""
    from spile.augmentation import reductions

    made, images = vit(), pictures().astype(np.float32) / 255
    expected = ops.convert_to_numpy(made(images, training=False))
    maps = spile.guide(made, "block1", reduce="rollout", given="ready")(images)
    assert maps.values.shape == (4, 4, 4)
    x = ops.reshape(made.get_layer("patches")(images), (4, 16, 8))
    matrices = []
    for number in range(2):
        given, scores = made.get_layer(f"attend{number}")(x, x, return_attention_scores=True)
        matrices.append(ops.convert_to_numpy(scores))
        x = made.get_layer(f"block{number}")(x + given)
    rows = reductions.rollout(matrices, 0).reshape(4, 4, 4)
    low, high = rows.min((1, 2), keepdims=True), rows.max((1, 2), keepdims=True)
    np.testing.assert_allclose(maps.values, (rows - low) / (high - low), atol=5e-3)
    np.testing.assert_array_equal(ops.convert_to_numpy(made(images, training=False)), expected)
    assert not any("call" in vars(layer) for layer in made.layers)
    assert maps.grids == spile.guide(made, "block1", given="ready")(images).grids


def test_rollout_needs_self_attention(model: keras.Model) -> None:
    with pytest.raises(
        AugmentationError, match=r"keras\.layers\.MultiHeadAttention, and this guide has none"
    ):
        spile.guide(model, "early", reduce="rollout", given="ready")(pictures().astype(np.float32))


# ------------------------------------------------------------------------------------------- policies


def test_inside_and_outside_change_their_part_alone() -> None:
    images = pictures()
    inside = augmenter(Inside(INVERT, QUARTER, soft=False))(images, ids=IDS).images
    np.testing.assert_array_equal(inside[:, :16, :16], 255 - images[:, :16, :16])
    np.testing.assert_array_equal(inside[:, 16:], images[:, 16:])
    outside = augmenter(Outside(INVERT, QUARTER, soft=False))(images, ids=IDS).images
    np.testing.assert_array_equal(outside[:, :16, :16], images[:, :16, :16])
    np.testing.assert_array_equal(outside[:, 16:], 255 - images[:, 16:])


def test_tensors_come_back_as_tensors() -> None:
    images = ops.convert_to_tensor(pictures().astype(np.float32))
    found = augmenter(Inside(INVERT, QUARTER))(images, ids=IDS).images
    assert ops.is_tensor(found)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"


@pytest.mark.parametrize(
    "operation",
    [
        layers.RandomFlip("horizontal"),
        layers.RandomRotation(0.1),
        layers.RandomTranslation(0.2, 0.2),
        layers.RandomZoom(0.2),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_content_and_mask_move_together(operation: Any) -> None:
    mask = np.zeros((1, SIDE, SIDE), np.float32)
    mask[0, 8:24, 12:28] = 1
    image = np.repeat(mask[0, :, :, None], 3, axis=-1) * 255
    moved = False
    for key in range(1, 6):
        done = KerasCanvas().operate(operation, image, mask, None, key * 2**33 + key)
        content, inside = done.image[:, :, 0] > 127, np.asarray(done.masks)[0] > 0.5
        assert (content & inside).sum() / (content | inside).sum() >= 0.95
        moved |= done.moved
    assert moved


def test_masks_and_boxes_move_along() -> None:
    images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    images[:, :16, :16] = 255
    targets = [
        {
            "segmentation_masks": (images[0, :, :, 0] > 0).astype(np.int32),
            "bounding_boxes": {"boxes": np.array([[0.0, 0, 16, 16]], np.float32), "labels": np.array([1])},
        }
    ]
    flip = layers.RandomFlip("horizontal", bounding_box_format="xyxy")
    for epoch in range(8):
        result = augmenter(Inside(flip, QUARTER))(images, ids=["a"], targets=targets, epoch=epoch)
        if result.images[0, 0, 31, 0] == 255:
            break
    np.testing.assert_array_equal(result.targets[0]["segmentation_masks"] > 0, result.images[0, :, :, 0] > 0)
    assert result.targets[0]["segmentation_masks"].dtype == np.int32
    np.testing.assert_allclose(result.targets[0]["bounding_boxes"]["boxes"], [[16, 0, 32, 16]])


@pytest.mark.parametrize("name", ["boxes", "masks", "keypoints"])
def test_targets_that_would_stay_are_refused_where_pixels_move(name: str) -> None:
    targets = [{name: np.zeros((4, 4)), "labels": np.arange(4)}] * 4
    words = f"target '{name}' would stay where it is .* segmentation_masks, bounding_boxes, labels"
    with pytest.raises(AugmentationError, match=words):
        augmenter(Inside(layers.RandomRotation((0.1, 0.2)), QUARTER))(pictures(), ids=IDS, targets=targets)
    still = augmenter(Inside(layers.RandomBrightness(0.5), QUARTER))(pictures(), ids=IDS, targets=targets)
    assert still.targets == targets


def test_a_mask_alone_is_refused_where_pixels_move_and_a_label_stays() -> None:
    turn = augmenter(Inside(layers.RandomRotation((0.1, 0.2)), QUARTER))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for target in (mask, Image.fromarray(mask), [{"bbox": [0, 0, 8, 8]}]):
        with pytest.raises(AugmentationError, match="the target would stay where it is"):
            turn.transform(pictures(1)[0], target, id=0)
    assert turn.transform(pictures(1)[0], 7, id=0)[1] == 7
    assert augmenter(Inside(INVERT, QUARTER)).transform(pictures(1)[0], mask, id=0)[1] is mask


def test_a_pipeline_is_taken_layer_by_layer() -> None:
    images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    pipeline = layers.Pipeline([WHITE, layers.RandomFlip("horizontal"), BLACK])
    found = [
        augmenter(Inside(pipeline, QUARTER, soft=False))(images, ids=["a"], epoch=e).images for e in range(6)
    ]
    assert not any(each.any() for each in found)  # whatever was white was flipped with its region


def test_what_is_not_known_not_to_move_pixels_is_refused() -> None:
    with pytest.raises(AugmentationError, match="wrap a function that does not"):
        augmenter(Inside(lambda x: x, QUARTER))(pictures(), ids=IDS)


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (layers.MixUp(), r"take the policy spile\.augmentation\.MapCutMix\(\)"),
        (layers.CutMix(), r"take the policy spile\.augmentation\.MapCutMix\(\)"),
        (layers.AugMix((0, 255)), r"use it in spile\.augmentation\.KeepSalient"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_layers_that_would_mix_masks_are_refused(operation: Any, words: str) -> None:
    with pytest.raises(AugmentationError, match=f"{type(operation).__name__} mixes images, .*{words}"):
        augmenter(Inside(operation, QUARTER))(pictures(), ids=IDS)


def test_grey_inside() -> None:
    images = pictures()
    grey = augmenter(Inside(layers.RandomGrayscale(1.0), QUARTER, soft=False))(images, ids=IDS).images
    np.testing.assert_array_equal(grey[:, 16:], images[:, 16:])
    assert (np.ptp(grey[:, :16, :16].astype(int), axis=-1) == 0).all()


def test_layers_of_channels_first_are_refused_and_ours_are_not_of_them() -> None:
    flip = layers.RandomFlip("horizontal", data_format="channels_first")
    for policy in (Inside, KeepSalient):
        with pytest.raises(AugmentationError, match=r"RandomFlip takes .*write data_format='channels_last'"):
            augmenter(policy(flip, QUARTER))(pictures(), ids=IDS)
    keras.config.set_image_data_format("channels_first")
    try:
        ours = [layer for strength in ("weak", "strong") for layer in KerasCanvas().standard(strength)]
        assert {layer.data_format for layer in ours} == {"channels_last"}
        changed = augmenter(Inside(ours, QUARTER))(pictures(), ids=IDS).images
        jitter = layers.RandomColorJitter((0, 255), 0.1, data_format="channels_last")
        with pytest.raises(
            AugmentationError, match="in RandomColorJitter, to which Keras hands no data_format on"
        ):
            augmenter(Inside(jitter, QUARTER))(pictures(), ids=IDS)
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_array_equal(changed, augmenter(Inside(ours, QUARTER))(pictures(), ids=IDS).images)
    assert (changed != pictures()).any()


@pytest.mark.parametrize("mode", ["P", "RGBA", "1"])
def test_pictures_of_other_modes_are_refused(mode: str) -> None:
    picture = Image.fromarray(pictures(1)[0])
    augment = augmenter(Inside(INVERT, QUARTER))
    assert augment.transform(picture).mode == "RGB"
    with pytest.raises(AugmentationError, match=rf"mode '{mode}': .*image\.convert\(\"RGB\"\)"):
        augment.transform(picture.convert(mode))


@pytest.mark.zoo  # on JAX the layer compiles for half a minute
def test_rand_augment_pastes_the_region_back() -> None:
    images = pictures()
    kept = augmenter(KeepSalient(layers.RandAugment(), QUARTER, soft=False))(images, ids=IDS).images
    np.testing.assert_array_equal(kept[:, :16, :16], images[:, :16, :16])
    assert (kept != images).any()


def test_crop_shows_the_active_part() -> None:
    images = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    images[:, :16, :16] = 200
    targets = [{"segmentation_masks": images[0, :, :, 0] // 200}]
    found = augmenter(AttentionCrop(QUARTER, margin=0))(images, ids=["a"], targets=targets)
    assert (found.images == 200).all()
    assert (found.targets[0]["segmentation_masks"] == 1).all()


@pytest.mark.parametrize("policy", [MapCutMix(), SaliencyMix(), AttentiveCutMix()])
def test_labels_count_by_the_exact_share_of_pixels(policy: Any) -> None:
    values = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    images = np.broadcast_to((10 * np.arange(8, dtype=np.uint8))[:, None, None, None], (8, SIDE, SIDE, 3))
    result = augmenter(policy, values, classes=8)(images, np.arange(8), ids=range(8))
    counted = np.stack([(result.images[..., 0] == 10 * k).mean((1, 2)) for k in range(8)], axis=1)
    np.testing.assert_allclose(result.labels, counted, atol=1e-6)


def test_a_column_of_labels_is_mixed_as_they_are() -> None:
    mix = augmenter(MapCutMix(), classes=4)
    plain, column = (
        mix(pictures(), labels, ids=IDS).labels for labels in (np.arange(4), np.arange(4)[:, None])
    )
    np.testing.assert_array_equal(column, plain)
    images, labels, _ = mix(pictures()[:0], np.zeros(0, int), ids=[])
    assert (images.shape, labels.shape) == ((0, SIDE, SIDE, 3), (0, 4))


# ----------------------------------------------------------------------------------------- randomness


@pytest.mark.parametrize(
    "policy",
    [
        Inside([layers.RandomBrightness(0.5), layers.RandomFlip()], QUARTER),
        ByLevel(QUARTER, low=layers.RandomColorJitter((0, 255), 0.3, 0.3), high=layers.RandomContrast(0.4)),
        TargetedCutout(),
    ],
    ids=["inside", "bylevel", "cutout"],
)
def test_seed_epoch_and_id_decide(policy: Policy) -> None:
    images = np.repeat(pictures(1), 4, axis=0)

    def run(ids: list[str] = IDS, **options: Any) -> np.ndarray:
        found: np.ndarray = augmenter(policy, **{k: v for k, v in options.items() if k == "seed"})(
            images, ids=ids, epoch=options.get("epoch", 0)
        ).images
        return found

    first = run()
    assert len({row.tobytes() for row in first}) == 4
    np.testing.assert_array_equal(run(), first)
    np.testing.assert_array_equal(run(IDS[::-1])[::-1], first)
    assert (run(epoch=1) != first).any()
    assert (run(seed=1) != first).any()


def test_a_layer_s_own_random_state_is_untouched() -> None:
    layer = layers.RandomBrightness(0.5, seed=3)
    before = ops.convert_to_numpy(layer.generator.state.value).copy()
    augmenter(Inside(layer, QUARTER))(pictures(), ids=IDS)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer.generator.state.value), before)


def test_snapmix_and_mass() -> None:
    values = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32) ** 4
    snap = augmenter(SnapMix(), values, classes=4)(pictures(), np.arange(4), ids=IDS)
    assert not np.allclose(snap.labels.sum(1), 1)
    mass = augmenter(MapCutMix(labels="mass"), values, classes=4)(pictures(), np.arange(4), ids=IDS)
    np.testing.assert_allclose(mass.labels.sum(1), 1, atol=1e-6)


def test_photometric_functions() -> None:
    found = augmenter(Inside(Photometric(lambda x: x * 0), QUARTER, soft=False))(pictures(), ids=IDS).images
    assert not found[:, :16, :16].any()


def test_a_function_in_place_changes_its_band_alone() -> None:
    def darkened(pixels: np.ndarray) -> np.ndarray:
        pixels[:] = 0
        return pixels

    images = pictures().clip(1)
    given = images.copy()
    inside = augmenter(Inside(Photometric(darkened), QUARTER, soft=False))(images, ids=IDS).images
    np.testing.assert_array_equal(images, given)
    np.testing.assert_array_equal(inside[:, 16:], given[:, 16:])
    assert not inside[:, :16, :16].any()
    kept = augmenter(KeepSalient(Photometric(darkened), QUARTER, soft=False))(images, ids=IDS).images
    np.testing.assert_array_equal(images, given)
    np.testing.assert_array_equal(kept[:, :16, :16], given[:, :16, :16])


# ------------------------------------------------------------------------------------------- at a layer


@pytest.fixture
def still() -> keras.Model:
    """The same in training as in evaluation."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="early")(inputs)
    x = layers.Conv2D(8, 3, strides=2, padding="same", name="late")(x)
    return keras.Model(inputs, layers.Dense(5, name="scores")(layers.GlobalAveragePooling2D()(x)))


def test_mixing_at_a_layer_is_that_of_pytorch(still: keras.Model) -> None:
    """What is drawn is NumPy's, so both frameworks mix alike; labels are exact."""
    from spile.augmentation import ManifoldMixup
    from spile.augmentation.features import plan
    from spile.augmentation.randomness import Draw

    images = pictures().astype(np.float32) / 255
    early = ops.convert_to_numpy(spile.tap(still, "early", pool=None)(images)["early"])
    expected = ops.convert_to_numpy(still(images, training=False))
    layer = spile.at_layer(still, "early", ManifoldMixup(), classes=5, seed=3)
    np.testing.assert_array_equal(ops.convert_to_numpy(still(images, training=False)), expected)
    labels = layer.step(np.arange(4), ids=IDS, epoch=1)
    found = ops.convert_to_numpy(still(images, training=True))
    drawn = plan(ManifoldMixup(), IDS, Draw(3, 1))
    own = drawn.own.reshape(-1, 1, 1, 1)
    mixed = own * early + (1 - own) * early[drawn.partners]
    rest = keras.Model(still.get_layer("early").output, still.output)
    layer.close()
    np.testing.assert_allclose(found, ops.convert_to_numpy(rest(mixed.astype(np.float32))), atol=1e-4)
    hot = np.eye(5)[:4]
    np.testing.assert_allclose(
        labels, drawn.own[:, None] * hot + (1 - drawn.own[:, None]) * hot[drawn.partners], atol=1e-6
    )
    assert not any("call" in vars(each) for each in (still, still.get_layer("early")))
    np.testing.assert_array_equal(ops.convert_to_numpy(still(images, training=False)), expected)


def test_evaluation_is_not_changed_and_a_training_pass_without_step_raises(still: keras.Model) -> None:
    from spile.augmentation import ManifoldMixup
    from spile.errors import CaptureError

    images = pictures().astype(np.float32) / 255
    plain = ops.convert_to_numpy(still(images, training=False))
    with spile.at_layer(still, "early", ManifoldMixup(), classes=5) as layer:
        with pytest.raises(CaptureError, match=r"call step.*before every training batch"):
            still(images, training=True)
        layer.step(np.arange(4), ids=IDS, epoch=0)
        for given in ({}, {"training": False}):
            np.testing.assert_array_equal(ops.convert_to_numpy(still(images, **given)), plain)
        assert np.abs(ops.convert_to_numpy(still(images, training=True)) - plain).max() > 0


def test_a_model_that_is_not_told_whether_it_trains() -> None:
    from spile.augmentation import ManifoldMixup

    class Plain(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.early = layers.Dense(3, name="early")

        def call(self, x: Any) -> Any:
            return self.early(x)

    rows, model = np.random.default_rng(0).random((4, 6), np.float32), Plain()
    plain = ops.convert_to_numpy(model(rows))
    with spile.at_layer(model, "early", ManifoldMixup(), example=rows, classes=5) as layer:
        np.testing.assert_array_equal(ops.convert_to_numpy(model(rows)), plain)
        layer.step(np.arange(4), ids=IDS, epoch=0)
        assert np.abs(ops.convert_to_numpy(model(rows)) - plain).max() > 0


def test_a_compiled_step_is_noticed(still: keras.Model) -> None:
    from spile.augmentation import FeatureNoise
    from spile.errors import CaptureError

    with spile.at_layer(still, "early", FeatureNoise(), classes=5) as layer:
        layer.step(np.arange(4), ids=IDS, epoch=0)
        with pytest.raises(CaptureError, match="did not run in training since the last step"):
            layer.step(np.arange(4), ids=IDS, epoch=0)


def test_isda_is_that_of_the_paper(still: keras.Model) -> None:
    """The bound by brute force (equation 6), for both covariances; noise of the class at every place."""
    from spile.augmentation import ISDA, SemanticNoise

    images, labels = pictures(6).astype(np.float32) / 255, np.arange(6) % 3
    pooled = next(each for each in still.layers if isinstance(each, layers.GlobalAveragePooling2D))
    kernel = ops.convert_to_numpy(still.get_layer("scores").kernel)
    features = ops.convert_to_numpy(spile.tap(still, pooled.name, pool=None)(images)[pooled.name])
    ids = [f"s{i}" for i in range(6)]
    for covariance in ("diagonal", "full"):
        with spile.at_layer(still, pooled.name, ISDA(0.8, covariance), classes=5) as layer:
            layer.step(labels, ids=ids, epoch=0, progress=0.5)
            logits = still(images, training=True)
            bound = ops.convert_to_numpy(layer.bound(logits, still.get_layer("scores").kernel))
        expected = ops.convert_to_numpy(logits).copy()
        for i, y in enumerate(labels):
            sigma = np.cov(features[labels == y].T, bias=True)
            sigma = np.diag(np.diag(sigma)) if covariance == "diagonal" else sigma
            for j in range(5):
                v = kernel[:, j] - kernel[:, y]
                expected[i, j] += 0.4 / 2 * v @ sigma @ v
        np.testing.assert_allclose(bound, expected, atol=1e-5)
    early = ops.convert_to_numpy(spile.tap(still, "early", pool=None)(images)["early"])
    short = keras.Model(still.input, still.get_layer("early").output)
    with spile.at_layer(short, "early", SemanticNoise(0.5), classes=5) as layer:
        layer.step(labels, ids=ids, epoch=0, progress=1.0)
        added = ops.convert_to_numpy(short(images, training=True)) - early
    assert np.abs(added).max() > 0
    np.testing.assert_allclose(added, np.broadcast_to(added[:, :1, :1], added.shape), atol=1e-5)
