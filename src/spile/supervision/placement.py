"""Where auxiliary heads go when the user does not say: a third, three fifths and four fifths of the way.
Pure."""

from __future__ import annotations

from collections.abc import Sequence

from spile.address import literal
from spile.errors import SupervisionError
from spile.observation import Item, Observation
from spile.structure import places
from spile.supervision.operations import Features

SHARES = (0.35, 0.6, 0.8)
"""Of the multiply-accumulates of the whole pass."""
_NEAR = 0.15
"""How much further off the end of a stage may be than the end of some other block."""
_TOO_EARLY, _TOO_LATE = 0.02, 0.97


def automatic(observation: Observation) -> list[str]:
    """Addresses of two or three blocks, the ends of stages where there are any near, never of the last block.

    Blocks end after their activation, as `spile.structure` finds them. Raises `SupervisionError` where the
    model has no block in between.
    """
    known = places(observation)
    whole = observation.root.macs
    shares = {
        path: observation.by_path[path][-1].macs / whole if whole else 0.0
        for path in known.blocks + known.stages
        if len(observation.by_path[path]) == 1 and observation.by_path[path][0].outputs
    }
    last = max(
        (path for path in known.blocks), key=lambda path: observation.by_path[path][-1].end, default=""
    )
    inside = {
        path: share
        for path, share in shares.items()
        if _TOO_EARLY <= share <= _TOO_LATE and not _ends_with(observation, path, last)
    }
    stages = [path for path in inside if path in known.stages]
    chosen = {_nearest(wanted, inside, stages) for wanted in SHARES} - {None}
    if not chosen:
        raise SupervisionError(
            "no place for auxiliary heads was found: the model has no repeated blocks before its "
            "last one. Name "
            "layers, taps=['...']; spile.layers(model, example) lists them"
        )
    return [literal(path) for path in sorted((p for p in chosen if p), key=lambda p: shares[p])]


def final_features(observation: Observation) -> Features:
    """What the network ends with: the output of its last block, before it is pooled.

    Of a network without blocks, its last map of more than one cell, or else its own output.
    """
    blocks = places(observation).blocks
    last = max((observation.by_path[path][-1] for path in blocks), key=lambda call: call.end, default=None)
    found = [features for item in (last.outputs if last else ()) if (features := _features(item))]
    if not found:
        every = [item for call in observation.calls for item in call.outputs]
        maps = [features for item in every if (features := _features(item)) and features.kind == "map"]
        found = [features for features in maps if max(features.size) > 1][-1:] or maps[-1:]
    if not found:
        found = [features for item in observation.root.outputs if (features := _features(item))]
    return found[0] if found else Features(kind="vector", channels=1)


def _features(item: Item) -> Features | None:
    if item.layout is None or "B" not in item.layout:
        return None
    shape = tuple(size for size, axis in zip(item.shape, item.layout, strict=True) if axis != "B")
    return Features.laid_out(item.layout, shape, prefix_tokens=item.prefix_tokens or 0)


def _nearest(wanted: float, shares: dict[str, float], stages: Sequence[str]) -> str | None:
    """The block whose end is nearest to `wanted`; the end of a stage if it is not much further off."""

    def distance(path: str) -> float:
        return abs(shares[path] - wanted)

    best = min(shares, key=distance, default=None)
    stage = min(stages, key=distance, default=None)
    if best is None or (stage is not None and distance(stage) <= distance(best) + _NEAR):
        return stage
    return best


def _ends_with(observation: Observation, path: str, last: str) -> bool:
    """Whether a layer is the last block, or a stage that ends with it."""
    return path == last or last.startswith(path + observation.separator)
