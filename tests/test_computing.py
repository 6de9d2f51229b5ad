"""What is kept of a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import spile


class Encoder(nn.Module):
    """Its `padding_mask` says where there is padding, as in PyTorch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)

    def forward(self, x: Tensor, padding_mask: Tensor) -> Tensor:
        return self.line(x).masked_fill(padding_mask[..., None], 0)


def test_a_padding_mask_of_pytorch_is_not_taken_for_one_of_keras() -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    padding = np.zeros((6, 5), bool)
    padding[:, 3:] = True
    model = Encoder()
    tap = spile.tap(model, "line", pool=None)
    store = spile.extract(tap, ({"x": x, "padding_mask": padding},), dtype="float32", progress=False)
    with torch.no_grad():
        np.testing.assert_allclose(store["line"], model.line(torch.from_numpy(x)).numpy(), rtol=1e-5)


def test_a_result_without_samples_is_refused_by_name() -> None:
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    tap = spile.tap(nn.Sequential(nn.Linear(3, 2), Total()), "1", pool=None, example=(2, 3))
    with pytest.raises(spile.ModelError, match="1 gives no rows for 4 samples"):
        spile.extract(tap, np.ones((4, 3), np.float32), progress=False)


def test_a_batch_size_may_be_a_number_of_numpy() -> None:
    tap = spile.tap(nn.Linear(3, 2), "@out", example=(2, 3))
    store = spile.extract(tap, np.ones((4, 3), np.float32), batch_size=np.int64(2), progress=False)  # type: ignore[arg-type]
    assert store.manifest.fingerprinted["batch_size"] == 2
