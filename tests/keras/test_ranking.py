"""The demo network ranks its layers through Keras as it does through PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

import spile

# spile transfer demo:mnist5k -m demo:efficientnet_lite0 --input-size 64 --shots 5 --seeds 5, on PyTorch: mean
# accuracy by cross-validation on the 50 labels; held-out accuracy of the chosen layer, the last, raw pixels.
ON_PYTORCH = {
    "@in": 0.578, "blocks/0": 0.272, "blocks/1": 0.410, "blocks/2": 0.716, "blocks/3": 0.830,
    "blocks/4": 0.778, "blocks/5": 0.772, "blocks/6": 0.654, "classifier@in": 0.588,
}  # fmt: skip
HELD_OUT = {"chosen": 0.786, "last": 0.519, "raw": 0.601}


@pytest.mark.zoo
def test_the_layers_rank_as_on_pytorch(tmp_path: Path) -> None:
    model = spile.load_model("demo:efficientnet_lite0_keras", input_size=64)
    run = spile.transfer(model, "demo:mnist5k", out=tmp_path, shots=5, seeds=5, progress=False)
    scores = {row.address: row.score for row in run.result.table}
    assert scores == pytest.approx(ON_PYTORCH, abs=0.01)
    assert sorted(scores, key=scores.__getitem__) == sorted(ON_PYTORCH, key=ON_PYTORCH.__getitem__)
    assert run.means == pytest.approx(HELD_OUT, abs=0.01)
