"""The same bytes from any number of workers, after a restart, and from several ranks."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import v2

import spile
from spile.augmentation import ByLevel, Crop, MapCutMix, Policy, Quantile
from spile.banking import MapBank
from spile.errors import AugmentationError, DataError
from spile.feeding import Feed

SEEN = spile.ImagePreprocessing(resize=32, crop=(32, 32))


def data(count: int = 22) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 40, 40, 3), np.uint8), np.arange(count) % 3


def policy() -> Policy:
    return ByLevel(
        Quantile(0.5, 0.8), low=[v2.ColorJitter(0.5), v2.RandomHorizontalFlip()], high=v2.GaussianBlur(3)
    )


@pytest.fixture(scope="module")
def bank() -> MapBank:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1), nn.ReLU())
    guide = spile.guide(model, "1", preprocessing=SEEN, example=(1, 3, 32, 32))
    return MapBank(guide).fill(spile.data.open_source(data()))


def run(
    bank: MapBank, chosen: Policy, *, workers: int = 0, epochs: tuple[int, ...] = (0, 1), **options: Any
) -> list[str]:
    augmenter = spile.augment(bank, chosen, seed=5)
    loader = spile.feed(augmenter, data(), batch_size=4, crop=Crop((24, 24)), workers=workers, **options)
    found = []
    for epoch in epochs:
        loader.set_epoch(epoch)
        for images, labels in loader:
            found.append(hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest())
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker")
@pytest.mark.parametrize("chosen", [policy(), MapCutMix()], ids=["bylevel", "cutmix"])
def test_the_bytes_do_not_depend_on_workers(bank: MapBank, chosen: Policy) -> None:
    alone = run(bank, chosen)
    assert len(set(alone)) == 12
    for workers in (1, 4):
        assert run(bank, chosen, workers=workers) == alone


def test_a_resumed_run_goes_on_as_if_never_stopped(bank: MapBank) -> None:
    assert run(bank, policy(), epochs=(1,)) == run(bank, policy())[6:]


def test_ranks_share_the_batches_of_one(bank: MapBank) -> None:
    alone = run(bank, policy(), epochs=(0,))
    shares = [run(bank, policy(), epochs=(0,), rank=rank, ranks=2) for rank in (0, 1)]
    assert [one for pair in zip(*shares, strict=True) for one in pair] == alone


@pytest.mark.parametrize("ranks", [4, 5, 8])
def test_every_rank_gets_equally_many_batches(bank: MapBank, ranks: int) -> None:
    alone = run(bank, policy(), epochs=(0,))
    shares = [run(bank, policy(), epochs=(0,), rank=rank, ranks=ranks) for rank in range(ranks)]
    dealt = [one for each in zip(*shares, strict=True) for one in each]
    assert dealt == (alone + alone)[: len(dealt)]
    assert set(dealt) == set(alone)


def test_the_global_generators_are_untouched(bank: MapBank) -> None:
    before = torch.get_rng_state()
    run(bank, policy(), workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_is_a_pass_over_all_samples(bank: MapBank) -> None:
    made = Feed(spile.augment(bank, policy()), data(), batch_size=4, crop=Crop((24, 24)))
    assert len(made) == 6
    labels = np.concatenate([made.batch(number, 0).labels.numpy() for number in range(6)])
    assert sorted(labels.tolist()) == sorted(data()[1].tolist())
    assert made.classes == (0, 1, 2)
    assert made.batch(0, 0).images.shape == (4, 3, 24, 24)


def test_without_a_crop_the_guide_s_picture_is_taken() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4, padding=1))
    guide = spile.guide(model, "0", preprocessing=SEEN, example=(1, 3, 32, 32))
    loader = spile.feed(spile.augment(guide, policy()), data(8), batch_size=8)
    ((images, _),) = list(loader)
    assert images.shape == (8, 3, 32, 32)
    assert images.dtype == torch.uint8


def test_collate_for_a_loader_of_one_s_own(bank: MapBank) -> None:
    augmenter = spile.augment(bank, policy())
    ids = [record.id for record in spile.data.open_source(data()).records]
    frame = spile.augmentation.Frame.whole((40, 40))
    items = [(torch.zeros(3, 40, 40), label, one, frame) for label, one in zip(data()[1], ids, strict=True)]
    images, labels = torch.utils.data.DataLoader(items, 4, collate_fn=augmenter.collate).__iter__().__next__()
    assert images.shape == (4, 3, 40, 40)
    assert labels.tolist() == [0, 1, 2, 0]


def test_what_cannot_be_fed() -> None:
    class Nothing:
        framework = "torch"

    with pytest.raises(AugmentationError, match="policy='cutmix' is no policy"):
        spile.augment(Nothing(), "cutmix")  # type: ignore[arg-type]
    with pytest.raises(AugmentationError, match="framework=None: write 'torch' or 'keras'"):
        spile.augment(object(), policy())  # type: ignore[arg-type]


def test_samples_without_labels_are_refused(bank: MapBank) -> None:
    with pytest.raises(DataError, match="a sample has no label"):
        Feed(spile.augment(bank, policy()), data()[0], batch_size=4)
