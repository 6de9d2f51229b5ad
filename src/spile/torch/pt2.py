"""Reading an exported program (`.pt2`) without letting the file run code.

`torch.export.load` (torch 2.15) unpickles custom objects and tensor subclasses without limits, falls back to
that for sample inputs, loads compiled libraries out of the archive, evaluates the strings of symbolic shapes,
and looks up the functions of the graph anywhere below `torch`. Ordinary programs need none of it: `check`
lets operators on tensors, arithmetic of shapes, and plain tensors pass, and refuses the rest.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spile.errors import ModelError
from spile.loading import first_line

_OPERATORS = re.compile(
    r"torch\.ops\.(aten|prim|prims|higher_order|torchvision|quantized|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\._?sym_\w+"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|lshift|rshift)"
    r"|math\.\w+"
)
_SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
_NUMBER = re.compile(r"Float\('[-\d.e]+', precision=\d+\)")
_SHAPE_WORD = re.compile(
    r"Symbol|Float|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|And|Or|Not|Equality|Unequality|floor|ceiling|true|false"
    r"|(Strict)?(Less|Greater)Than|One|Zero|NegativeOne|Half|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv"
    r"|CeilToInt|FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat"
    r"|TruncToInt|RoundToInt|RoundDecimal|ToFloat|Identity"
)
_PLAIN_PAYLOAD = re.compile(r"(weight|tensor)_\d+")


def load(path: Path) -> nn.Module:
    """Load an exported program as a module with the layers and parameter names of the model it was made from.

    Raises `ModelError` where the file is none, was exported in training mode, or would run code.
    """
    if not path.is_file():
        raise ModelError(f"There is no file {path}")
    check(path)
    try:
        return _without_fakes(torch.export.unflatten(torch.export.load(path)).eval())
    except Exception as error:  # whatever the reader of a format under development raises
        reason = first_line(error)
        raise ModelError(f"{path} cannot be loaded by torch {torch.__version__}: {reason}") from error


def _without_fakes(model: nn.Module) -> nn.Module:
    """The exporter's notes on shapes are fake tensors, which cannot be copied with the model."""
    for module in model.modules():
        graph = getattr(module, "graph", None)
        for node in graph.nodes if isinstance(graph, torch.fx.Graph) else ():
            node.meta.pop("val", None)
    return model


def check(path: Path) -> None:
    """Raise `ModelError` unless everything in the archive is data."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            files = {
                name: archive.read(full)
                for name, full in zip(names, archive.namelist(), strict=True)
                if _small(name)
            }
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} is not an exported program as torch.export.save writes it") from error
    if "archive_version" not in files or not any(re.fullmatch(r"models/[^/]+\.json", name) for name in names):
        raise ModelError(
            f"{path} is not an exported program as torch.export.save of torch 2.8 or later writes it"
        )
    for problem in _problems(names, files):
        raise ModelError(
            f"{path} holds {problem}, which could run code from the file. "
            "Give the Python that builds the model, file.py:FACTORY, and its weights as .safetensors"
        )
    if any(
        _trains(node)
        for name, content in files.items()
        if name.startswith("models/")
        for node in _nodes(content)
    ):
        raise ModelError(
            f"{path} was exported in training mode. Call model.eval() before torch.export.export"
        )


def _small(name: str) -> bool:
    """All but the raw tensors."""
    return not re.fullmatch(r"data/(weights|constants)/(weight|tensor)_\d+", name)


def _problems(names: list[str], files: dict[str, bytes]) -> Iterator[str]:
    if any(name.startswith("data/aotinductor/") for name in names):
        yield "a compiled library"
    for name, content in files.items():
        if name.startswith("models/"):
            yield from _unsafe_words(json.loads(content))
        elif name.endswith("_config.json"):
            payloads = json.loads(content)["config"].values()
            if any(p["use_pickle"] or not _PLAIN_PAYLOAD.fullmatch(p["path_name"]) for p in payloads):
                yield "pickled objects"
        elif name.endswith(".pt") and not _only_tensors(content):
            yield "pickled objects"


def _only_tensors(content: bytes) -> bool:
    if not content:
        return True
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:  # the loader's own answer to this is to unpickle it all
        return False
    return True


def _unsafe_words(value: Any) -> Iterator[str]:
    """What a program's JSON asks for besides operators, shapes and names."""
    if isinstance(value, list):
        for item in value:
            yield from _unsafe_words(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "metadata":  # where the graph came from; only ever shown
                continue
            words = item if isinstance(item, list) and all(isinstance(word, str) for word in item) else [item]
            if any(isinstance(word, str) and not _is_safe(key, word) for word in words):
                yield f"{key} {str(item)[:60]!r}"
            yield from _unsafe_words(item)


def _is_safe(key: str, word: str) -> bool:
    if key == "target":
        return _OPERATORS.fullmatch(word) is not None
    if key == "expr_str":
        plain = _NUMBER.sub("Float()", _SYMBOL.sub("Symbol()", word))
        words = re.findall(r"[A-Za-z_]\w*", plain)
        return re.fullmatch(r"[\w(), -]*", plain) is not None and all(map(_SHAPE_WORD.fullmatch, words))
    if key in {"name", "as_name", "forward_arg_names"}:  # these end up in generated Python
        return re.fullmatch(r"\w*", word) is not None
    if key in {"in_spec", "out_spec"}:
        return "__enum__" not in word and "default_factory_module" not in word
    return True


def _nodes(content: bytes) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = json.loads(content)["graph_module"]["graph"]["nodes"]
    return nodes


def _trains(node: dict[str, Any]) -> bool:
    return any(i["name"] in {"train", "training"} and i["arg"].get("as_bool") is True for i in node["inputs"])
