"""What heads are trained towards: each loss against its definition, computed here by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

import spile
from spile.errors import SupervisionError
from spile.models import LoadedModel
from spile.preprocessing import ImagePreprocessing
from spile.supervision import (
    Aggregated,
    Constant,
    Labels,
    PseudoLabels,
    SelfDistill,
    SmoothedLabels,
    Teacher,
    Uncertainty,
)
from spile.torch import losses
from spile.torch.supervision import Supervised


class Net(nn.Module):
    def __init__(self, width: int = 16, classes: int = 5) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(8, width, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.fc = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.a(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8)


LABELS = torch.tensor([0, 1, 2, 3, 4, -1])
PREPARED = ImagePreprocessing(mean=(0.5,) * 3, std=(0.5,) * 3)


def make(model: Any = None, **options: Any) -> Supervised:
    given: dict[str, Any] = {"example": (2, 3, 8, 8), "num_classes": 5, "taps": ["a"]} | options
    return spile.supervise(model if model is not None else Net(), **given)  # type: ignore[return-value]


def terms(supervised: Supervised, images: Tensor, labels: Tensor = LABELS, **more: Any) -> dict[str, Tensor]:
    return supervised.loss(supervised(images), labels, progress=0.0, **more).terms


# --- tasks ----------------------------------------------------------------------------------------


def test_rows_without_a_label_count_nothing_and_a_batch_without_any_gives_0(images: Tensor) -> None:
    supervised = make()
    out = supervised(images)
    loss = supervised.loss(out, torch.full((6,), -1), progress=0.0)
    assert loss.total.item() == 0
    assert loss.stats["a/accuracy"].isnan()
    loss.total.backward()
    assert all(p.grad is not None and not p.grad.any() for p in supervised.parameters())


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, 5], r"a label is 5, and the 5 classes are 0 to 4; -1 is no label\..* num_classes=6"),
        ([0, -100, -1], r"a label is -100, .* type: labels\[labels == -100\] = -1$"),
    ],
)
def test_a_label_that_is_no_class_is_refused(images: Tensor, labels: list[int], words: str) -> None:
    for targets in (Labels(), [PseudoLabels()]):
        supervised = make(targets=targets)
        for given in (labels, torch.tensor(labels), torch.tensor(labels, dtype=torch.int16)):
            with pytest.raises(SupervisionError, match=words):
                supervised.loss(supervised(images[:3]), given, progress=0)


def test_soft_labels_of_a_batch_are_rows_of_probabilities(images: Tensor) -> None:
    mixed = torch.full((6, 5), 0.2)
    out = (supervised := make())(images)
    found = supervised.loss(out, mixed, progress=0.0).terms["a/labels"]
    torch.testing.assert_close(found, functional.cross_entropy(out.aux["a"], mixed))


def test_multilabel_and_regression(images: Tensor) -> None:
    many = make(task="multilabel")
    labels = torch.tensor([[0, 1, -1, 1, 0]] * 6)
    out = many(images)
    loss = many.loss(out, labels, progress=0.0)
    known = labels >= 0
    expected = functional.binary_cross_entropy_with_logits(out.aux["a"][known], labels[known].float())
    torch.testing.assert_close(loss.terms["a/labels"], expected)
    right = ((out.aux["a"] > 0) == (labels > 0))[known].float().mean()
    assert loss.stats["a/accuracy"].item() == pytest.approx(right.item())

    numbers = make(task="regression")
    wanted = torch.randn(6, 5)
    wanted[0] = float("nan")
    loss = numbers.loss(out := numbers(images), wanted, progress=0.0)
    torch.testing.assert_close(loss.terms["a/labels"], functional.mse_loss(out.aux["a"][1:], wanted[1:]))
    assert "a/accuracy" not in loss.stats
    with pytest.raises(SupervisionError, match=r"shape \[6, 4\].*needs that of the outputs, \[6, 5\]"):
        numbers.loss(out, wanted[:, :4], progress=0.0)


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (3, 5), (16, 16), (1, 1)])
def test_maps_of_labels_are_resized_by_nearest_and_no_class_arises(size: tuple[int, int]) -> None:
    labels = torch.randint(0, 4, (2, 8, 8)) * 7 - 1
    found = losses.resized_labels(labels, size)
    assert found.shape == (2, *size)
    assert set(found.unique().tolist()) <= set(labels.unique().tolist())
    expected = functional.interpolate(labels[:, None].double(), size=size, mode="nearest-exact")
    assert torch.equal(found, expected[:, 0].long())


def test_labels_in_large_blocks_keep_every_class() -> None:
    labels = torch.tensor([[0, 1], [2, 20]]).repeat_interleave(8, 0).repeat_interleave(8, 1)[None]
    assert set(losses.resized_labels(labels, (4, 4)).unique().tolist()) == {0, 1, 2, 20}


@pytest.mark.zoo
def test_segmentation_with_a_model_whose_output_is_a_dict() -> None:
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3
    )
    options: dict[str, Any] = {"example": (2, 3, 32, 32), "num_classes": 3, "task": "segmentation"}
    supervised = make(model, taps=["backbone.6"], head="dense", main="out", **options)
    labels = torch.randint(-1, 3, (2, 32, 32))
    out = supervised(torch.randn(2, 3, 32, 32))
    assert out.main.shape == (2, 3, 32, 32)
    loss = supervised.loss(out, labels, progress=0.0)
    height, width = out.aux["backbone.6"].shape[2:]
    expected = functional.cross_entropy(
        out.aux["backbone.6"], losses.resized_labels(labels, (height, width)), ignore_index=-1
    )
    torch.testing.assert_close(loss.terms["backbone.6/labels"], expected)
    loss.total.backward()
    with pytest.raises(SupervisionError, match=r"'bottleneck'.*needs \(2, classes, height, width\).*'dense'"):
        make(model, taps=["backbone.6"], main="out", **options)
    with pytest.raises(SupervisionError, match=r"output is a.*'out'.*Say where its logits are"):
        make(model, taps=["backbone.6"], head="dense", **options)(torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("output", "main"),
    [
        (lambda x: {"y": x}, "y"),
        (lambda x: (None, x), 1),
        (lambda x: torchvision.models.GoogLeNetOutputs(x, None, None), "logits"),
        (lambda x: {"y": [x]}, lambda output: output["y"][0]),
    ],
    ids=["key", "position", "attribute", "function"],
)
def test_the_logits_are_found_in_any_output(images: Tensor, output: Any, main: Any) -> None:
    class Wrapped(Net):
        def forward(self, x: Tensor) -> Any:
            return output(super().forward(x))

    assert make(Wrapped(), main=main)(images).main.shape == (6, 5)
    with pytest.raises(SupervisionError, match="main=None leads to no tensor"):
        make(Wrapped())(images)


# --- heads ----------------------------------------------------------------------------------------


def test_a_head_of_ones_own(images: Tensor) -> None:
    class Own(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(channels)
            self.score = nn.Conv2d(channels, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.score(self.norm(x)).amax((2, 3))

    own = Own(8)
    before = own.norm.running_mean.clone()  # type: ignore[union-attr]
    supervised = make(head=own)
    assert torch.equal(own.norm.running_mean, before)  # type: ignore[arg-type]
    assert own.training
    torch.testing.assert_close(supervised(images).aux["a"], own(supervised.base.a(images)))  # type: ignore[operator]
    both = make(taps=["a", "b"], head=Own)
    assert both.heads["b"].output.score.in_channels == 16  # type: ignore[union-attr]
    with pytest.raises(SupervisionError, match="one module cannot be the head of several layers"):
        make(taps=["a", "b"], head=own)
    with pytest.raises(SupervisionError, match=r"'Conv2d' at 'a' gives \[2, 5, 8, 8\].*needs \[2, 5\]"):
        make(head=nn.Conv2d(8, 5, 1))
    with pytest.raises(SupervisionError, match=r"'Own' does not take the features at 'b', \[2, 16, 4, 4\]"):
        make(taps=["b"], head=own)
    with pytest.raises(SupervisionError, match="is 3: write a name"):
        make(head=3)


def test_channels_last_features_reach_a_head_channels_first() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(3, 7)
            self.fc = nn.Linear(7, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.mix(x.permute(0, 2, 3, 1)).mean((1, 2)))

    model = Last()
    supervised = make(model, taps=["mix"], head="linear", example=(2, 3, 6, 9))
    x = torch.randn(2, 3, 6, 9)
    pooled = model.mix(x.permute(0, 2, 3, 1)).mean((1, 2))
    torch.testing.assert_close(supervised(x).aux["mix"], supervised.heads["mix"].output(pooled))  # type: ignore[operator]


def test_a_flatten_head_on_an_early_map_is_refused_unless_asked_for_by_name() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 64, 7, stride=2, padding=3)
            self.fc = nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.stem(x).mean((2, 3)))

    early = Early()
    options: dict[str, Any] = {"taps": ["stem"], "example": (1, 3, 224, 224)}
    with pytest.raises(SupervisionError) as caught:
        make(early, head="flatten", **options)
    assert str(112 * 112 * 64 * 5 + 5) in str(caught.value).replace(",", "")
    assert "use head='bottleneck' or 'linear'" in str(caught.value)
    assert "allow_large=['stem']" in str(caught.value)
    huge = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 20_000), nn.Linear(20_000, 5))
    with pytest.raises(SupervisionError, match="allow_large"):
        make(early, head=huge, **options)
    assert len(make(early, head=huge, allow_large=["stem"], **options).heads) == 1
    assert len(make(early, head="bottleneck", **options).heads) == 1


def test_a_layer_that_heads_cannot_read() -> None:
    class Volume(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv3d(3, 4, 1)
            self.fc = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3, 4)))

    with pytest.raises(SupervisionError, match=r"'conv' has the axes 'BCZYX', and heads read maps"):
        make(Volume(), taps=["conv"], example=(2, 3, 4, 4, 4))


# --- distillation and teachers --------------------------------------------------------------------


def test_self_distillation(images: Tensor) -> None:
    supervised = make(targets=[SelfDistill(temperature=3.0, hint=0.5, weight=2.0)], head="linear")
    out = supervised(images)
    loss = supervised.loss(out, LABELS, progress=0.0)
    soft = (out.main.detach() / 3).softmax(1)
    expected = -(soft * (out.aux["a"] / 3).log_softmax(1)).sum(1).mean() * 9
    torch.testing.assert_close(loss.terms["a/self_distill"], expected)
    final = supervised.base.b(features := supervised.base.a(images)).mean((2, 3))  # type: ignore[operator]
    adapter: Any = supervised.terms.adapters["a self_distill"]
    hint = functional.mse_loss(adapter(features.mean((2, 3))), final)
    torch.testing.assert_close(loss.terms["a/self_distill_hint"], hint)
    torch.testing.assert_close(loss.stats["a/loss"], (2 * expected + 2 * 0.5 * hint).detach())


def test_the_ensemble_is_the_mean_of_all_logits(images: Tensor) -> None:
    supervised = make(targets=SelfDistill(source="ensemble", temperature=1.0), taps=["a", "b"])
    out = supervised(images)
    soft = torch.stack([out.main, *out.aux.values()]).mean(0).detach().softmax(1)
    found = supervised.loss(out, LABELS, progress=0.0).terms["b/self_distill"]
    torch.testing.assert_close(found, functional.cross_entropy(out.aux["b"], soft))


def test_a_teachers_logits_features_and_attention(images: Tensor) -> None:
    teacher = Net(width=24)
    teacher.b[0].stride = (4, 4)  # smaller maps than the student's  # type: ignore[union-attr]
    supervised = make(
        taps=["b"],
        targets=[
            Teacher(model=teacher, temperature=2.0),
            Teacher(model=teacher, at="b", kind="hint"),
            Teacher(model=teacher, at={"b": "b"}, kind="attention"),
        ],
    )
    found = terms(supervised, images)
    with torch.no_grad():
        theirs = teacher.b(teacher.a(images))
        logits = teacher(images)
    student = supervised.base.b(supervised.base.a(images))  # type: ignore[operator]
    small = functional.adaptive_avg_pool2d(student, theirs.shape[-1])
    out = supervised(images).aux["b"]
    expected = functional.cross_entropy(out / 2, (logits / 2).softmax(1)) * 4
    torch.testing.assert_close(found["b/teacher_logits"], expected)
    adapter: Any = supervised.terms.adapters["b teacher_hint"]
    hint = functional.mse_loss(functional.adaptive_avg_pool2d(adapter(student), theirs.shape[-1]), theirs)
    torch.testing.assert_close(found["b/teacher_hint"], hint)

    def attention(x: Tensor) -> Tensor:
        return functional.normalize(x.square().mean(1).flatten(1))

    distance = (attention(small) - attention(theirs)).square().sum(1).mean()
    torch.testing.assert_close(found["b/teacher_attention"], distance)
    supervised.eval()
    assert teacher.training


def test_teachers_that_do_not_fit() -> None:
    with pytest.raises(SupervisionError, match=r"teacher gives \[6, 4\], and the head \[6, 5\]"):
        terms(make(targets=Teacher(model=Net(classes=4))), torch.randn(6, 3, 8, 8))
    with pytest.raises(SupervisionError, match=r"the teacher's 'fc' is a vector, and 'a' is a map"):
        make(targets=Teacher(model=Net(), at="fc", kind="hint"))
    with pytest.raises(SupervisionError, match="'main' is no layer"):
        make(targets={"main": Teacher(model=Net(), at="b", kind="hint")})
    with pytest.raises(SupervisionError, match="the teacher is a int"):
        make(targets=Teacher(model=3))
    with pytest.raises(SupervisionError, match="has no address for 'a'"):
        make(targets=Teacher(model=Net(), at={"b": "b"}, kind="hint"))


def test_a_teacher_by_reference_is_loaded_once(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    from spile import supervising

    loaded: list[Any] = []
    load = supervising.as_loaded

    def counted(model: Any) -> Any:
        loaded.append(model)
        if model != "timm:wide":
            return load(model)
        return LoadedModel(Net(width=24).eval(), "timm:wide", PREPARED, None, None)

    monkeypatch.setattr(supervising, "as_loaded", counted)
    named = Teacher(model="timm:wide", at="b", kind="hint")
    targets = {"a": [named, Teacher(model="timm:wide")], "b": [named]}
    supervised = make(taps=["a", "b"], targets=targets)
    assert loaded.count("timm:wide") == 1
    teachers = {id(r.__dict__["_teacher"].model) for r in supervised.terms.references}  # type: ignore[union-attr]
    assert len(supervised.terms.references) == 2 and len(teachers) == 1
    assert all(term.isfinite() for term in terms(supervised, images).values())


def test_a_teacher_that_wants_other_colours_is_refused() -> None:
    student = LoadedModel(Net(), "timm:narrow", PREPARED, None, None)
    other = replace(PREPARED, mean=(0.1, 0.2, 0.3))
    teacher = LoadedModel(Net(), "timm:wide", other, None, None)
    with pytest.raises(
        SupervisionError, match=r"teacher timm:wide wants.*mean \(0\.1, 0\.2, 0\.3\), not \(0\.5"
    ):
        make(student, targets=Teacher(model=teacher))
    larger = LoadedModel(Net(), "timm:wide", replace(PREPARED, crop=(64, 64)), None, None)
    make(student, targets=Teacher(model=larger))


def test_a_compiled_model_with_every_reference(images: Tensor) -> None:
    torch._dynamo.reset()
    teacher = Net().eval()
    targets = [
        Labels(),
        SmoothedLabels(samples=6),
        PseudoLabels(source="ema"),
        Teacher(model=teacher),
        Teacher(model=teacher, at="a", kind="hint"),
    ]
    supervised = make(targets=targets, weight=Uncertainty())
    compiled = torch.compile(supervised, fullgraph=True, backend="eager")
    found = supervised.eval().loss(compiled(images), LABELS, progress=0.0, ids=torch.arange(6))
    expected = supervised.loss(supervised(images), LABELS, progress=0.0, ids=torch.arange(6))
    for name in expected.terms:
        torch.testing.assert_close(found.terms[name], expected.terms[name], msg=name)


# --- pseudo-labels and smoothed labels ------------------------------------------------------------


def peaked(classes: list[int], confidence: list[float]) -> Tensor:
    """Rows whose largest probability is as given."""
    rows = torch.stack([torch.full((5,), (1 - p) / 4) for p in confidence])
    rows[torch.arange(len(classes)), classes] = torch.tensor(confidence)
    return rows


def test_pseudo_labels_of_a_fixed_threshold(images: Tensor) -> None:
    supervised = make(targets=PseudoLabels(source="given", threshold=0.9))
    given = peaked([0, 1, 2, 3, 4, 0], [0.95, 0.99, 0.5, 0.96, 0.97, 0.4])
    labels = torch.tensor([0, 2, 2, -1, -1, -1])
    out = supervised(images)
    loss = supervised.loss(out, labels, progress=0.0, soft_labels=given)
    each = functional.cross_entropy(out.aux["a"], given.argmax(1), reduction="none")
    torch.testing.assert_close(loss.terms["a/pseudo_labels"], (each[3] + each[4]) / 3)
    assert loss.stats["a/coverage"].item() == pytest.approx(2 / 3)
    assert loss.stats["a/precision"].item() == pytest.approx(1 / 2)
    with pytest.raises(SupervisionError, match=r"needs sup\.loss\(\.\.\., soft_labels=p\).*received None"):
        supervised.loss(out, labels, progress=0.0)


def test_pseudo_labels_from_the_main_output_give_it_no_gradient(images: Tensor) -> None:
    supervised = make(targets=PseudoLabels(threshold=0.0))
    term = terms(supervised, images, torch.full((6,), -1))["a/pseudo_labels"]
    found = torch.autograd.grad(term, list(supervised.base.fc.parameters()), allow_unused=True)  # type: ignore[union-attr]
    assert found == (None, None)


def test_adaptive_thresholds_follow_the_confidence_of_each_class(images: Tensor) -> None:
    """FreeMatch, equations 5 to 8."""
    supervised = make(targets=PseudoLabels(source="given", threshold="adaptive", decay=0.9), taps=["a", "b"])
    given = peaked([0, 0, 1, 1, 2, 3], [0.9, 0.8, 0.7, 0.9, 0.6, 0.99])
    labels = torch.tensor([-1, -1, -1, -1, -1, 3])
    loss = supervised.loss(supervised(images), labels, progress=0.0, soft_labels=given)
    free = given[:5]
    everywhere = 0.9 * 0.2 + 0.1 * free.amax(1).mean()
    by_class = 0.9 * torch.full((5,), 0.2) + 0.1 * free.mean(0)
    expected = everywhere * by_class / by_class.max()
    found = supervised.terms.references[0].thresholds.by_class()  # type: ignore[union-attr,operator]
    torch.testing.assert_close(found, expected)  # moved once, though two heads have this target
    assert loss.stats["a/coverage"].item() == 1


def test_smoothed_labels(images: Tensor) -> None:
    """Temporal ensembling, equation 1 of section 2.2 with its correction."""
    supervised = make(targets=SmoothedLabels(samples=10, decay=0.6), taps=["a", "b"])
    ids = torch.tensor([9, 0, 3, 4, 5, 6])
    first = supervised.loss(out := supervised(images), LABELS, progress=0.0, ids=ids)
    assert first.terms["a/smoothed_labels"].item() == 0  # nothing is known of rows seen for the first time
    one = out.main.detach().softmax(1)
    with torch.no_grad():
        supervised.base.fc.bias.add_(torch.arange(5.0))  # type: ignore[union-attr,operator]
    again = supervised.loss(out := supervised(images), LABELS, progress=0.0, ids=ids)
    torch.testing.assert_close(again.terms["a/smoothed_labels"], functional.cross_entropy(out.aux["a"], one))
    two = out.main.detach().softmax(1)
    third = supervised.loss(out, LABELS, progress=0.0, ids=ids).terms["b/smoothed_labels"]
    mean = (0.6 * 0.4 * one + 0.4 * two) / (1 - 0.6**2)
    torch.testing.assert_close(third, functional.cross_entropy(out.aux["b"], mean))
    for wrong in (None, torch.arange(5), torch.tensor([0, 1, 2, 3, 4, 10]), torch.rand(6)):
        with pytest.raises(SupervisionError, match=r"ids="):
            supervised.loss(out, LABELS, progress=0.0, ids=wrong)


# --- weights --------------------------------------------------------------------------------------


def test_uncertainty_weighting_is_learnt(images: Tensor) -> None:
    supervised = make(weight=Uncertainty())
    with torch.no_grad():
        supervised.log_variances.copy_(torch.tensor([0.5, -1.0]))  # type: ignore[union-attr]
    loss = supervised.loss(supervised(images), LABELS, progress=0.0)
    main, a = loss.terms["main/labels"], loss.terms["a/labels"]
    s = torch.tensor([0.5, -1.0])
    torch.testing.assert_close(loss.total, (-s).exp() @ torch.stack([main, a]) + s.sum())
    loss.total.backward()
    expected = -(-s).exp() * torch.stack([main, a]).detach() + 1
    torch.testing.assert_close(supervised.log_variances.grad, expected)  # type: ignore[union-attr]
    assert "log_variances" in supervised.state_dict()


def test_torchjd_aggregates_the_losses_of_the_heads(images: Tensor) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    supervised = make(weight=Aggregated(aggregation.Sum()))
    plain = make(weight=Constant(1.0))
    plain.load_state_dict(supervised.state_dict())
    for model in (supervised, plain):
        loss = model.loss(model(images), LABELS, progress=0.0)
        model.backward(loss)
        assert loss.total.requires_grad == (model is plain)
    for one, two in zip(supervised.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    supervised = make(weight=Aggregated(aggregation.UPGrad()))
    supervised.backward(supervised.loss(supervised(images), LABELS, progress=0.0))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in supervised.parameters())
