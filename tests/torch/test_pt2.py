from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spile.errors import ModelError
from spile.torch import pt2


def net() -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=6), 3: torch.export.Dim("w", min=6)}
    program = torch.export.export(net().eval(), (torch.randn(2, 3, 8, 8),), dynamic_shapes=(sizes,))
    torch.export.save(program, path)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], **extra: bytes) -> Path:
    """A copy of the archive with the contents of its files changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        root = old.namelist()[0].partition("/")[0]
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename.partition("/")[2], old.read(info)))
        for name, content in extra.items():
            new.writestr(f"{root}/{name}", content)
    return target


def test_an_exported_program_has_the_layers_and_values_of_its_model(exported: Path) -> None:
    model, original = pt2.load(exported), net().eval()
    x, seen = torch.randn(3, 3, 12, 9), []
    assert not model.training
    assert set(dict(model.named_modules())) == set(dict(original.named_modules()))
    model.get_submodule("0.2").register_forward_hook(lambda *call: seen.append(call[2]))
    assert torch.equal(model(x), original(x))
    assert torch.equal(seen[0], original[0][:3](x))


def test_a_model_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    program = torch.export.export(net().train(), (torch.randn(2, 3, 8, 8),))
    torch.export.save(program, tmp_path / "net.pt2")
    with pytest.raises(ModelError, match=r"training mode. Call model.eval\(\)"):
        pt2.load(tmp_path / "net.pt2")


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_what_is_no_program_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "net.pt2"
    if content is None:
        torch.save({"weight": torch.ones(1)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match="not an exported program"):
        pt2.load(path)
    with pytest.raises(ModelError, match="no file"):
        pt2.load(tmp_path / "absent.pt2")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def with_pickled_inputs(name: str, content: bytes) -> bytes:
    return pickled(((Evil(),), {})) if name.startswith("data/sample_inputs/") else content


def with_pickled_weight(name: str, content: bytes) -> bytes:
    if name == "data/weights/weight_0":
        return pickled(Evil())
    if not name.endswith("weights_config.json"):
        return content
    config = json.loads(content)
    next(p for p in config["config"].values() if p["path_name"] == "weight_0")["use_pickle"] = True
    return json.dumps(config).encode()


def with_program(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def rewrite(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    return rewrite


def call_the_system(program: dict[str, Any]) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.os.mkdir"
    node["inputs"] = [{"name": "path", "arg": {"as_string": "pwned"}, "kind": 1}]


def evaluate_a_shape(program: dict[str, Any]) -> None:
    def poison(value: Any) -> None:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if key == "expr_str":
                value[key] = "__import__('os').mkdir('pwned')"
            elif isinstance(item, dict | list):
                poison(item)

    poison(program)


def name_an_argument(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["forward_arg_names"] = ["x=__import__('os').mkdir('pwned')"]


def import_a_module(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    spec = {"__enum__": True, "fqn": "antigravity:X", "name": "Y"}
    signature["in_spec"] = json.dumps(
        [1, {"type": "builtins.dict", "context": json.dumps([spec]), "children_spec": []}]
    )


ATTACKS = {
    "sample inputs": with_pickled_inputs,
    "weights": with_pickled_weight,
    "functions": with_program(call_the_system),
    "shapes": with_program(evaluate_a_shape),
    "argument names": with_program(name_an_argument),
    "tree of inputs": with_program(import_a_module),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_code_in_a_program_runs(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(exported, tmp_path / "evil.pt2", ATTACKS[attack])
    with pytest.raises(ModelError, match="could run code"):
        pt2.load(path)
    assert not Path("pwned").exists()


@pytest.mark.parametrize("attack", ["sample inputs", "weights", "shapes"])
def test_the_attacks_are_real(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = rewritten(exported, tmp_path / "evil.pt2", ATTACKS[attack])
    try:
        torch.export.load(path)
    except Exception as error:
        print(error)
    assert Path("pwned").exists()


def test_compiled_libraries_and_custom_objects_are_refused(exported: Path, tmp_path: Path) -> None:
    compiled = {"data/aotinductor/model/model.so": b"code"}
    with pytest.raises(ModelError, match="compiled library"):
        pt2.load(rewritten(exported, tmp_path / "a.pt2", lambda name, content: content, **compiled))

    def opaque(name: str, content: bytes) -> bytes:
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": None}
        return (
            json.dumps({"config": {"evil": payload}}).encode()
            if name.endswith("constants_config.json")
            else content
        )

    with pytest.raises(ModelError, match="pickled objects"):
        pt2.load(rewritten(exported, tmp_path / "b.pt2", opaque))
