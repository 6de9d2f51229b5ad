"""From addresses to points: which tensors of which calls a tap takes. Pure; works on one `Observation`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from spile import address as addresses
from spile import pool as pools
from spile.address import Address, Places, Side
from spile.errors import AddressError, PoolError
from spile.observation import Call, Item, Observation
from spile.pool import Pool, PoolLike
from spile.structure import places

AddressLike = str | int | Address
AddressesLike = AddressLike | Sequence[AddressLike] | Mapping[str, AddressLike]
PoolsLike = PoolLike | Mapping[str, PoolLike]

_LISTED = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A resolved address on a concrete model: one tensor per forward pass."""

    name: str
    """The user's own name, or the address as text."""
    path: str
    side: Side
    call: int
    only_call: bool
    """The address names no call, so the layer must run exactly once."""
    item: str | None
    pool: Pool
    """Settled: never ``auto``."""
    layout: str | None
    shape: tuple[int, ...]
    """Of one sample, before pooling, in the layer's own axis order."""
    type: str
    order: int
    macs: int
    """Multiply-accumulates a sample to reach this point."""
    params: int
    """Parameters needed to reach this point."""

    @property
    def address(self) -> str:
        """The point's full address: layer, side, call and item."""
        return str(
            Address(addresses.literal(self.path), self.side, None if self.only_call else self.call, self.item)
        )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A place that a pattern matched and that has nothing to keep for each sample."""

    address: str
    reason: str


def resolve(
    wanted: AddressesLike, pool: PoolsLike, observation: Observation
) -> tuple[tuple[Point, ...], tuple[LeftOut, ...]]:
    """Resolve addresses to points, in the order given and, inside a pattern, in forward order.

    `pool` is one pool for all, or a dict from address (or own name) to pool; the rest is ``"auto"``.
    A point asked for twice is taken once. Raises `AddressError` for an address that matches nothing or is
    ambiguous, `PoolError` for a pool that does not fit.
    """
    known = places(observation)
    points: dict[str, Point] = {}
    left_out: list[LeftOut] = []
    requests = list(_requests(wanted))
    for (name, parsed), chosen in zip(requests, _pools(pool, requests), strict=True):
        found, without = _expand(parsed, chosen, observation, known)
        left_out += without
        if not found:
            raise AddressError(_nothing(parsed, without))
        if name is not None:
            if len(found) > 1:
                raise AddressError(
                    f"the name {name!r} needs one point, but {parsed!s} has {len(found)}: "
                    f"{_some([point.name for point in found])}"
                )
            found = [replace(found[0], name=name)]
        for point in found:
            points.setdefault(point.name, point)
    return tuple(points.values()), tuple(left_out)


def by_place(points: tuple[Point, ...]) -> dict[tuple[str, Side], tuple[Point, ...]]:
    """The points grouped by layer and side."""
    grouped: dict[tuple[str, Side], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.path, point.side), []).append(point)
    return {place: tuple(found) for place, found in grouped.items()}


def _requests(wanted: AddressesLike) -> Iterator[tuple[str | None, Address]]:
    """The user's own name, where there is one, and the address."""
    if isinstance(wanted, Mapping):
        named: list[tuple[str | None, AddressLike]] = [(str(name), text) for name, text in wanted.items()]
    elif isinstance(wanted, Iterable) and not isinstance(wanted, str):
        named = [(None, text) for text in wanted]
    else:
        named = [(None, wanted)]
    if not named:
        raise AddressError("no address given: name at least one place, e.g. 'stages'")
    for name, text in named:
        yield name, addresses.parse(text)


def _pools(pool: PoolsLike, requests: Sequence[tuple[str | None, Address]]) -> list[Pool]:
    """The pool of each request, by own name or by address."""
    if not isinstance(pool, Mapping):
        return [pools.parse(pool)] * len(requests)
    names = [name for name, _ in requests if name is not None]
    asked = [str(parsed) for _, parsed in requests]
    each = {
        key if key in names else str(addresses.parse(key)): pools.parse(value) for key, value in pool.items()
    }
    for unknown in each.keys() - {*names, *asked}:
        raise PoolError(
            f"a pool is given for {unknown!r}, which is not asked for: asked for are {_some(names or asked)}"
        )
    return [
        each.get(name or text, each.get(text, Pool("auto")))
        for (name, _), text in zip(requests, asked, strict=True)
    ]


def _nothing(parsed: Address, without: Sequence[LeftOut]) -> str:
    if without:
        return f"{parsed!s} has no point to keep: {_some([f'{o.address} ({o.reason})' for o in without])}"
    what = [f"has a call {parsed.call}"] if parsed.call is not None else []
    what += [f"has an item {parsed.item!r}"] if parsed.item is not None else []
    return f"no layer that {parsed.pattern!r} matches {' and '.join(what) or 'holds a tensor'} on this side"


def _expand(
    parsed: Address, pool: Pool, observation: Observation, known: Places
) -> tuple[list[Point], list[LeftOut]]:
    single = parsed.kind in ("exact", "index")
    points: list[Point] = []
    left_out: list[LeftOut] = []
    for path in addresses.match(parsed, known):
        spoken = parsed.pattern if parsed.kind == "exact" else addresses.literal(path)
        for call in _calls(parsed, spoken, observation.by_path[path], single):
            several = len(observation.by_path[path]) > 1
            for item in _items(parsed, spoken, call, single):
                shown = Address(
                    spoken,
                    parsed.side,
                    call.index if several or parsed.call is not None else None,
                    item.key if parsed.item is not None or len(call.items(parsed.side)) > 1 else None,
                )
                try:
                    points.append(_point(shown, path, call, item, pool, observation, only=not several))
                except PoolError as error:
                    if single or not (item.layout is None or pool.kind == "auto"):
                        raise
                    left_out.append(LeftOut(str(shown), str(error)))
    return points, left_out


def _calls(parsed: Address, spoken: str, calls: tuple[Call, ...], single: bool) -> tuple[Call, ...]:
    chosen = calls if parsed.call is None else calls[parsed.call : parsed.call + 1]
    if single and len(chosen) != 1:
        listed = _some([str(Address(spoken, parsed.side, call.index, parsed.item)) for call in calls])
        if chosen:
            raise AddressError(f"{spoken!r} runs {len(calls)} times; say which call: {listed}")
        raise AddressError(f"{spoken!r} has no call {parsed.call}; there is {listed}")
    return chosen


def _items(parsed: Address, spoken: str, call: Call, single: bool) -> tuple[Item, ...]:
    items = call.items(parsed.side)
    what = "output" if parsed.side == "out" else "input"
    listed = _some([str(Address(spoken, parsed.side, parsed.call, item.key)) for item in items])
    if parsed.item is not None:
        chosen = tuple(item for item in items if item.key == parsed.item)
        if single and not chosen:
            raise AddressError(f"the {what} of {spoken!r} has no item {parsed.item!r}; there is {listed}")
        return chosen
    if single and len(items) != 1:
        if not items:
            raise AddressError(f"the {what} of {spoken!r} holds no tensor")
        raise AddressError(f"the {what} of {spoken!r} is not one tensor; say which item: {listed}")
    return items


def _point(
    shown: Address, path: str, call: Call, item: Item, pool: Pool, observation: Observation, *, only: bool
) -> Point:
    settled = pools.settle(
        pool,
        item.layout,
        place=f"{shown!s} (shape {list(item.shape)})",
        prefix_tokens=observation.prefix_tokens if item.prefix_tokens is None else item.prefix_tokens,
        text=observation.text,
        class_token=observation.class_token,
    )
    out = shown.side == "out"
    return Point(
        name=str(shown),
        path=path,
        side=shown.side,
        call=call.index,
        only_call=only and shown.call is None,
        item=item.key,
        pool=settled,
        layout=item.layout,
        shape=tuple(
            n for n, axis in zip(item.shape, item.layout or "?" * len(item.shape), strict=True) if axis != "B"
        ),
        type=observation.layers[path].types[0],
        order=call.end if out else call.start,
        macs=call.macs if out else call.macs_before,
        params=call.params if out else call.params_before,
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(names[:_LISTED]) or "nothing") + more
