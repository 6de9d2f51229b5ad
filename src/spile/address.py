"""The language of places: ``pattern[@side][#call][:item]``.

    layer3.0.conv1        the output of that layer
    layer4.*.conv2@in     what goes into every second convolution of layer4
    relu#1                the second time a shared layer runs
    lstm:1.0              an item of a nested tuple or dict output
    stages                the last layer of every stage, whatever the network

Inside a part of a path ``*``, ``?`` and ``[..]`` match as in file names; ``**`` is any number of whole parts,
also none: ``layer4.**`` is ``layer4`` and everything in it. A regex must match the whole path; one ending in
``@in``, ``#1`` or ``:0`` has to write it ``[@]in``, ``[#]1``, ``[:]0``.

A layer may bear a name that means something else. The words ``stages``, ``blocks``, ``leaves`` and ``all``
keep their meaning, and ``re:blocks`` is the layer called ``blocks``. A number is the layer of that name where
there is one (the children of a ``Sequential``), else the block of that number. `literal` writes any path.

Pure: parses, prints and matches; knows no framework and no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Literal

from spile.errors import AddressError, nearest

Side = Literal["out", "in"]
Kind = Literal["exact", "glob", "regex", "type", "index", "stages", "blocks", "leaves", "all"]

KEYWORDS = ("stages", "blocks", "leaves", "all")
GRAMMAR = (
    "an address is pattern[@out|@in][#call][:item], and a pattern is a layer's path, a glob, re:REGEX, "
    "type:CLASS, a number (-1 = last block), stages, blocks, leaves or all"
)

_PREFIXED = re.compile(
    r"(?s)(?P<pattern>(?:re|type):.+?)(?:@(?P<side>in|out))?(?:#(?P<call>[0-9]+))?(?::(?P<item>[\w\-]+(?:\.[\w\-]+)*))?"
)
_PLAIN = re.compile(
    r"(?P<pattern>[^@#:]*)(?:@(?P<side>[^@#:]*))?(?:#(?P<call>[^@#:]*))?(?::(?P<item>[^@#:]*))?"
)
_INDEX = re.compile(r"[+-]?[0-9]{1,9}")
_COUNT = re.compile(r"[0-9]{1,9}")
_ITEM = re.compile(r"[\w\-]+(?:\.[\w\-]+)*")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. ``str(address)`` is its canonical text, and parses back to an equal address.

    An empty `pattern` is the model itself: ``@in`` is its input, ``@out`` its output.
    """

    pattern: str
    side: Side = "out"
    call: int | None = None
    item: str | None = None

    def __str__(self) -> str:
        side = "" if self.side == "out" and self.pattern else f"@{self.side}"
        call = "" if self.call is None else f"#{self.call}"
        item = "" if self.item is None else f":{self.item}"
        return f"{self.pattern}{side}{call}{item}"

    @property
    def kind(self) -> Kind:
        """How the pattern is matched. Everything but ``exact`` and ``index`` may expand to several points."""
        if self.pattern.startswith("re:"):
            return "regex"
        if self.pattern.startswith("type:"):
            return "type"
        if _INDEX.fullmatch(self.pattern):
            return "index"
        for keyword in KEYWORDS:
            if self.pattern == keyword:
                return keyword  # type: ignore[return-value]
        return "glob" if any(c in self.pattern for c in "*?[") else "exact"


@dataclass(frozen=True, kw_only=True)
class Places:
    """The layers of one model that an address can be matched against; every tuple is in forward order."""

    paths: tuple[str, ...]
    """Every layer that runs, by its first name."""
    types: Mapping[str, tuple[str, ...]]
    """Class names of each of these layers, most derived first."""
    aliases: Mapping[str, str]
    """Other names of tied layers -> the first name."""
    blocks: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    """Layers that exist but do not run."""


def parse(text: str | int | Address) -> Address:
    """Parse an address. Raises `AddressError` naming the part that is wrong and the grammar."""
    if isinstance(text, Address):
        return text
    if isinstance(text, bool) or not isinstance(text, (str, Integral)):
        raise AddressError(f"{text!r} is no address: give a string or a whole number; {GRAMMAR}")
    text = str(text)
    found = (_PREFIXED if text.startswith(("re:", "type:")) else _PLAIN).fullmatch(text)
    if found is None:
        raise AddressError(f"{text!r} does not parse: {GRAMMAR}")
    pattern, side, call, item = found["pattern"], found["side"], found["call"], found["item"]
    if side not in (None, "in", "out"):
        raise AddressError(f"unknown side {side!r} in {text!r}: write @out (the default) or @in")
    if call is not None and not _COUNT.fullmatch(call):
        raise AddressError(
            f"call {call!r} in {text!r} is no count from 0: write {pattern}#0 for the first call"
        )
    if item is not None and not _ITEM.fullmatch(item):
        raise AddressError(
            f"item {item!r} in {text!r} is no index or key: write {pattern}:0 or {pattern}:key"
        )
    if not pattern and side is None:
        raise AddressError(
            f"{text!r} names no layer: {GRAMMAR} (the model's input is '@in', its output '@out')"
        )
    if pattern.startswith("re:"):
        _compile(pattern)
    elif any("**" in part and part != "**" for part in _parts(pattern)):
        raise AddressError(f"** in {text!r} must stand for whole parts: write layer4.** or **.conv1")
    if _INDEX.fullmatch(pattern):
        pattern = str(int(pattern))
    return Address(pattern, "in" if side == "in" else "out", None if call is None else int(call), item)


def literal(path: str) -> str:
    """The pattern that means the layer at `path`: the path, or a regex where it would be read otherwise."""
    try:
        if path == "" or (parse(path) == Address(path) and Address(path).kind in ("exact", "index")):
            return path
    except AddressError:
        pass
    return "re:" + "".join(f"[{c}]" if c in "@#:" else re.escape(c) for c in path)


def match(address: Address, places: Places) -> tuple[str, ...]:
    """Return the paths of the layers that `address` matches, in forward order.

    Raises `AddressError` where nothing matches, a number is out of range, or an exact path does not run; the
    message holds the three nearest names.
    """
    kind, pattern = address.kind, address.pattern
    if kind == "exact":
        return (_exact(address, places),)
    if kind == "index":
        return (_indexed(address, places),)
    if kind in KEYWORDS:
        return _keyword(kind, places)
    if kind == "type":
        return _typed(pattern.removeprefix("type:"), places)
    if kind == "regex":
        expression = _compile(pattern)
        fits = {name for name in _names(places) if expression.fullmatch(name)}
    else:
        parts = _parts(pattern)
        fits = {name for name in _names(places) if _glob_matches(parts, _parts(name))}
    fits |= {places.aliases[name] for name in fits & places.aliases.keys()}
    found = tuple(path for path in places.paths if path in fits)
    if not found:
        raise AddressError(
            f"{address!s} matches no layer that runs; nearest: {_quoted(_near(pattern, places))}"
        )
    return found


def _exact(address: Address, places: Places) -> str:
    path = places.aliases.get(address.pattern, address.pattern)
    if path == "" or path in places.types:
        return path
    near = _quoted(_near(address.pattern, places))
    if path in places.idle:
        raise AddressError(
            f"the layer {address.pattern!r} never runs as a layer in this model's forward pass (unused, or "
            f"its weights are used directly); nearest that run: {near}"
        )
    raise AddressError(f"no layer {address.pattern!r}; nearest: {near}")


def _indexed(address: Address, places: Places) -> str:
    if address.pattern in (*places.paths, *places.aliases, *places.idle):
        return _exact(address, places)
    index, count = int(address.pattern), len(places.blocks)
    if not count:
        raise AddressError(f"there is no block {index}: {_without_structure(places)}")
    if not -count <= index < count:
        nearest_three = places.blocks[-3:] if index > 0 else places.blocks[:3]
        raise AddressError(
            f"block {index} is out of range: the model has {count} blocks, 0..{count - 1} or -{count}..-1; "
            f"nearest: {_quoted(nearest_three)}"
        )
    return places.blocks[index]


def _keyword(kind: Kind, places: Places) -> tuple[str, ...]:
    found = {"stages": places.stages, "blocks": places.blocks, "leaves": places.leaves, "all": places.paths}[
        kind
    ]
    if not found:
        raise AddressError(
            f"there are no {'layers' if kind == 'all' else kind}: {_without_structure(places)}"
        )
    return found


def _without_structure(places: Places) -> str:
    if not places.paths:
        return "the model is one layer; its output is '@out', its input '@in'"
    return (
        "the model repeats no layer and has no convolution, linear, recurrent or activation layer; "
        f"name layers instead, e.g. {_quoted(places.paths[-3:])}"
    )


def _typed(name: str, places: Places) -> tuple[str, ...]:
    found = tuple(path for path in places.paths if name in places.types[path])
    if not found:
        near = nearest(name, [classes[0] for path in places.paths if (classes := places.types[path])])
        raise AddressError(f"no layer of type {name!r} runs; nearest: {_quoted(['type:' + n for n in near])}")
    return found


def _compile(pattern: str) -> re.Pattern[str]:
    source = pattern.removeprefix("re:")
    try:
        return re.compile(source)
    except (re.error, OverflowError, RecursionError) as error:
        raise AddressError(f"{source!r} in {pattern!r} is no regular expression: {error}") from None


def _parts(path: str) -> list[str]:
    return re.split(r"[./]", path)


def _glob_matches(glob: list[str], parts: list[str]) -> bool:
    """Part by part; ``**`` takes any number of parts."""
    if not glob:
        return not parts
    if glob[:2] == ["**", "**"]:
        return _glob_matches(glob[1:], parts)
    if glob[0] == "**":
        rest = glob[1:]
        return any(_glob_matches(rest, parts[taken:]) for taken in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], glob[0]) and _glob_matches(glob[1:], parts[1:])


def _names(places: Places) -> Iterable[str]:
    return (*places.paths, *places.aliases)


def _near(pattern: str, places: Places) -> list[str]:
    return nearest(pattern, _names(places))


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
