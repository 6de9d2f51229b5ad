"""Early exits of Keras models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops

import spile
from spile.errors import SupervisionError
from spile.keras.exits import EarlyExits
from spile.supervision.exits import ExitPolicy, confidences, taken

CLASSES = 4
SIZE = 8


def network(*, past: bool = False) -> keras.Model:
    """With `past`, something flows past the first head."""
    start = keras.Input((SIZE, SIZE, 1))
    early = layers.Conv2D(8, 3, padding="same", activation="relu", name="early")(start)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="late")(early)
    x = layers.Concatenate()([x, start]) if past else x
    x = layers.Flatten()(x)
    return keras.Model(start, layers.Dense(CLASSES, activation="softmax")(x), name="network")


@pytest.fixture(scope="module")
def data() -> tuple[Any, Any]:
    """Which quarter is bright: some samples are much plainer than others."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, 240)
    images = random.normal(size=(240, SIZE, SIZE, 1)).astype("float32")
    strength = random.uniform(0.2, 2.0, 240)
    for row, label in enumerate(labels):
        y, x = 4 * (label // 2), 4 * (label % 2)
        images[row, y : y + 4, x : x + 4] += strength[row]
    return images, labels


@pytest.fixture(scope="module")
def supervised(data: tuple[Any, Any]) -> Any:
    keras.utils.set_random_seed(0)
    made = spile.supervise(
        network(), num_classes=CLASSES, taps=["early"], head="flatten", allow_large=["early"], weight=1.0
    )
    made.compile(optimizer=keras.optimizers.Adam(1e-2))
    made.fit(data[0][:120], data[1][:120], epochs=6, batch_size=20, verbose=0)
    return made


@pytest.fixture(scope="module")
def exits(supervised: Any, data: tuple[Any, Any]) -> EarlyExits:
    made = supervised.exits((data[0][120:200], data[1][120:200]))
    assert isinstance(made, EarlyExits)
    return made


def test_samples_leave_where_the_policy_says(exits: EarlyExits, data: Any) -> None:
    x = data[0][200:]
    exits_before = exits.policy
    exits.policy = ExitPolicy(temperatures=exits.policy.temperatures, thresholds=(0.6, 0.0))
    try:
        every = exits.logits(x)
        expected = taken(confidences(every, exits.policy.temperatures), exits.policy.thresholds)
        found = exits.run(x, batch_size=16)
        called = ops.convert_to_numpy(ops.stop_gradient(exits(ops.convert_to_tensor(x))))
    finally:
        exits.policy = exits_before
    assert 0 < found.exits.mean() < 1
    np.testing.assert_array_equal(found.exits, expected)
    np.testing.assert_allclose(found.logits, every[expected, np.arange(len(x))], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(called, found.logits, rtol=1e-4, atol=1e-5)


def test_a_batch_is_compacted_as_samples_leave(
    exits: EarlyExits, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    step = exits._step
    monkeypatch.setattr(exits, "_step", lambda i, x, **k: rows.append(len(x)) or step(i, x, **k))
    policy = ExitPolicy(temperatures=exits.policy.temperatures, thresholds=(0.6, 0.0))
    found = exits.run(data[0][200:232], batch_size=32, policy=policy)
    assert rows == [32, int((found.exits == 1).sum())]
    assert rows[1] < 32
    rows.clear()
    exits.run(data[0][200:232], policy=ExitPolicy(temperatures=(1.0, 1.0), thresholds=(0.0, 0.0)))
    assert rows == [32]  # the rest of the network is not run at all


def test_the_logits_are_those_of_the_supervised_model(supervised: Any, exits: EarlyExits, data: Any) -> None:
    output = supervised(ops.convert_to_tensor(data[0][:8]))
    for found, own in zip(exits.logits(data[0][:8]), (output.aux["early"], output.main), strict=True):
        np.testing.assert_allclose(found, ops.convert_to_numpy(ops.stop_gradient(own)), rtol=1e-4, atol=1e-4)


def test_thresholds_are_not_chosen_on_what_temperatures_were_fitted_on(
    supervised: Any, data: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spile.keras import exits as module

    seen: dict[str, list[Any]] = {"temperature": [], "policy": []}
    fit_temperature, fit_policy = module.policies.fit_temperature, module.policies.fit_policy
    monkeypatch.setattr(
        module.policies,
        "fit_temperature",
        lambda logits, labels: seen["temperature"].append(logits) or fit_temperature(logits, labels),
    )
    monkeypatch.setattr(
        module.policies,
        "fit_policy",
        lambda logits, *a, **k: seen["policy"].append(logits) or fit_policy(logits, *a, **k),
    )
    supervised.exits((data[0][120:200], data[1][120:200]), holdout=0.25)
    early = {row.tobytes() for row in seen["temperature"][0].round(4)}
    chosen = {row.tobytes() for row in seen["policy"][0][0].round(4)}
    assert (len(early), len(chosen)) == (60, 20)
    assert early.isdisjoint(chosen)


def test_accuracy_is_kept_at_less_cost(exits: EarlyExits, data: Any) -> None:
    """Beside the whole model, the model cut at its head, and a smaller one of its own."""
    assert exits.expected is not None
    small = keras.Sequential([keras.Input((SIZE, SIZE, 1)), layers.Flatten(), layers.Dense(CLASSES)])
    x, y = data[0][200:], data[1][200:]
    found = exits.measure(x, y, static={"linear": small}, rounds=5)
    assert [row.name for row in found.rows] == ["early exits", "ends at early", "full model", "linear"]
    early, whole = found["early exits"], found["full model"]
    assert early.macs == pytest.approx(sum(s * c for s, c in zip(found.shares, exits.costs, strict=True)))
    assert exits.expected.macs <= exits.costs[-1]
    assert sum(found.shares) == pytest.approx(1)
    assert all(0 < row.p50 <= row.p95 for row in found.rows)
    assert [round(row.macs) for row in found.rows[1:]] == [
        SIZE * SIZE * 9 * 8 + SIZE * SIZE * 8 * CLASSES,
        SIZE * SIZE * 9 * 8 * 9 + SIZE * SIZE * 8 * CLASSES,
        SIZE * SIZE * CLASSES,
    ]
    predicted = exits.logits(x)[-1].argmax(-1)
    assert whole.accuracy == pytest.approx((predicted == y).mean())
    own = ops.convert_to_numpy(ops.stop_gradient(small(x))).argmax(-1)
    assert found["linear"].accuracy == pytest.approx((own == y).mean())


def test_a_head_that_is_not_used_costs_nothing(supervised: Any, data: Any) -> None:
    made = supervised.exits((data[0][120:200], data[1][120:200]), budget=1e12)
    assert made.policy.thresholds[0] == np.inf
    assert made.costs[-1] == made.static_costs[-1]


def test_a_budget_of_macs(supervised: Any, data: Any) -> None:
    parts = data[0][120:200], data[1][120:200]
    whole = supervised.exits(parts).static_costs
    budget = (whole[0] + whole[1]) / 2
    expected = supervised.exits(parts, budget=budget).expected
    assert expected.macs <= budget
    with pytest.raises(SupervisionError, match="cannot be met"):
        supervised.exits(parts, budget=whole[0] / 2)


def test_saved_and_loaded(exits: EarlyExits, data: Any, tmp_path: Path) -> None:
    exits.save(tmp_path / "exits.keras")
    again = keras.saving.load_model(tmp_path / "exits.keras")
    assert (again.policy, again.expected, again.costs) == (exits.policy, exits.expected, exits.costs)
    assert (again.exit_names, again.static_costs) == (("early",), exits.static_costs)
    np.testing.assert_allclose(again.predict(data[0][:9]), exits.predict(data[0][:9]), rtol=1e-5, atol=1e-6)


def test_the_exits_are_a_copy(supervised: Any, exits: EarlyExits, data: Any) -> None:
    before = exits.logits(data[0][:4])
    kept = supervised.get_weights()
    supervised.set_weights([weight * 0 for weight in kept])
    np.testing.assert_array_equal(exits.logits(data[0][:4]), before)
    supervised.set_weights(kept)
    assert supervised.certificate(data[0][:4]).holds


def test_where_a_network_cannot_be_cut(data: Any) -> None:
    few = data[0][:20], data[1][:20]

    def supervise(model: keras.Model, tap: str, **options: Any) -> Any:
        return spile.supervise(model, num_classes=CLASSES, taps=[tap], head="linear", **options)

    with pytest.raises(SupervisionError, match="cannot cut at early: something flows past"):
        supervise(network(past=True), "early").exits(few)
    outer = keras.Sequential([keras.Input((SIZE, SIZE, 1)), network()])
    with pytest.raises(SupervisionError, match="not inside of them"):
        supervise(outer, "network/early").exits(few)
    with pytest.raises(SupervisionError, match="20 inputs, 20 labels and holdout=1"):
        supervise(network(), "early").exits(few, holdout=1)
