"""Both frameworks offer the same names, kinds, defaults and types, as read from the source."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import spile

SOURCE = Path(spile.__file__).parent
FRAMEWORKS = ("torch", "keras")
CALL = "__call__"
SAME_MODELS = ("from_demo", "from_hub")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def module(name: str) -> ast.Module:
    path = SOURCE.joinpath(*name.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text())


def definition(home: str, name: str) -> ast.stmt:
    """Where `name` is defined, through ``from ... import ... as ...``."""
    for node in module(home).body:
        if isinstance(node, Function | ast.ClassDef) and node.name == name:
            return node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return definition(str(node.module), alias.name)
    raise AssertionError(f"{home} has no {name}")


def function(home: str, name: str) -> Function:
    found = definition(home, name)
    assert isinstance(found, Function)
    return found


def methods(home: str, name: str) -> dict[str, Function]:
    """The public methods of a class, its constructor and its call, which PyTorch names `forward`."""
    found = definition(home, name)
    assert isinstance(found, ast.ClassDef)
    every = {
        CALL if node.name == "forward" else node.name: node
        for node in found.body
        if isinstance(node, Function)
    }
    return {
        name: node for name, node in every.items() if name in ("__init__", CALL) or not name.startswith("_")
    }


def signature(node: Function, *, typed: bool = True) -> list[str]:
    """Name, kind, default and type of every parameter, `self` apart; and whether it is a property."""
    arguments = node.args
    defaults: list[ast.expr | None] = [
        *[None] * (len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)),
        *arguments.defaults,
    ]
    positional = zip([*arguments.posonlyargs, *arguments.args], defaults, strict=True)
    named = [("positional", each, default) for each, default in positional if each.arg != "self"]
    named += [("*", each, None) for each in [arguments.vararg] if each]
    named += [
        ("keyword", each, default)
        for each, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    named += [("**", each, None) for each in [arguments.kwarg] if each]
    return [
        *(ast.unparse(decorator) for decorator in node.decorator_list),
        *(written(kind, each, default, typed=typed) for kind, each, default in named),
    ]


def written(kind: str, argument: ast.arg, default: ast.expr | None, *, typed: bool) -> str:
    text = f"{kind} {argument.arg}"
    if typed:
        text += f": {annotation(argument)}"
    return text if default is None else f"{text} = {ast.unparse(default)}"


def annotation(argument: ast.arg) -> str:
    """The type as written; each framework has its own model."""
    text = ast.unparse(argument.annotation) if argument.annotation else "?"
    return text.replace("nn.Module", "Model").replace("keras.Model", "Model")


def test_taps_have_the_same_methods() -> None:
    torch, keras = (methods(f"spile.{framework}.taps", "Tap") for framework in FRAMEWORKS)
    protocol = methods("spile.interfaces", "Tap")
    assert protocol.keys() - {"__init__"} <= torch.keys() & keras.keys()
    for name in (*protocol, "__init__"):
        assert signature(torch[name]) == signature(keras[name]), name


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_taps_fulfil_the_protocol(framework: str) -> None:
    """They may have more keywords, with defaults."""
    own = methods(f"spile.{framework}.taps", "Tap")
    for name, node in methods("spile.interfaces", "Tap").items():
        found = signature(own[name])
        assert [each for each in found if not (each.startswith("keyword") and "=" in each)] == signature(
            node
        ), name


def test_supervised_models_have_the_same_methods() -> None:
    """A framework may have more keywords, with defaults. Keras has the call itself in its own class."""
    torch, keras = (methods(f"spile.{framework}.supervision", "Supervised") for framework in FRAMEWORKS)
    protocol = methods("spile.interfaces", "Supervised")
    for name in protocol.keys() - {CALL}:
        asked = signature(protocol[name])
        for own in (signature(torch[name]), signature(keras[name])):
            assert [each for each in own if each in asked] == asked, name
            more = [each for each in own if each not in asked]
            assert all(each.startswith("keyword") and "=" in each for each in more), name
    assert signature(torch["set_linear"]) == signature(keras["set_linear"])


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_backends_fulfil_the_protocol(framework: str) -> None:
    """They may have defaults where the protocol has none."""
    home = f"spile.{framework}.backend"
    for name, node in methods("spile.backend", "Backend").items():
        own, asked = signature(function(home, name), typed=False), signature(node, typed=False)
        pairs = zip(own, asked, strict=True)
        assert [mine if "=" in theirs else mine.partition(" =")[0] for mine, theirs in pairs] == asked, name


@pytest.mark.parametrize("name", SAME_MODELS)
def test_models_are_made_in_the_same_way(name: str) -> None:
    torch, keras = (function(f"spile.{framework}.models", name) for framework in FRAMEWORKS)
    assert signature(torch) == signature(keras) == ["positional name: str", "positional options: Options"]
    assert ast.unparse(torch.returns or torch) == ast.unparse(keras.returns or keras) == "Built"


def test_the_check_would_notice() -> None:
    def of(text: str) -> list[str]:
        (node,) = ast.parse(text).body
        assert isinstance(node, Function)
        return signature(node)

    base = of("def f(self, a: int, *, b: str = 'x'): ...")
    assert base == ["positional a: int", "keyword b: str = 'x'"]
    for other in (
        "def f(self, c: int, *, b: str = 'x'): ...",
        "def f(self, a: float, *, b: str = 'x'): ...",
        "def f(self, a: int, b: str = 'x'): ...",
        "def f(self, a: int, *, b: str = 'y'): ...",
        "def f(self, a: int, *more, b: str = 'x'): ...",
        "@property\ndef f(self, a: int, *, b: str = 'x'): ...",
    ):
        assert of(other) != base
