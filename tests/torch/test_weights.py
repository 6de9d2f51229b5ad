from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spile.errors import ModelError
from spile.torch.weights import (
    architecture_hash,
    assign_weights,
    load_weights,
    read_weights,
    save_weights,
    weights_hash,
)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)
    ).eval()


class Tied(nn.Module):
    """Two names of one parameter, and a buffer that is a view into another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("whole", torch.arange(6.0))
        self.register_buffer("part", self.whole[2:4])


def test_hash_sees_one_weight_one_buffer_names_dtypes_and_shapes() -> None:
    seen = {weights_hash(net())}
    for change in ("weight", "buffer", "dtype", "name", "shape"):
        model: nn.Module = net()
        if change == "weight":
            model[4].weight.data[1, 2] += 1e-7 * model[4].weight.data[1, 2].abs() + 1e-7
        elif change == "buffer":
            model[1].running_mean[0] = 0.5
        elif change == "dtype":
            model = model.half()
        elif change == "name":
            model = nn.Sequential(*model, nn.Identity())
            model = nn.ModuleDict({"inner": model})
        else:
            model[4].weight.data = model[4].weight.data.reshape(4, 2)
        seen.add(weights_hash(model))
    assert len(seen) == 6


def test_hash_ignores_order_memory_format_and_gradients() -> None:
    model = net()
    before = weights_hash(model)
    swapped = nn.Module()
    for name, child in reversed(list(model.named_children())):
        swapped.add_module(name, child)
    assert list(swapped.state_dict()) != list(model.state_dict())
    assert weights_hash(swapped) == before
    assert weights_hash(copy.deepcopy(model).to(memory_format=torch.channels_last)) == before
    assert weights_hash(model.requires_grad_(False)) == before


def test_hash_takes_every_dtype_and_scalars() -> None:
    model = nn.Module()
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64):
        model.register_buffer(str(dtype).replace(".", "_"), torch.ones((), dtype=dtype))
    model.register_buffer("empty", torch.empty(0, 3))
    assert len(weights_hash(model)) == 32


def test_architecture_hash_is_of_the_structure_alone() -> None:
    assert architecture_hash(net(0)) == architecture_hash(net(1))
    wider = nn.Sequential(*list(net())[:-1], nn.Linear(4, 3))
    other_class = nn.Sequential(*[nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in net()])
    other_option = net()
    other_option[1].eps = 1e-3
    assert len({architecture_hash(model) for model in (net(), wider, other_class, other_option)}) == 4


def test_architecture_hash_ignores_addresses_and_sees_traced_graphs() -> None:
    class Described(nn.Module):
        def extra_repr(self) -> str:
            return f"act={self.act}"

        def __init__(self) -> None:
            super().__init__()
            self.act = lambda x: x

    assert architecture_hash(Described()) == architecture_hash(Described())

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    class Squared(Twice):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x

    assert len({architecture_hash(torch.fx.symbolic_trace(cls())) for cls in (Twice, Squared)}) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_saved_and_loaded_is_the_same_model(tmp_path: Path, dtype: torch.dtype) -> None:
    model, other = net(0).to(dtype), net(1)
    parameters = list(other.parameters())
    save_weights(model, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert weights_hash(other) == weights_hash(model)
    assert all(a is b for a, b in zip(parameters, other.parameters(), strict=True))
    assert [file.name for file in tmp_path.iterdir()] == ["w.safetensors"]


def test_tied_and_overlapping_tensors_survive(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    save_weights(model, tmp_path / "w.safetensors")
    assert set(load_file(tmp_path / "w.safetensors")) == {"embed.weight", "whole", "part"}
    load_weights(other, tmp_path / "w.safetensors")
    assert other.head.weight is other.embed.weight
    assert weights_hash(other) == weights_hash(model)
    assert set(read_weights(tmp_path / "w.safetensors")) == set(model.state_dict())


def test_keep_writes_whole_paths_only_and_loading_the_rest_must_be_allowed(tmp_path: Path) -> None:
    model = nn.ModuleDict({"layer1": nn.Linear(2, 2), "layer10": nn.Linear(2, 2)})
    model.register_parameter("scale", nn.Parameter(torch.ones(2)))
    path = tmp_path / "w.safetensors"
    save_weights(model, path, keep={"layer1", "scale", "no.such.layer"})
    assert set(read_weights(path)) == {"layer1.weight", "layer1.bias", "scale"}
    other = copy.deepcopy(model)
    nn.init.zeros_(other["layer1"].weight)
    with pytest.raises(ModelError, match=r"2 missing \(layer10.weight, layer10.bias\)"):
        load_weights(other, path)
    load_weights(other, path, allow_missing=True)
    assert torch.equal(other["layer1"].weight, model["layer1"].weight)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(net(0), path)
    before = path.read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("spile.torch.weights.save_file", full)
    with pytest.raises(ModelError, match="No space left on device"):
        save_weights(net(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_pickled_weights_are_unwrapped(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    weights = {f"{prefix}{name}": tensor for name, tensor in net().state_dict().items()}
    torch.save(weights if wrapper is None else {wrapper: weights, "epoch": 3}, tmp_path / "w.pth")
    model = net(1)
    assign_weights(model, read_weights(tmp_path / "w.pth"), origin="w.pth")
    assert weights_hash(model) == weights_hash(net())


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("pwned"),)


@pytest.mark.parametrize("legacy", [False, True])
def test_no_code_in_a_weights_file_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = {"weight": torch.ones(1), "evil": Evil()}
    torch.save(content, "w.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ModelError, match="more than tensors") as caught:
        read_weights("w.pth")
    assert "\n" not in str(caught.value)
    assert not Path("pwned").exists()
    torch.load("w.pth", weights_only=False)
    assert Path("pwned").exists()


def test_a_whole_pickled_module_and_torchscript_are_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "module.pth")
    with pytest.raises(ModelError, match="state_dict"):
        read_weights(tmp_path / "module.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.safetensors", b"junk", "not a readable safetensors file"),
        ("w.pth", b"junk", "w.pth"),
        ("w.pth", b"", "not a weights file"),
        ("w.h5", b"junk", "use .safetensors"),
    ],
)
def test_unreadable_files_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_files_without_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights file"):
        read_weights(tmp_path / "absent.pth")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="holds no state dict"):
        read_weights(tmp_path / "w.pt")


def test_what_does_not_fit_is_listed_and_nothing_is_copied(tmp_path: Path) -> None:
    model = net()
    before = weights_hash(model)
    weights = net(1).state_dict()
    weights["4.weight"] = torch.zeros(10, 4)
    weights["fc.bias"] = weights.pop("4.bias")
    save_file(weights, tmp_path / "w.safetensors", metadata={"aliases": json.dumps({})})
    with pytest.raises(ModelError) as caught:
        load_weights(model, tmp_path / "w.safetensors", allow_missing=True)
    assert "1 unexpected (fc.bias)" in str(caught.value)
    assert "4.weight (10, 4), not (2, 4)" in str(caught.value)
    with pytest.raises(ModelError, match=r"1 missing \(4.bias\)"):
        assign_weights(model, read_weights(tmp_path / "w.safetensors"), origin="w")
    assert weights_hash(model) == before


class Scaled(nn.Module):
    """Computes with what is neither a parameter nor in the state dict."""

    def __init__(self, buffer: float = 1.0, setting: Any = 1.0) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(buffer), persistent=False)
        self.setting = setting


def test_hashes_see_buffers_outside_the_state_dict_and_plain_attributes() -> None:
    assert weights_hash(Scaled()) == weights_hash(Scaled(setting=2.0)) != weights_hash(Scaled(buffer=2.0))
    assert architecture_hash(Scaled()) == architecture_hash(Scaled().eval())
    for other in (2.0, "same", (1, 2), None, True):
        assert architecture_hash(Scaled(setting=other)) != architecture_hash(Scaled())
    assert architecture_hash(Scaled(setting=object())) == architecture_hash(Scaled(setting=object()))


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_hash_sees_into_quantised_layers() -> None:
    def quantised(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(8, 8)), {nn.Linear})

    assert weights_hash(quantised(0)) == weights_hash(quantised(0)) != weights_hash(quantised(1))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_hash_takes_sparse_and_conjugate_buffers() -> None:
    def holding(buffer: torch.Tensor) -> str:
        model = nn.Module()
        model.register_buffer("kept", buffer)
        return weights_hash(model)

    dense = torch.eye(3)
    other = dense * 2
    for made in (torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr):
        assert holding(made(dense)) == holding(made(dense.clone())) != holding(made(other))
    values = torch.complex(torch.ones(2), torch.ones(2))
    assert holding(values.conj()) == holding(torch.complex(torch.ones(2), -torch.ones(2))) != holding(values)
