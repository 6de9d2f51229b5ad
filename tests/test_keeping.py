"""A bank that the training model fills: the guide's own maps, one epoch late, of what was really seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.transforms import v2

import spile
from spile.augmentation import AttentionDrop, Axis, ByLevel, Crop, Frame, Grid, MapCutMix, Maps, Quantile
from spile.banking import Keeper, MapBank
from spile.errors import AugmentationError, CaptureError, FingerprintMismatch
from spile.feeding import Feed

SHAPE = (1, 3, 32, 32)
READY = {"given": "ready", "example": SHAPE}
SEEN = spile.ImagePreprocessing(crop=(32, 32))


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU(inplace=True))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).train()


def pictures(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def hooks(model: nn.Module) -> int:
    """The guide has one of its own."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


IDS = ["a", "b", "c", "d"]
FRAMES = [
    Frame(source=(64, 64), top=0, left=8 * i, height=32, width=32, size=(32, 32), flipped=i > 1)
    for i in range(4)
]


def test_kept_maps_are_those_of_the_guide_and_serve_from_the_next_epoch() -> None:
    model = net()
    guide = spile.guide(model, "0", **READY)
    bank = MapBank(guide, refresh=2, missing="flat")
    expected = guide(pictures())
    before = hooks(model)
    weight = model[0][0].weight.detach().clone()
    with bank.keeper() as keeper:
        keeper.step(IDS, frames=FRAMES, epoch=0)
        model(pictures()).sum().backward()
        assert len(bank) == 0  # not before the epoch is over
        keeper.end(0)
        found = bank.maps(IDS, FRAMES)
        np.testing.assert_allclose(found.values, expected.values, atol=2e-3)
        here = Maps(expected.values, expected.grids, expected.frames).on_pixels()
        np.testing.assert_allclose(found.on_pixels(), here, atol=5e-3)  # crops and flips replayed
        assert (bank.epoch, bank.due(1), bank.due(2), bank.due(3)) == (1, False, False, True)
        with torch.no_grad():
            model[0][0].weight.mul_(-1)
        for epoch, changes in ((1, False), (2, True)):  # before epoch 3 they are due
            keeper.step(IDS, frames=FRAMES, epoch=epoch)
            model(pictures())
            keeper.end(epoch)
            assert np.allclose(bank.maps(IDS, FRAMES).values, found.values) is not changes
    assert torch.equal(model[0][0].weight, -weight)
    assert hooks(model) == before


def test_what_is_not_a_training_pass_is_not_kept() -> None:
    model = net()
    with MapBank(spile.guide(model, "0", **READY)).keeper() as keeper:
        keeper.step(IDS, frames=FRAMES, epoch=0)
        model.eval()(pictures())
        with pytest.raises(CaptureError, match="epoch 0 gave no map"):
            keeper.end(0)
        keeper.step(IDS, frames=FRAMES, epoch=0)
        with pytest.raises(CaptureError, match="the pass is of 2 samples, and step was told of 4"):
            model.train()(pictures(2))


def test_a_pass_that_runs_again_is_read_once() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.body, x, use_reentrant=False)  # type: ignore[no-any-return]

    model = Net().train()
    with MapBank(spile.guide(model, "body.0", **READY)).keeper() as keeper:
        keeper.step(IDS, frames=FRAMES, epoch=0)
        loss = model(pictures()).sum()
        keeper.step(IDS, frames=FRAMES, epoch=0)
        loss.backward()  # runs the layers of the first batch again
        model(pictures())
        keeper.end(0)
        assert len(keeper.bank) == 4


def test_samples_that_are_hidden_keep_the_map_they_have() -> None:
    model = net()
    bank = MapBank(spile.guide(model, "0", **READY), refresh=1, missing="flat")
    with bank.keeper() as keeper:
        keeper.step(IDS, frames=[FRAMES[0], None, FRAMES[2], None], epoch=0)
        model(pictures())
        keeper.end(0)
        assert sorted(bank._kept) == ["a", "c"]
        keeper.step(IDS, frames=[None] * 4, epoch=1)
        model(pictures())
        with pytest.raises(CaptureError, match="Mixes, crops and drops of a policy hide samples"):
            keeper.end(1)
        with pytest.raises(AugmentationError, match="1 frames for 4 ids"):
            keeper.step(IDS, frames=[None], epoch=1)


def test_a_feed_says_which_pictures_still_show_their_sample() -> None:
    guide = spile.guide(net().eval(), "0", preprocessing=SEEN, example=SHAPE)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 40, 40, 3), np.uint8)
    for policy, whole in (
        (ByLevel(Quantile(0.5), low=v2.ColorJitter(0.5)), True),
        (ByLevel(Quantile(0.5), low=[v2.ColorJitter(0.5), v2.RandomHorizontalFlip(1.0)]), False),
        (AttentionDrop(), False),
        (AttentionDrop(p=0.0), True),
        (MapCutMix(), False),
        (MapCutMix(p=0.0), True),
    ):
        feed = Feed(
            spile.augment(guide, policy), (pixels, np.arange(4) % 2), batch_size=4, crop=Crop((32, 32))
        )
        _, origins = feed.traced(0, 0)
        assert [frame is not None for frame in origins.frames] == [whole] * 4, policy


def test_maps_that_training_makes_reach_workers() -> None:
    """Workers have copies of the bank, and their batches are the same as without them in every epoch."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    data = (pixels, np.arange(6) % 2)

    def run(workers: int) -> list[Tensor]:
        model = net()
        bank = MapBank(spile.guide(model, "0", **READY), refresh=1, missing="flat")
        augmenter = spile.augment(bank, ByLevel(Quantile(0.5), low=v2.ColorJitter(0.5)))
        loader = spile.feed(augmenter, data, batch_size=3, crop=Crop((32, 32)), workers=workers, origins=True)
        found = []
        with bank.keeper() as keeper:
            for epoch in range(3):
                loader.set_epoch(epoch)
                for images, _, origins in loader:
                    keeper.step(origins.ids, frames=origins.frames, epoch=epoch)
                    model(images.float() / 255)
                    found.append(images)
                keeper.end(epoch)
        return found

    alone = run(0)
    assert all(torch.equal(a, b) for a, b in zip(alone, run(1), strict=True))


def test_an_empty_bank_may_begin_flat() -> None:
    bank = MapBank(spile.guide(net(), "0", **READY), missing="flat")
    flat = bank.maps(["a", "b"], FRAMES[:2])
    assert not flat.values.any()
    assert flat.areas.sum((1, 2)) == pytest.approx([1, 1])
    one = Maps(np.ones((1, 8, 8), np.float32), (Grid(Axis(8, 4, 1.5), Axis(8, 4, 1.5)),), (FRAMES[0],))
    bank.update(["a"], one)
    assert bank.maps(["a", "z"], FRAMES[:2]).values.shape == (2, 8, 8)
    with pytest.raises(AugmentationError, match="maps of 4 x 4 cells do not go into a bank of 8 x 8"):
        bank.update(["b"], Maps(np.ones((1, 4, 4), np.float32), one.grids, one.frames))
    with pytest.raises(AugmentationError, match="no map is kept for 'z'"):
        MapBank(spile.guide(net(), "0", **READY)).maps(["z"], FRAMES[:1])
    with pytest.raises(AugmentationError, match="missing='zero': write 'raise' or 'flat'"):
        MapBank(spile.guide(net(), "0", **READY), missing="zero")  # type: ignore[arg-type]


def test_a_bank_of_a_model_in_training_is_known_by_its_layers_and_run(tmp_path: Path) -> None:
    path = tmp_path / "maps.lance"

    def bank(model: nn.Module, at: str = "0", **options: Any) -> MapBank:
        return MapBank(spile.guide(model, at, **READY), path, **options)

    model = net()
    first = bank(model, run="one")
    with first.keeper() as keeper:
        keeper.step(IDS, frames=FRAMES, epoch=0)
        model(pictures())
        keeper.end(0)
    again = bank(net(seed=1), run="one")  # other weights: it went on training
    np.testing.assert_array_equal(again.maps(IDS, FRAMES).values, first.maps(IDS, FRAMES).values)
    assert again.epoch == 1
    wider = nn.Sequential(net()[0], nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2))
    for other in (
        lambda: bank(model, run="two"),
        lambda: bank(model),
        lambda: bank(wider, run="one"),
        lambda: bank(model, at="0.0", run="one"),
    ):
        with pytest.raises(FingerprintMismatch, match="or the run= of a model in training"):
            other()


def test_what_cannot_be_kept() -> None:
    with pytest.raises(AugmentationError, match="reduce='gradcam' needs a pass of its own"):
        Keeper(MapBank(spile.guide(net(), "0", reduce="gradcam", **READY)))
    with pytest.raises(AugmentationError, match="kept maps are of the output of a layer that runs once"):
        Keeper(MapBank(spile.guide(net(), "0.1@in", **READY)))
    model = net()
    guide = spile.guide(model, "0", **READY)
    model[0].compile()
    with pytest.raises(AugmentationError, match="make the keeper before"):
        Keeper(MapBank(guide))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*LeafSpec")
def test_lightning(tmp_path: Path) -> None:
    pl = pytest.importorskip("lightning.pytorch")
    from spile.torch.on_lightning import KeepMaps

    model = net()
    bank = MapBank(spile.guide(model, "0", **READY), refresh=1, missing="flat")
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)
    augmenter = spile.augment(bank, ByLevel(Quantile(0.5), low=v2.ColorJitter(0.5)))
    loader = spile.feed(augmenter, (pixels, np.arange(6) % 2), batch_size=3, origins=True)
    epochs: list[int] = []

    class Module(pl.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def training_step(self, batch: Any, index: int) -> Tensor:
            epochs.append(loader.sampler.epoch)
            images, labels, _ = batch
            return nn.functional.cross_entropy(self.net(images.float() / 255), labels)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[KeepMaps(bank)], default_root_dir=tmp_path,
    )  # fmt: skip
    before = hooks(model)
    trainer.fit(Module(), loader)
    assert epochs == [0, 0, 1, 1]  # Lightning tells the loader's sampler
    assert (len(bank), bank.epoch) == (6, 2)
    assert hooks(model) == before
