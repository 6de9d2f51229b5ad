"""What heads of Keras models are trained towards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy.special import log_softmax, softmax

import spile
from spile.errors import SupervisionError
from spile.supervision import Labels, PseudoLabels, SelfDistill, SmoothedLabels, Target, Teacher

CLASSES = 3
ROWS = 12


def network(seed: int, channels: int = 6) -> keras.Model:
    keras.utils.set_random_seed(seed)
    start = keras.Input((6, 6, 2))
    x = layers.Conv2D(channels, 3, padding="same", activation="relu", name="middle")(start)
    x = layers.Conv2D(channels, 3, strides=2, activation="relu", name="late")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(start, layers.Dense(CLASSES, name="last")(x), name="network")


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(0).normal(size=(ROWS, 6, 6, 2)).astype("float32")


LABELS = np.arange(ROWS) % (CLASSES + 1) - 1
UNLABELLED = LABELS < 0


def supervise(*targets: Target, base: keras.Model | None = None, **options: Any) -> Any:
    base = base or network(0)
    given = {"num_classes": CLASSES, "taps": ["middle"], "head": "linear", "targets": targets, "weight": 1.0}
    return spile.supervise(base, **given | options)


def numpy(value: Any) -> Any:
    return ops.convert_to_numpy(ops.stop_gradient(value))


def scalars(supervised: Any, x: Any, **options: Any) -> dict[str, float]:
    given = {"progress": 0.0, "training": False} | options
    return supervised.loss(supervised(x), LABELS, **given).scalars()


def logits(supervised: Any, x: Any) -> tuple[Any, Any]:
    output = supervised(x)
    return numpy(output.main), numpy(output.aux["middle"])


# --- pseudo-labels ----------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["main", "given", "ema"])
def test_confident_predictions_teach_the_rows_without_labels(source: Any, x: Any) -> None:
    base = network(0)
    soft = softmax(np.random.default_rng(1).normal(size=(ROWS, CLASSES)), -1).astype("float32")
    given = soft if source == "given" else softmax(numpy(base(x)), -1)  # the average begins as the model
    threshold = float(np.median(given.max(-1)))
    confident, predicted = given.max(-1) >= threshold, given.argmax(-1)
    supervised = supervise(PseudoLabels(source=source, threshold=threshold), base=base)
    _, head = logits(supervised, x)
    each = -log_softmax(head, -1)[np.arange(ROWS), predicted]
    found = scalars(supervised, x, soft_labels=soft)
    assert found["middle/pseudo_labels"] == pytest.approx(
        (each * confident * UNLABELLED).sum() / UNLABELLED.sum(), rel=1e-4
    )
    assert found["middle/coverage"] == pytest.approx(confident[UNLABELLED].mean())
    sure = confident & ~UNLABELLED
    assert 0 < sure.sum() < ROWS
    assert found["middle/precision"] == pytest.approx((predicted == LABELS)[sure].mean())


def test_adaptive_thresholds_follow_the_confidence_of_unlabelled_rows(x: Any) -> None:
    target = PseudoLabels(threshold="adaptive", decay=0.9)
    supervised = supervise(target)
    probabilities = softmax(logits(supervised, x)[0], -1)[UNLABELLED]
    (kept,) = supervised._states.thresholds.values()
    scalars(supervised, x)
    assert float(numpy(kept.confidence.value)) == pytest.approx(1 / CLASSES)  # an evaluation moves nothing
    scalars(supervised, x, training=True)
    confidence = 0.9 / CLASSES + 0.1 * probabilities.max(-1).mean()
    classes = 0.9 / CLASSES + 0.1 * probabilities.mean(0)
    assert float(numpy(kept.confidence.value)) == pytest.approx(confidence, rel=1e-5)
    np.testing.assert_allclose(numpy(kept.classes.value), classes, rtol=1e-5)
    found = numpy(kept.of(ops.convert_to_tensor(np.arange(CLASSES))))
    np.testing.assert_allclose(found, confidence * classes / classes.max(), rtol=1e-5)


def test_an_average_follows_the_model_slowly(x: Any) -> None:
    supervised = supervise(PseudoLabels(source="ema", decay=0.75))
    supervised.compile(optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)
    (shadow,) = supervised._states.moving.values()
    start = [numpy(v) for v in shadow.state]
    supervised.train_on_batch(x, LABELS)
    after = [ops.convert_to_numpy(v) for v in supervised.base.variables]
    for old, now in zip(start, shadow.state, strict=True):  # the step is taken in with the next batch
        np.testing.assert_allclose(numpy(now), old, rtol=1e-6)
    supervised.train_on_batch(x, LABELS)
    for old, new, now in zip(start, after, shadow.state, strict=True):
        np.testing.assert_allclose(numpy(now), 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-6)


# --- smoothed labels --------------------------------------------------------------------------------


def test_earlier_predictions_of_a_row_are_its_label(x: Any) -> None:
    supervised = supervise(SmoothedLabels(samples=40, decay=0.6))
    ids = 3 * np.arange(ROWS)
    main, head = logits(supervised, x)
    assert scalars(supervised, x, ids=ids, training=True)["middle/smoothed_labels"] == 0  # never seen
    wanted = softmax(main, -1)  # without the bias towards the zeros it began with
    expected = -(wanted * log_softmax(head, -1)).sum(-1)
    found = scalars(supervised, x, ids=ids)["middle/smoothed_labels"]
    assert found == pytest.approx(expected.mean(), rel=1e-4)
    half = np.where(np.arange(ROWS) < 6, ids, 3 * np.arange(ROWS) + 1)
    assert scalars(supervised, x, ids=half)["middle/smoothed_labels"] == pytest.approx(
        expected[:6].mean(), rel=1e-4
    )


def test_rows_that_do_not_exist_teach_nothing(x: Any) -> None:
    """JAX would clamp the numbers, and mix the last row's average with that of others."""
    supervised = supervise(SmoothedLabels(samples=4))
    (averages,) = supervised._states.averages.values()
    scalars(supervised, x, ids=np.arange(ROWS) + 4, training=True)
    assert not numpy(averages.sums.value).any() and not numpy(averages.seen.value).any()
    with pytest.raises(SupervisionError, match=r"SmoothedLabels needs ids.*y=\{'labels': y, 'ids': rows"):
        scalars(supervised, x)


# --- teachers ---------------------------------------------------------------------------------------


def test_deeper_predictions(x: Any) -> None:
    for source in ("main", "ensemble"):
        supervised = supervise(SelfDistill(source=source, temperature=2.0))  # type: ignore[arg-type]
        main, head = logits(supervised, x)
        teacher = main if source == "main" else (main + head) / 2
        expected = -(softmax(teacher / 2, -1) * log_softmax(head / 2, -1)).sum(-1).mean() * 4
        assert scalars(supervised, x)["middle/self_distill"] == pytest.approx(expected, rel=1e-4)


def test_the_hint_of_self_distillation_compares_with_the_final_features(x: Any) -> None:
    supervised = supervise(SelfDistill(hint=0.5))
    found = scalars(supervised, x)
    with spile.tap(supervised.base, {"own": "middle", "final": "pool"}, pool={"own": "avg"}) as tap:
        features = {name: numpy(value) for name, value in tap(x).items()}
    assert not supervised._states.adapters  # both are of one width
    expected = ((features["own"] - features["final"]) ** 2).mean()
    assert found["middle/self_distill_hint"] == pytest.approx(expected, rel=1e-4)
    total = found["main/labels"] + found["middle/self_distill"] + 0.5 * found["middle/self_distill_hint"]
    assert found["loss"] == pytest.approx(total, rel=1e-5)


def test_teachers_teach_and_are_not_trained(x: Any) -> None:
    logits_of, looked_at = network(1), network(2, channels=5)
    targets = [
        Teacher(model=logits_of, temperature=3.0),
        Teacher(model=looked_at, kind="hint", at="late"),
        Teacher(model=looked_at, kind="attention", at={"middle": "middle"}),
    ]
    flags = [v.trainable for v in (*logits_of.variables, *looked_at.variables)]
    supervised = supervise(*targets)
    _, head = logits(supervised, x)
    teacher = numpy(logits_of(x))
    found = scalars(supervised, x)
    expected = -(softmax(teacher / 3, -1) * log_softmax(head / 3, -1)).sum(-1).mean() * 9
    assert found["middle/teacher_logits"] == pytest.approx(expected, rel=1e-4)
    assert found["middle/teacher_hint"] > 0 and found["middle/teacher_attention"] > 0
    before = [numpy(v.value) for v in (*logits_of.variables, *looked_at.variables)]
    count = len(supervised.trainable_variables)
    assert count == len(supervised.base.trainable_variables) + 2 + 2  # head, and the projection of the hint
    supervised.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    supervised.train_on_batch(x, LABELS)
    for old, new in zip(before, (*logits_of.variables, *looked_at.variables), strict=True):
        np.testing.assert_array_equal(old, numpy(new.value))
    assert [v.trainable for v in (*logits_of.variables, *looked_at.variables)] == flags


def test_a_teacher_that_ends_with_a_softmax_teaches_its_logits(x: Any) -> None:
    """As those of keras.applications do: taken for logits, probabilities would teach next to nothing."""
    plain = network(1)
    soft = keras.Model(plain.input, layers.Softmax()(plain.output))
    found = [scalars(supervise(Teacher(model=each)), x)["middle/teacher_logits"] for each in (plain, soft)]
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_a_teacher_by_reference(x: Any, tmp_path: Path) -> None:
    network(1).save(tmp_path / "teacher.keras")
    supervised = supervise(Teacher(model=str(tmp_path / "teacher.keras"), temperature=3.0))
    head, teacher = logits(supervised, x)[1], numpy(network(1)(x))
    expected = -(softmax(teacher / 3, -1) * log_softmax(head / 3, -1)).sum(-1).mean() * 9
    assert scalars(supervised, x)["middle/teacher_logits"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(SupervisionError, match=r"the teacher is a int: a Keras model needs a keras\.Model"):
        supervise(Teacher(model=3))


def test_two_teachers_are_two(x: Any) -> None:
    one, other = network(1), network(2)
    found = scalars(supervise(Teacher(model=one), Teacher(model=other)), x)
    assert found["middle/teacher_logits"] != pytest.approx(found["middle/teacher_logits_2"])


def test_teachers_that_do_not_fit(x: Any) -> None:
    with pytest.raises(SupervisionError, match=r"gives \[6\], which is not like the map of 'middle'"):
        supervise(Teacher(model=network(1), kind="hint", at="pool"))
    with pytest.raises(SupervisionError, match="but not the head 'middle'"):
        supervise(Teacher(model=network(1), kind="hint", at={"late": "late"}))
    with pytest.raises(SupervisionError, match="the main output has no features"):
        supervise(targets={"main": Teacher(model=network(1), kind="hint", at="late")})


# --- all of them ------------------------------------------------------------------------------------


def test_every_target_in_one_compiled_model(x: Any, tmp_path: Path) -> None:
    targets = [
        Labels(smoothing=0.1),
        PseudoLabels(threshold="adaptive"),
        PseudoLabels(source="ema", threshold=0.3),
        PseudoLabels(source="given"),
        SelfDistill(hint=0.1),
        Teacher(model=network(1)),
        Teacher(model=network(2), kind="hint", at="middle"),
        SmoothedLabels(samples=ROWS),
    ]
    supervised = supervise(*targets)
    supervised.compile(optimizer="adam")
    soft = np.full((ROWS, CLASSES), 1 / CLASSES, "float32")
    y = {"labels": LABELS, "ids": np.arange(ROWS), "soft_labels": soft}
    history = supervised.fit(x, y, epochs=2, batch_size=6, verbose=0).history
    told = {name: values for name, values in history.items() if not name.endswith("/precision")}
    assert all(np.isfinite(values).all() for values in told.values())  # precision: of no confident row
    assert history["middle/smoothed_labels"][0] == 0 < history["middle/smoothed_labels"][1]
    supervised.save(tmp_path / "s.keras")
    again = keras.saving.load_model(tmp_path / "s.keras")
    same = {"soft_labels": soft, "ids": np.arange(ROWS)}
    found, expected = scalars(again, x, **same), scalars(supervised, x, **same)
    assert found == pytest.approx(expected, rel=1e-5, nan_ok=True)
