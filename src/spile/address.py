"""The language of places: ``pattern[@side][#call][:item]``.

    layer3.0.conv1        the output of that layer
    layer4.*.conv2@in     what goes into every second convolution of layer4
    relu#1                the second time a shared layer runs
    lstm:1.0              an item of a nested tuple or dict output
    stages                the last layer of every stage, whatever the network

Pure: parses, prints and matches; knows no framework and no model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spile.errors import AddressError, nearest

Side = Literal["out", "in"]
Kind = Literal["exact", "glob", "regex", "type", "index", "stages", "blocks", "leaves", "all"]

KEYWORDS = ("stages", "blocks", "leaves", "all")
GRAMMAR = (
    "an address is pattern[@out|@in][#call][:item], and a pattern is a layer's path, a glob, re:REGEX, type:CLASS, "
    "a number (-1 = last block), stages, blocks, leaves or all"
)

_PREFIXED = re.compile(r"(?P<pattern>(?:re|type):.+?)(?:@(?P<side>in|out))?(?:#(?P<call>\d+))?(?::(?P<item>[\w.\-]+))?")
_PLAIN = re.compile(r"(?P<pattern>[^@#:]*)(?:@(?P<side>[^@#:]*))?(?:#(?P<call>[^@#:]*))?(?::(?P<item>[^@#:]*))?")
_INDEX = re.compile(r"[+-]?\d+")
_ITEM = re.compile(r"[\w\-]+(?:\.[\w\-]+)*")


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed address. ``str(address)`` is its canonical text, and parses back to an equal address.

    An empty `pattern` is the model itself, so ``@in`` is the model's input.
    """

    pattern: str
    side: Side = "out"
    call: int | None = None
    item: str | None = None

    def __str__(self) -> str:
        side = "" if self.side == "out" else "@in"
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
    """Class names of each layer, most derived first."""
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
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise AddressError(f"{text!r} is no address: give a string or a whole number; {GRAMMAR}")
    text = str(text)
    if text.startswith(("re:", "type:")):
        found = _PREFIXED.fullmatch(text)
    else:
        found = _PLAIN.fullmatch(text)
    if found is None:
        raise AddressError(f"{text!r} does not parse: {GRAMMAR}")
    pattern, side, call, item = found["pattern"], found["side"], found["call"], found["item"]
    if side not in (None, "in", "out"):
        raise AddressError(f"unknown side {side!r} in {text!r}: write @out (the default) or @in")
    if call is not None and not (call.isascii() and call.isdecimal()):
        raise AddressError(f"call {call!r} in {text!r} is no count from 0: write {pattern}#0 for the first call")
    if item is not None and not _ITEM.fullmatch(item):
        raise AddressError(f"item {item!r} in {text!r} is no index or key: write {pattern}:0 or {pattern}:key")
    if not pattern and side is None:
        raise AddressError(f"{text!r} names no layer: {GRAMMAR} (the model's input is '@in')")
    if pattern.startswith("re:"):
        _compile(pattern)
    if _INDEX.fullmatch(pattern):
        pattern = str(int(pattern))
    return Address(pattern, side or "out", None if call is None else int(call), item)


def match(address: Address, places: Places) -> tuple[str, ...]:
    """Return the paths of the layers that `address` matches, in forward order.

    Raises `AddressError` where nothing matches, a number is out of range, or an exact path does not run; the message
    holds the three nearest names.
    """
    kind, pattern = address.kind, address.pattern
    if kind == "exact":
        return (_exact(address, places),)
    if kind == "index":
        return (_indexed(address, places),)
    if kind == "stages":
        found = places.stages
    elif kind == "blocks":
        found = places.blocks
    elif kind == "leaves":
        found = places.leaves
    elif kind == "all":
        found = places.paths
    elif kind == "type":
        name = pattern.removeprefix("type:")
        found = tuple(p for p in places.paths if name in places.types[p])
        if not found:
            known = [names[0] for p in places.paths if (names := places.types[p])]
            raise AddressError(f"no layer of type {name!r} runs; nearest: {_quoted('type:', nearest(name, known))}")
    else:
        expression = _compile(pattern) if kind == "regex" else re.compile(_glob_to_regex(pattern))
        found = tuple(p for p in places.paths if _matches_any_name(expression, p, places.aliases))
    if not found:
        raise AddressError(f"{address!s} matches no layer that runs; nearest: {_quoted('', _near(pattern, places))}")
    return found


def _exact(address: Address, places: Places) -> str:
    path = places.aliases.get(address.pattern, address.pattern)
    if path == "" or path in places.paths:
        return path
    if path in places.idle:
        raise AddressError(
            f"the layer {address.pattern!r} never runs as a layer in this model's forward pass (unused, or its weights "
            f"are used directly); nearest that run: {_quoted('', _near(path, places))}"
        )
    raise AddressError(f"no layer {address.pattern!r}; nearest: {_quoted('', _near(path, places))}")


def _indexed(address: Address, places: Places) -> str:
    index, count = int(address.pattern), len(places.blocks)
    if not -count <= index < count:
        raise AddressError(
            f"block {index} is out of range: the model has {count} blocks, "
            + (f"0..{count - 1} or -{count}..-1; nearest: " if count else "")
            + _quoted("", list(places.blocks[-3:]))
        )
    return places.blocks[index]


def _matches_any_name(expression: re.Pattern[str], path: str, aliases: Mapping[str, str]) -> bool:
    names = [path, *(alias for alias, first in aliases.items() if first == path)]
    return any(expression.fullmatch(name) for name in names)


def _compile(pattern: str) -> re.Pattern[str]:
    source = pattern.removeprefix("re:")
    try:
        return re.compile(source)
    except re.error as error:
        raise AddressError(f"{source!r} in {pattern!r} is no regular expression: {error}") from None


def _glob_to_regex(glob: str) -> str:
    """``*`` and ``?`` stay inside a part, ``**`` crosses parts and also matches no part at all."""
    out, i = "", 0
    while i < len(glob):
        if glob.startswith("**", i):
            i += 2
            if i < len(glob) and glob[i] in "./":
                out, i = out + r"(?:.*[./])?", i + 1
            else:
                out += ".*"
        elif glob[i] == "*":
            out, i = out + r"[^./]*", i + 1
        elif glob[i] == "?":
            out, i = out + r"[^./]", i + 1
        elif glob[i] == "[" and (end := glob.find("]", i + 2)) > 0:
            inside = glob[i + 1 : end].replace("\\", r"\\")
            negated = inside.startswith("!")
            out, i = out + ("[^" + inside[1:] if negated else "[" + inside) + "]", end + 1
        else:
            out, i = out + re.escape(glob[i]), i + 1
    return out


def _near(pattern: str, places: Places) -> list[str]:
    return nearest(pattern, [*places.paths, *places.aliases])


def _quoted(prefix: str, names: Sequence[str]) -> str:
    return ", ".join(repr(prefix + name) for name in names) or "none"
