"""What a tap returns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spile.interfaces import Activations


def test_activations_map_names_to_tensors_and_show_shapes() -> None:
    acts = Activations({"layer1": torch.zeros(2, 3), "fc": np.zeros((2, 5))})
    assert repr(acts) == "Activations({'layer1': (2, 3), 'fc': (2, 5)})"
    assert list(acts) == ["layer1", "fc"]
    assert dict(acts)["fc"].shape == (2, 5)
    assert isinstance(acts, dict)


@pytest.mark.parametrize(
    "change",
    [
        lambda acts: acts.__setitem__("a", 1),
        lambda acts: acts.__delitem__("a"),
        lambda acts: acts.update(a=1),
        lambda acts: acts.pop("a"),
        lambda acts: acts.popitem(),
        lambda acts: acts.clear(),
        lambda acts: acts.setdefault("b", 1),
        lambda acts: acts.__ior__({"b": 1}),
    ],
)
def test_activations_are_read_only(change: Any) -> None:
    acts = Activations({"a": torch.zeros(1)})
    with pytest.raises(TypeError, match=r"activations are read-only; copy them with dict\(activations\)"):
        change(acts)
    assert list(acts) == ["a"]
