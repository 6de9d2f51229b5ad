"""Keras models with auxiliary heads: trained, saved, and given back untouched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile.errors import SupervisionError
from spile.keras.runtime import runtime
from spile.supervision import Aggregated, Bottleneck, Constant, Labels, LinearDecay, SelfDistill, Uncertainty

CLASSES = 3
ROWS = 16


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.normal(size=(ROWS, 8, 8, 3)).astype("float32"), random.integers(0, CLASSES, ROWS)


def network(*, activation: str | None = "softmax") -> keras.Model:
    start = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="early")(start)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.ReLU(name="middle")(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="late")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(start, layers.Dense(CLASSES, activation=activation, name="last")(x), name="network")


class Subclassed(keras.Model):
    """Its head is inside a model of its own, and its output is a dict."""

    def __init__(self) -> None:
        super().__init__()
        start = keras.Input((8, 8, 3))
        inner = layers.Conv2D(8, 3, strides=2, activation="relu", name="inner")(start)
        self.body = keras.Model(start, layers.Conv2D(8, 3, activation="relu")(inner))
        self.last = layers.Dense(CLASSES)

    def call(self, x: Any, training: Any = None) -> dict[str, Any]:
        return {"logits": self.last(ops.mean(self.body(x), axis=(1, 2))), "other": x}


def supervise(base: keras.Model, **options: Any) -> Any:
    given = {"num_classes": CLASSES, "taps": ["middle"], "head": "linear", "example": (2, 8, 8, 3)}
    return spile.supervise(base, **given | options)


def gradients(
    supervised: Any,
    x: Any,
    y: Any,
    pick: Callable[[Any], Any],
    variables: Sequence[Any],
) -> list[Any]:
    """Of what `pick` takes of a loss; zeros where there is none."""

    def body(values: Any) -> list[Any]:
        mapping = None if values is None else list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            loss = supervised.loss(
                supervised(ops.convert_to_tensor(x), training=True), y, progress=0, training=False
            )
        return [pick(loss)]

    (found,) = runtime().gradients(body, variables)
    return [np.zeros(v.shape) if g is None else g for g, v in zip(found, variables, strict=True)]


def numpy(value: Any) -> Any:
    return ops.convert_to_numpy(ops.stop_gradient(value))


def values(model: keras.Model) -> list[Any]:
    return [ops.convert_to_numpy(variable) for variable in model.variables]


# --- as any Keras model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(data: tuple[Any, Any]) -> tuple[Any, dict[str, list[float]]]:
    """Compiled as the backend does it, on one `y`, with a validation set."""
    keras.utils.set_random_seed(0)
    supervised = supervise(network(), taps=["middle", "late"], weight=LinearDecay(0.4, end=0.5))
    supervised.compile(optimizer=keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    history = supervised.fit(*data, epochs=4, batch_size=4, validation_data=data, verbose=0).history
    return supervised, history


def test_every_head_learns_from_one_y(fitted: tuple[Any, dict[str, list[float]]]) -> None:
    _, history = fitted
    for head in ("main", "middle", "late"):
        assert len(history[f"{head}/labels"]) == len(history[f"val_{head}/accuracy"]) == 4
    assert history["main/labels"][-1] < history["main/labels"][0]
    assert history["late/labels"][1] < history["late/labels"][0]
    assert history["accuracy"] == pytest.approx(history["main/accuracy"])


def test_weights_follow_the_schedule_inside_the_compiled_step(
    fitted: tuple[Any, dict[str, list[float]]],
) -> None:
    """A weight that was compiled into the step as a constant would stay; the mean over an epoch is told."""
    _, history = fitted
    schedule = LinearDecay(0.4, end=0.5)
    steps = [schedule.weights(step / 16, 2)[0] for step in range(16)]
    expected = [np.mean(steps[4 * epoch : 4 * epoch + 4]) for epoch in range(4)]
    np.testing.assert_allclose(history["middle/weight"], expected, atol=1e-6)
    assert history["middle/weight"][-1] == 0
    # Validation happens at the end of the epoch.
    ends = [schedule.weights(epoch / 4, 2)[0] for epoch in range(1, 5)]
    np.testing.assert_allclose(history["val_middle/weight"], ends, atol=1e-6)


def test_the_total_is_the_weighted_sum(fitted: tuple[Any, dict[str, list[float]]], data: Any) -> None:
    supervised, history = fitted
    np.testing.assert_allclose(history["loss"][-1], history["main/loss"][-1], rtol=1e-5)
    loss = supervised.loss(supervised(data[0]), data[1], progress=0.25, training=False)
    numbers = loss.scalars()
    weight = LinearDecay(0.4, end=0.5).weights(0.25, 2)[0]
    expected = numbers["main/labels"] + weight * (numbers["middle/labels"] + numbers["late/labels"])
    assert numbers["loss"] == pytest.approx(expected, rel=1e-5)


def test_predict_and_metrics_are_those_of_the_model_itself(
    fitted: tuple[Any, dict[str, list[float]]], data: Any
) -> None:
    supervised, _ = fitted
    found = supervised.predict(data[0], verbose=0)
    np.testing.assert_array_equal(found, supervised.base.predict(data[0], verbose=0))
    told = supervised.evaluate(*data, verbose=0, return_dict=True)
    assert told["accuracy"] == pytest.approx((found.argmax(-1) == data[1]).mean())


@pytest.mark.essential
def test_the_loss_of_labels_is_a_mean_over_the_labelled_rows(data: Any) -> None:
    """Not over batches, of which one may have few labels."""
    images, labels = data
    few = np.where((np.arange(ROWS) < 4) | (np.arange(ROWS) == 9), labels, -1)
    base = network(activation=None)
    supervised = supervise(base)
    supervised.compile()
    found = supervised.evaluate(images, few, batch_size=4, verbose=0, return_dict=True)
    scores, rows = numpy(base(images, training=False)), few >= 0
    each = np.log(np.exp(scores).sum(-1)) - scores[np.arange(ROWS), few]
    assert found["main/labels"] == pytest.approx(each[rows].mean(), rel=1e-5)


def test_evaluation_moves_nothing(fitted: tuple[Any, dict[str, list[float]]], data: Any) -> None:
    supervised, _ = fitted
    before = values(supervised)
    supervised.evaluate(*data, verbose=0)
    supervised.predict(data[0], verbose=0)
    for old, new in zip(before, values(supervised), strict=True):
        np.testing.assert_array_equal(old, new)


def test_saved_and_loaded(fitted: tuple[Any, dict[str, list[float]]], data: Any, tmp_path: Path) -> None:
    supervised, _ = fitted
    supervised.save(tmp_path / "s.keras")
    again = keras.saving.load_model(tmp_path / "s.keras")
    for old, new in zip(values(supervised), values(again), strict=True):
        np.testing.assert_array_equal(old, new)
    assert int(again.optimizer.iterations) == int(supervised.optimizer.iterations) == 16
    np.testing.assert_array_equal(*(numpy(each(data[0]).aux["late"]) for each in (supervised, again)))
    assert list(again.heads) == ["middle", "late"]
    again.fit(*data, epochs=1, batch_size=8, verbose=0)


def test_the_certificate_holds_after_training(fitted: tuple[Any, dict[str, list[float]]], data: Any) -> None:
    supervised, _ = fitted
    certificate = supervised.certificate(data[0])
    assert certificate.holds and certificate.same_graph, str(certificate)
    assert supervised.strip() is supervised.base


# --- progress ---------------------------------------------------------------------------------------


def told(supervised: Any, data: Any, **options: Any) -> list[float]:
    history = supervised.fit(*data, batch_size=8, verbose=0, **options).history
    return [float(weight) for weight in history["middle/weight"]]


def test_neither_accumulation_nor_resuming_shifts_a_schedule(data: Any, tmp_path: Path) -> None:
    def fresh(**options: Any) -> Any:
        made = supervise(network(), weight=LinearDecay(0.4, end=1.0))
        made.compile(optimizer=keras.optimizers.SGD(0.0, **options), run_eagerly=True)
        return made

    whole = told(fresh(), data, epochs=3)
    np.testing.assert_allclose(told(fresh(gradient_accumulation_steps=2), data, epochs=3), whole)
    # Only weights were kept, so that the optimizer counts from 0 again.
    np.testing.assert_allclose(told(fresh(), data, epochs=3, initial_epoch=2), whole[2:])

    class Killed(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 0:
                raise KeyboardInterrupt

    backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
    with pytest.raises(KeyboardInterrupt):
        told(fresh(), data, epochs=3, callbacks=[backup, Killed()])
    resumed = told(fresh(), data, epochs=3, callbacks=[keras.callbacks.BackupAndRestore(tmp_path)])
    np.testing.assert_allclose(resumed, whole[1:])
    expected = [0.4 * (1 - (epoch + 0.25) / 3) for epoch in range(3)]
    np.testing.assert_allclose(whole, expected, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_progress_of_a_stream_and_of_a_loop_of_ones_own(data: Any) -> None:
    """How many batches a generator gives is not known before; until then an epoch is one step."""
    supervised = supervise(network(), weight=LinearDecay(0.4, end=1.0))
    supervised.compile(optimizer="sgd", run_eagerly=True)

    def batches() -> Any:
        for start in range(0, ROWS, 4):
            yield data[0][start : start + 4], data[1][start : start + 4]

    def forever() -> Any:
        while True:
            yield from batches()

    options = {"verbose": 0, "shuffle": False}
    weights = supervised.fit(batches(), epochs=1, **options).history["middle/weight"]
    np.testing.assert_allclose(weights, [0.4], rtol=1e-6)
    weights = supervised.fit(forever(), epochs=2, steps_per_epoch=4, **options).history["middle/weight"]
    np.testing.assert_allclose(weights, [0.4 * (1 - 1.5 / 8), 0.4 * (1 - 5.5 / 8)], rtol=1e-6)
    supervised.progress.begin(0.75)
    told = supervised.train_on_batch(data[0][:4], data[1][:4], return_dict=True)
    assert float(told["middle/weight"]) == pytest.approx(0.1)


@pytest.mark.essential
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(("save_freq", "killed_at"), [("epoch", (1, 3)), (3, (2, 2))])
def test_resuming_on_a_stream_does_not_shift_a_schedule(
    save_freq: Any, killed_at: tuple[int, int], data: Any, tmp_path: Path
) -> None:
    """The batches of an epoch are known from those before the checkpoint."""
    import tensorflow as tf

    def fit(*callbacks: Any) -> dict[int, float]:
        """The share of training that every batch adds, by epoch."""
        made, each = supervise(network()), {}

        class Recorded(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
                each[epoch] = float(numpy(made.progress.each))

        made.compile(optimizer="sgd")
        stream = tf.data.Dataset.from_tensor_slices(data).batch(4).filter(lambda *_: True)
        made.fit(stream, epochs=4, shuffle=False, verbose=0, callbacks=[*callbacks, Recorded()])
        return each

    class Killed(keras.callbacks.Callback):
        epoch = 0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if (self.epoch, batch) == killed_at:
                raise KeyboardInterrupt

    def backup() -> Any:
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", save_freq=save_freq)

    assert fit() == pytest.approx({0: 0, 1: 1 / 16, 2: 1 / 16, 3: 1 / 16})
    with pytest.raises(KeyboardInterrupt):
        fit(backup(), Killed())
    first = 1 if save_freq == "epoch" else 2
    assert fit(backup()) == pytest.approx(dict.fromkeys(range(first, 4), 1 / 16))


# --- gradients --------------------------------------------------------------------------------------


def test_a_stopped_tap_leaks_nothing_and_a_scaled_one_exactly_its_share(data: Any) -> None:
    base = network()
    found = {
        factor: gradients(
            supervise(base, gradient=factor, targets=Labels()),
            *data,
            lambda loss: loss.terms["middle/labels"],
            base.trainable_variables,
        )
        for factor in ("stop", 0.25)
    }
    assert all(not gradient.any() for gradient in found["stop"])
    keras.utils.set_random_seed(1)
    head = supervise(base)
    scaled = supervise(base, gradient=0.25)
    scaled.heads["middle"].set_weights(head.heads["middle"].get_weights())
    full, share = (
        gradients(s, *data, lambda loss: loss.terms["middle/labels"], base.trainable_variables)
        for s in (head, scaled)
    )
    assert any(np.abs(gradient).max() > 1e-3 for gradient in full)
    for whole, part in zip(full, share, strict=True):
        np.testing.assert_allclose(part, 0.25 * whole, rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(*(numpy(each(data[0]).aux["middle"]) for each in (head, scaled)))


def test_the_teacher_of_self_distillation_gets_no_gradient(data: Any) -> None:
    base = network()
    for source in ("main", "ensemble"):
        supervised = supervise(base, targets=SelfDistill(source=source))  # type: ignore[arg-type]
        after = [v for name in ("late", "last") for v in base.get_layer(name).trainable_variables]
        found = gradients(supervised, *data, lambda loss: loss.terms["middle/self_distill"], after)
        assert all(not gradient.any() for gradient in found)
        head = supervised.heads["middle"].trainable_variables
        taught = gradients(supervised, *data, lambda loss: loss.terms["middle/self_distill"], head)
        assert any(gradient.any() for gradient in taught)


def test_rematerialised_layers_run_a_head_once_with_the_same_gradients(data: Any) -> None:
    def convolutions(**options: Any) -> keras.Model:
        """With plain layers in between: on JAX, Keras traces what it rematerialises out of sight."""
        start = keras.Input((8, 8, 3))
        with keras.RematScope(**options):
            early, late = (layers.Conv2D(8, 3, activation="relu", name=name) for name in ("early", "late"))
        x = late(layers.ReLU(name="middle")(early(start)))
        return keras.Model(start, layers.Dense(CLASSES)(layers.GlobalAveragePooling2D()(x)))

    base, saving = convolutions(mode=None), convolutions(mode="full")
    saving.set_weights(base.get_weights())
    found = []
    for model in (base, saving):
        keras.utils.set_random_seed(1)
        runs: list[int] = []

        class Counted(layers.Layer):
            def __init__(self, runs: list[int]) -> None:
                super().__init__()
                self.score, self.runs = layers.Dense(CLASSES), lambda: runs

            def call(self, x: Any) -> Any:
                self.runs().append(1)
                return self.score(ops.mean(x, axis=(1, 2)))

        supervised = supervise(model, head={"middle": Counted(runs)})
        runs.clear()
        variables = [*model.trainable_variables, *supervised.heads["middle"].trainable_variables]
        found.append(gradients(supervised, *data, lambda loss: loss.total, variables))
        assert len(runs) == 1
    for plain, remade in zip(*found, strict=True):
        np.testing.assert_allclose(remade, plain, rtol=1e-4, atol=1e-6)


def test_diagnosis_tells_who_moves_what_and_changes_nothing(data: Any) -> None:
    base = network()
    supervised = supervise(base, weight=Constant(0.4))
    before = values(supervised)
    found = supervised.diagnose(*data)
    assert list(found) == ["early", "norm", "late", "last"]
    for old, new in zip(before, values(supervised), strict=True):
        np.testing.assert_array_equal(old, new)
    total = gradients(supervised, *data, lambda loss: loss.total, base.get_layer("early").trainable_variables)
    norm = np.sqrt(sum((gradient**2).sum() for gradient in total))
    assert found["early"]["gradient_norm"] == pytest.approx(norm, rel=1e-4)
    assert found["early"]["share/main"] + found["early"]["share/middle"] == pytest.approx(1)
    assert -1 <= found["early"]["cosine"] <= 1
    assert found["late"]["share/middle"] == 0 and np.isnan(found["late"]["cosine"])


# --- weights and losses -----------------------------------------------------------------------------


class Infinite(layers.Layer):
    def call(self, x: Any) -> Any:
        return ops.mean(x, axis=(1, 2))[:, :CLASSES] * np.inf


def test_weight_0_leaves_a_loss_out(data: Any) -> None:
    supervised = supervise(network(), head={"middle": Infinite()}, weight=0.0)
    loss = supervised.loss(supervised(data[0]), data[1], progress=0, training=False).scalars()
    assert not np.isfinite(loss["middle/labels"])
    assert loss["loss"] == loss["main/labels"]


def test_weight_0_leaves_a_gradient_out(data: Any) -> None:
    """Not 0 times it: of a loss without bounds that is no number."""
    found = []
    for start in (3e38, 1.0):  # logits are infinite, or ordinary
        keras.utils.set_random_seed(0)
        supervised = supervise(network(), weight=0.0)
        supervised.heads["middle"].weights[0].assign(np.full((8, CLASSES), start))
        loss = supervised.loss(supervised(data[0]), data[1], progress=0, training=False).scalars()
        assert np.isfinite(loss["middle/labels"]) == (start == 1.0)
        variables = supervised.trainable_variables
        found.append(gradients(supervised, *data, lambda loss: loss.total, variables))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.essential
def test_fit_leaves_the_base_alone_where_a_broken_head_has_weight_0(data: Any) -> None:
    """There the features of the head have no gradient that is a number; with a weight that is seen."""
    bases = []
    for head, weight in ((Infinite(), 0.0), ("linear", 0.0), (Infinite(), 0.1)):
        keras.utils.set_random_seed(0)
        supervised = supervise(network(), head={"middle": head}, weight=weight)
        supervised.compile(optimizer=keras.optimizers.SGD(0.1))
        supervised.train_on_batch(*data)
        bases.append(values(supervised.base))
    for ours, theirs in zip(*bases[:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not all(np.isfinite(value).all() for value in bases[2])


def test_uncertainty_is_trained(data: Any) -> None:
    supervised = supervise(network(), weight=Uncertainty())
    supervised.compile(optimizer=keras.optimizers.SGD(0.1), run_eagerly=True)
    loss = supervised.loss(supervised(data[0]), data[1], progress=0, training=False).scalars()
    assert loss["loss"] == pytest.approx(loss["main/labels"] + loss["middle/labels"])  # s = 0
    supervised.train_on_batch(*data)
    assert any(supervised.log_variances is v for v in supervised.trainable_variables)
    # d/ds (exp(-s) L + s) is 1 - L at s = 0.
    assert ops.convert_to_numpy(supervised.log_variances)[1] == pytest.approx(
        0.1 * (loss["middle/labels"] - 1), abs=2e-2
    )


def test_half_precision_and_large_features(data: Any) -> None:
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        supervised = supervise(network(activation=None), taps=["middle"], head="bottleneck")
    finally:
        keras.config.set_dtype_policy(with_policy)
    output = supervised(1000 * data[0], training=True)
    loss = supervised.loss(output, data[1], progress=0, training=False)
    assert keras.backend.standardize_dtype(loss.total.dtype) == "float32"
    assert all(np.isfinite(value) for value in loss.scalars().values())
    supervised.compile(optimizer="adam", run_eagerly=True)
    assert isinstance(supervised.optimizer, keras.optimizers.LossScaleOptimizer)
    supervised.train_on_batch(*data)


def test_the_loss_of_the_base_itself_counts_too(data: Any) -> None:
    base = network()
    base.get_layer("early").kernel_regularizer = keras.regularizers.L2(0.5)
    base.get_layer("early").kernel.regularizer = keras.regularizers.L2(0.5)
    supervised = supervise(base, weight=0.0)
    supervised.compile(optimizer=keras.optimizers.SGD(0.0), run_eagerly=True)
    told = supervised.train_on_batch(*data, return_dict=True)
    penalty = 0.5 * float(np.square(numpy(base.get_layer("early").kernel.value)).sum())
    assert float(told["loss"]) == pytest.approx(float(told["main/labels"]) + penalty, rel=1e-4)


# --- heads ------------------------------------------------------------------------------------------


def test_a_head_is_right_at_batch_size_1(data: Any) -> None:
    supervised = supervise(network(), head=Bottleneck())
    features = ops.convert_to_tensor(data[0][..., :1] * np.ones(8, "float32"))
    head = supervised.heads["middle"]
    alone, together = numpy(head(features[:1])), numpy(head(features))[:1]
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    assert numpy(head(features)).std(axis=0).min() > 0
    supervised.compile(optimizer="sgd", run_eagerly=True)
    told = supervised.train_on_batch(data[0][:1], data[1][:1], return_dict=True)
    assert all(np.isfinite(float(value)) for value in told.values())


def test_a_head_that_is_far_too_large_is_refused_unless_asked_for_by_name() -> None:
    start = keras.Input((112, 112, 64))
    x = layers.GlobalAveragePooling2D()(layers.ReLU(name="map")(start))
    base = keras.Model(start, layers.Dense(100)(x))
    options = {"num_classes": 100, "taps": ["map"], "example": (2, 112, 112, 64)}
    said = r"80,281,700 parameters.*allow_large=\['map'\]"
    with pytest.raises(SupervisionError, match=said):
        spile.supervise(base, head="flatten", **options)
    small = supervise(network(), head="flatten", allow_large=["middle"])
    assert small.heads["middle"].count_params() == (8 * 8 * 8 + 1) * CLASSES


def test_the_base_keeps_its_names_and_flags(data: Any) -> None:
    base = network()
    base.get_layer("norm").trainable = False
    lines: list[str] = []
    base.summary(print_fn=lines.append)
    before = [(v.path, v.trainable) for v in base.variables]
    count = len(base.trainable_variables)
    supervised = supervise(base)
    supervised.compile(optimizer="sgd", run_eagerly=True)
    supervised.train_on_batch(*data)
    after: list[str] = []
    base.summary(print_fn=after.append)
    assert after == lines and [(v.path, v.trainable) for v in base.variables] == before
    assert len(supervised.trainable_variables) == count + 2


def test_a_head_of_ones_own(data: Any) -> None:
    def make(channels: int) -> keras.Layer:
        return keras.Sequential([layers.GlobalMaxPooling2D(), layers.Dense(CLASSES)])

    supervised = supervise(network(), head=make)
    assert supervised(data[0]).aux["middle"].shape == (ROWS, CLASSES)
    with pytest.raises(SupervisionError, match="not 3 scores a sample"):
        supervise(network(), head=lambda channels: layers.GlobalMaxPooling2D())
    with pytest.raises(SupervisionError, match="cannot be the head of several points"):
        supervise(network(), taps=["early", "middle"], head=make(8))


def test_a_head_starts_from_a_probe(data: Any) -> None:
    supervised = supervise(network())
    weight, bias = np.arange(24.0).reshape(3, 8), np.ones(3)
    supervised.set_linear("middle", weight, bias)
    with spile.tap(supervised.base, "middle", pool="avg") as tap:
        features = ops.convert_to_numpy(tap(data[0])["middle"])
    expected = features @ weight.T + bias
    np.testing.assert_allclose(numpy(supervised(data[0]).aux["middle"]), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(SupervisionError, match=r"takes \[3, 8\], received \[3, 7\]"):
        supervised.set_linear("middle", weight[:, :7], bias)


# --- models -----------------------------------------------------------------------------------------


def test_a_model_that_is_no_graph_with_a_dict_of_outputs(data: Any, tmp_path: Path) -> None:
    """Its inner layer is watched, also where the step is compiled."""
    model = Subclassed()
    model(data[0])
    with pytest.raises(SupervisionError, match="main=None leads to no tensor"):
        supervise(model, taps=["body/inner"])
    supervised = supervise(model, taps=["body/inner"], main="logits", weight=1.0)
    before = ops.convert_to_numpy(supervised.heads["body/inner"].weights[0])
    supervised.compile(optimizer=keras.optimizers.Adam(1e-2), metrics=["accuracy"])
    history = supervised.fit(*data, epochs=3, batch_size=8, verbose=0).history
    assert history["body/inner/labels"][-1] < history["body/inner/labels"][0]
    assert (ops.convert_to_numpy(supervised.heads["body/inner"].weights[0]) != before).any()
    own = model.predict(data[0], verbose=0)["logits"]
    np.testing.assert_array_equal(supervised.predict(data[0], verbose=0), own)
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


class Attentive(keras.Model):
    """No graph; its tokens go to attention, which takes Keras' mask from them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = layers.Embedding(9, 4, mask_zero=True)
        self.tokens = layers.LSTM(5, return_sequences=True)
        self.attention = layers.MultiHeadAttention(2, 3)
        self.last = layers.Dense(CLASSES)

    def call(self, ids: Any) -> Any:
        x = self.tokens(self.embed(ids))
        return self.last(ops.mean(self.attention(x, x), axis=1))


def attentive() -> keras.Model:
    ids = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True)(ids)
    x = layers.LSTM(5, return_sequences=True, name="tokens")(x)
    x = layers.MultiHeadAttention(2, 3)(x, x)
    return keras.Model(ids, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))


@pytest.mark.essential
@pytest.mark.parametrize("make", [attentive, Attentive])
def test_heads_leave_out_padding_that_attention_takes_away(make: Callable[[], keras.Model]) -> None:
    ids = np.array([[1, 2, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8], [8, 1, 2, 0, 0, 0]], "int32")
    base = make()
    base(ids)
    with spile.tap(base, "tokens", pool=None, example=ids) as tap:
        whole = numpy(tap(ids)["tokens"])
    mean = np.stack([x[kept].mean(0) for x, kept in zip(whole, ids != 0, strict=True)])
    supervised = supervise(base, taps=["tokens"], example=ids)
    weight, bias = (numpy(value) for value in supervised.heads["tokens"].weights)
    np.testing.assert_allclose(
        numpy(supervised(ids).aux["tokens"]), mean @ weight + bias, rtol=1e-4, atol=1e-5
    )
    supervised.compile()
    labels = np.zeros(3, "int64")
    loss = supervised.evaluate(ids, labels, verbose=0, return_dict=True)["tokens/labels"]
    scores = mean @ weight + bias
    expected = np.log(np.exp(scores).sum(-1)) - scores[:, 0]
    np.testing.assert_allclose(loss, expected.mean(), rtol=1e-4)


def test_probabilities_and_logits_are_told_apart(data: Any) -> None:
    soft, plain = network(), network(activation=None)
    plain.set_weights(soft.get_weights())
    start = keras.Input((8, 8, 3))
    by_operation = keras.Model(start, ops.softmax(plain(start)))
    logits = ops.convert_to_numpy(plain(data[0]))
    for model, taps in ((soft, ["middle"]), (plain, ["middle"]), (by_operation, ["network/middle"])):
        main = ops.convert_to_numpy(supervise(model, taps=taps)(data[0]).main)
        difference = main - logits  # logits are the same up to a number a row
        np.testing.assert_allclose(difference - difference[:, :1], 0, atol=1e-4)


def scores(*ending: Any, classes: int = CLASSES) -> keras.Model:
    start = keras.Input((8, 8, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="middle")(start))
    x = layers.Dense(classes, name="scores")(x)
    for step in ending:
        x = step(x)
    return keras.Model(start, x)


def own_softmax(x: Any) -> Any:
    return ops.softmax(x, axis=-1)


def half(name: str) -> Any:
    return layers.Activation(name, dtype="mixed_bfloat16"), layers.Activation("linear", dtype="float32")


@pytest.mark.essential
@pytest.mark.parametrize(
    ("gives", "ending"),
    [
        ("softmax", lambda: half("softmax")),
        ("softmax", lambda: [layers.Activation(own_softmax)]),
        ("sigmoid", lambda: half("sigmoid")),
        ("sigmoid", lambda: [ops.sigmoid]),
        ("sigmoid", lambda: [layers.Activation(ops.sigmoid)]),
        ("sigmoid", lambda: [layers.Activation("sigmoid"), layers.Reshape((CLASSES,))]),
    ],
    ids=["mixed", "function", "mixed sigmoid", "operation", "sigmoid function", "reshaped"],
)
def test_probabilities_of_which_no_last_layer_tells(gives: str, ending: Any, data: Any) -> None:
    base = scores(*ending())
    task = "multilabel" if gives == "sigmoid" else "classification"
    main = supervise(base, task=task)(data[0]).main
    chances = ops.sigmoid(main) if gives == "sigmoid" else ops.softmax(main)
    np.testing.assert_allclose(numpy(chances), numpy(base(data[0])), atol=1e-2)
    assert numpy(main).min() < 0


@pytest.mark.essential
@pytest.mark.parametrize("task", ["classification", "multilabel"])
@pytest.mark.parametrize("ending", [layers.Activation("linear"), lambda x: x * 1], ids=["layer", "operation"])
@pytest.mark.parametrize("classes", [1, CLASSES])
def test_logits_that_look_like_probabilities(task: Any, ending: Any, classes: int, data: Any) -> None:
    base = scores(ending, classes=classes)
    kernel, _ = base.get_layer("scores").get_weights()
    base.get_layer("scores").set_weights([kernel * 0.01, np.linspace(0.3, 0.6, classes)])
    found = numpy(base(data[0]))
    assert found.min() > 0 and found.max() < 1
    main = supervise(base, task=task, num_classes=classes)(data[0]).main
    np.testing.assert_allclose(numpy(main), found, atol=1e-6)


@pytest.mark.parametrize(
    ("task", "outputs", "labels"),
    [
        ("multilabel", 3, np.random.default_rng(0).integers(-1, 2, (ROWS, 3))),
        ("regression", 1, np.random.default_rng(0).normal(size=ROWS).astype("float32")),
    ],
)
def test_other_tasks(task: str, outputs: int, labels: Any, data: Any) -> None:
    start = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, activation="relu", name="middle")(start)
    ending = "sigmoid" if task == "multilabel" else None
    base = keras.Model(start, layers.Dense(outputs, activation=ending)(layers.GlobalMaxPooling2D()(x)))
    supervised = supervise(base, num_classes=outputs, task=task, weight=1.0)
    supervised.compile(optimizer=keras.optimizers.Adam(0.002), run_eagerly=True)
    history = supervised.fit(data[0], labels, epochs=4, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    assert ("middle/accuracy" in history) == (task == "multilabel")


def test_segmentation(data: Any) -> None:
    """The head's map is half as large as the labels."""
    start = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="middle")(start)
    base = keras.Model(start, layers.Conv2D(CLASSES, 1)(layers.UpSampling2D(2)(x)))
    supervised = supervise(base, task="segmentation", head="dense", weight=1.0)
    labels = (data[0][..., 0] > 0).astype("int32")
    supervised.compile(optimizer=keras.optimizers.Adam(0.05), run_eagerly=True)
    history = supervised.fit(data[0], labels, epochs=3, verbose=0).history
    assert supervised(data[0]).aux["middle"].shape == (ROWS, 4, 4, CLASSES)
    assert history["loss"][-1] < history["loss"][0]


def test_weights_of_pixels_in_fit(data: Any) -> None:
    """The head is at half the size."""
    start = keras.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="middle")(start)
    base = keras.Model(start, layers.Conv2D(CLASSES, 1)(layers.UpSampling2D()(x)))
    supervised = supervise(base, task="segmentation", head="dense", weight=1.0)
    supervised.compile(optimizer="sgd", weighted_metrics=["accuracy"])
    labels = np.random.default_rng(1).integers(0, CLASSES, (ROWS, 8, 8))
    weights = np.ones((ROWS, 8, 8), "float32")
    plain = supervised.evaluate(data[0], labels, verbose=0, return_dict=True)
    double = supervised.evaluate(data[0], labels, sample_weight=2 * weights, verbose=0, return_dict=True)
    assert double["middle/labels"] == pytest.approx(2 * plain["middle/labels"], rel=1e-5)
    supervised.fit(data[0], labels, sample_weight=weights, verbose=0)


# --- what is refused --------------------------------------------------------------------------------


def test_an_optimizer_that_was_built_before_the_heads_is_refused(data: Any) -> None:
    base = network()
    base.compile(optimizer="adam", loss="sparse_categorical_crossentropy", run_eagerly=True)
    base.train_on_batch(*data)
    with pytest.raises(SupervisionError, match=r"built before the heads.*Adam\.from_config"):
        supervise(base).compile(optimizer=base.optimizer)


def test_what_compile_does_not_take() -> None:
    with pytest.raises(SupervisionError, match="compile\\(loss='mse'\\) is not for a supervised model"):
        supervise(network()).compile(optimizer="sgd", loss="mse")


def test_what_supervise_does_not_take(data: Any) -> None:
    with pytest.raises(SupervisionError, match="PyTorch models only"):
        supervise(network(), weight=Aggregated(aggregator=None))
    with pytest.raises(SupervisionError, match=r"num_classes=5 was asked for: write num_classes=3"):
        supervise(network(), num_classes=5)(data[0])
    with pytest.raises(SupervisionError, match="ends with a softmax, which task='multilabel'"):
        supervise(network(), task="multilabel")
    with pytest.raises(SupervisionError, match="allow_large names lat"):
        supervise(network(), allow_large=["lat"])
    supervised = supervise(network())
    with pytest.raises(SupervisionError, match="Labels needs y"):
        supervised.loss(supervised(data[0]), None, progress=0)
    with pytest.raises(SupervisionError, match=r"labels of shape \[16, 2\]"):
        supervised.loss(supervised(data[0]), np.zeros((ROWS, 2), int), progress=0)
    with pytest.raises(SupervisionError, match="y has rows: as a dict it holds labels, ids, soft_labels"):
        supervised.compute_loss(y={"rows": 1}, y_pred=supervised(data[0]))
