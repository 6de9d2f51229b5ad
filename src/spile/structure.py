"""Blocks and stages of a network, found by structure: no table of model names.

A *composite* is a layer that ran and holds layers with parameters, mere containers apart. The *blocks* are,
by the first of these rules that finds any,

1. composites of one class and size in one list (residual blocks, transformer layers), the outermost class;
2. a composite that is fed its own output (ALBERT);
3. four or more composites side by side that hold composites (inception modules);
4. composites of one class at places that differ by a number (``layer1.0``, ``layer2.0``), of any size;
5. the ends of blocks that names or merges tell in a graph of layers (`spile.flat`); they go before 1 to 4
   where the composites found lie inside them (the attention layers of a transformer);
6. activations, or weighted layers where activations are no layers of their own (VGG, AlexNet, an MLP);

and by rules 1 to 4 also what is of the class of a block or stands where blocks stand elsewhere. The size of a
layer is the channels and the number of positions of its output. A *stage* is a run of blocks of one size;
where all blocks have the same (ViT, BERT), the stages are the ends of their four quarters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from spile import flat
from spile.address import Address, Places, Side, literal
from spile.flat import ACTIVATIONS, alike, size, size_of
from spile.observation import Call, Item, Observation

_WEIGHTED = frozenset(
    ("Linear", "_ConvNd", "RNNBase",  # PyTorch; with all that derive from them
     "Dense", "EinsumDense", "RNN",  # Keras
     "BaseConv", "BaseConvTranspose", "BaseDepthwiseConv", "BaseSeparableConv")
)  # fmt: skip
_ENDINGS = frozenset(("Activation", "Softmax", "Reshape", "Flatten"))
_FEWEST_SIDE_BY_SIDE = 4

_Key = TypeVar("_Key")


def places(observation: Observation) -> Places:
    """What addresses are matched against, from one dry pass."""
    layers = observation.layers
    in_order = tuple(_in_order(observation, (path for path in observation.by_path if path)))
    block_paths = blocks(observation)
    return Places(
        paths=in_order,
        types={path: layers[path].types for path in in_order},
        aliases={alias: path for path, layer in layers.items() for alias in layer.aliases},
        blocks=block_paths,
        stages=stages(observation, block_paths),
        leaves=tuple(path for path in in_order if layers[path].leaf),
        idle=tuple(path for path in layers if path and path not in observation.by_path),
    )


def blocks(observation: Observation) -> tuple[str, ...]:
    """Paths of the repeated blocks, in forward order; empty where none of the rules finds any."""
    composites = _composites(observation)
    found = (
        _stacked(observation, composites)
        or _fed_back(observation, composites)
        or _side_by_side(observation, composites)
        or _numbered(observation, composites)
    )
    grouped = _with_kin(observation, composites, found) if found else ()
    ungrouped = flat.blocks(observation)
    if grouped and not flat.lie_inside(observation, grouped, ungrouped):
        return grouped
    return ungrouped or _activations(observation)


def stages(observation: Observation, block_paths: Sequence[str]) -> tuple[str, ...]:
    """Paths of the last layer of every stage, in forward order."""
    runs: list[list[str]] = []
    for path in block_paths:
        if runs and alike(observation, runs[-1][-1], path):
            runs[-1].append(path)
        else:
            runs.append([path])
    if len(runs) == 1:
        return _quarters(block_paths)
    return tuple(_widest(observation, run, block_paths) for run in runs)


def last_features(observation: Observation) -> str:
    """Address of what the final classifier reads; of the last block, or layer, where the model has none."""
    ends = _before_endings(observation)
    block_paths = blocks(observation)
    last = observation.by_path[block_paths[-1]][-1] if block_paths else None
    shows_features = last is not None and bool(_identities(last.outputs) & _identities(ends))
    for call in reversed(observation.calls):
        layer = observation.layers[call.path]
        weighted = layer.leaf and _WEIGHTED & set(layer.types)
        pooler = shows_features and call is not last and _keeps_width(call)
        if (
            weighted
            and call.inputs
            and not pooler
            and any(_becomes(item, end) for item in call.outputs for end in ends)
        ):
            return _address(observation, call, "in")
    return _address(observation, last or observation.calls[-2:][0], "out")


def _keeps_width(call: Call) -> bool:
    """As the pooler of a transformer's first token does, and a classifier does not."""
    if not call.inputs or not call.outputs:
        return False
    read, given = size_of(call.inputs[0]), size_of(call.outputs[0])
    return read is not None and given is not None and read[0] == given[0]


def _stacked(observation: Observation, composites: Sequence[str]) -> set[str]:
    """Rule 1. A list whose size changes at most steps holds stages: there the blocks are further in."""
    lists = _lists(observation, composites)
    found: set[str] = set()
    for siblings in lists:
        groups = _grouped(((_class(observation, path), size(observation, path)), path) for path in siblings)
        found.update(path for (_, size), paths in groups.items() if size and len(paths) > 1 for path in paths)
    holding = {above for path in found for above in _ancestors(observation, path)}
    for siblings in lists:
        sizes = [size(observation, path) for path in siblings]
        if 2 * sum(a != b for a, b in pairwise(sizes)) >= len(siblings) - 1:
            found -= holding & set(siblings)
    return _outermost_classes(observation, found)


def _fed_back(observation: Observation, composites: Sequence[str]) -> set[str]:
    """Rule 2."""
    return {
        path
        for path in composites
        if any(_identities(a.outputs) & _identities(b.inputs) for a, b in pairwise(observation.by_path[path]))
    }


def _side_by_side(observation: Observation, composites: Sequence[str]) -> set[str]:
    """Rule 3; of several such rows the outermost."""
    holding = {above for path in composites for above in _ancestors(observation, path)}
    rows = _grouped((_parent(observation, path), path) for path in composites if path in holding)
    long_rows = {home: row for home, row in rows.items() if len(row) >= _FEWEST_SIDE_BY_SIDE}
    return set(long_rows[min(long_rows, key=len)]) if long_rows else set()


def _numbered(observation: Observation, composites: Sequence[str]) -> set[str]:
    """Rule 4."""
    groups = _grouped(((_spot(path), _class(observation, path)), path) for path in composites)
    return _outermost_classes(
        observation, {path for paths in groups.values() if len(paths) > 1 for path in paths}
    )


def _activations(observation: Observation) -> tuple[str, ...]:
    """Rule 6: layers on maps and sequences, or on vectors where there is nothing else (an MLP)."""
    ran = [
        path for path in _in_order(observation, observation.by_path) if path and observation.layers[path].leaf
    ]
    maps = [path for path in ran if (size(observation, path) or (0, 0))[1] > 1]
    for leaves in (maps, ran):
        activations = _of_types(observation, leaves, ACTIVATIONS)
        weighted = _of_types(observation, leaves, _WEIGHTED)
        shared = any(len(observation.by_path[path]) > 1 for path in activations)
        fused = 2 * len(activations) < len(weighted)  # most weighted layers hold their activation
        chosen = weighted or activations if shared or fused else activations or weighted
        if chosen:
            return chosen
    return ()


def _of_types(observation: Observation, paths: Iterable[str], types: frozenset[str]) -> tuple[str, ...]:
    return tuple(path for path in paths if types & set(observation.layers[path].types))


def _composites(observation: Observation) -> list[str]:
    holders = {
        _parent(observation, path) for path, layer in observation.layers.items() if path and layer.params
    }
    ran = [path for path in observation.by_path if path in holders and not observation.layers[path].container]
    return _in_order(observation, (path for path in ran if path))


def _lists(observation: Observation, composites: Sequence[str]) -> list[list[str]]:
    """Composites grouped by the list that holds them; a list of lists counts as one."""
    children = _grouped((_parent(observation, path), path) for path in observation.layers if path)
    groups: dict[str, list[str]] = {}
    for path in composites:
        home = _parent(observation, path)
        if not observation.layers[home].container and not (home and _numbers_all(children[home])):
            continue
        while home and observation.layers[above := _parent(observation, home)].container:
            home = above
        groups.setdefault(home, []).append(path)
    return list(groups.values())


def _numbers_all(children: Sequence[str]) -> bool:
    """A layer that holds ``b1``, ``b2``, … and nothing else is a list in all but name."""
    return children[0][-1].isdigit() and len({_spot(child) for child in children}) == 1


def _outermost_classes(observation: Observation, paths: set[str]) -> set[str]:
    """Drop the classes of which some layer lies inside another: the convolutions of a block are no blocks."""
    inner = paths - _outermost(observation, paths)
    dropped = {_class(observation, path) for path in inner}
    return {path for path in paths if _class(observation, path) not in dropped}


def _outermost(observation: Observation, paths: set[str]) -> set[str]:
    return {path for path in paths if paths.isdisjoint(_ancestors(observation, path))}


def _with_kin(observation: Observation, composites: Sequence[str], found: set[str]) -> tuple[str, ...]:
    """Add single blocks: those of a class of blocks, and those that stand where blocks stand elsewhere.

    ``blocks.0.0`` of an EfficientNet is of a class of its own, but ``blocks.*.*`` are blocks everywhere else.
    """
    classes = {_class(observation, path) for path in found}
    spots = {_spot(path) for path in found}
    chosen = [p for p in composites if _class(observation, p) in classes or _spot(p) in spots]
    outermost = _outermost(observation, set(chosen))
    return tuple(path for path in chosen if path in outermost)


def _quarters(block_paths: Sequence[str]) -> tuple[str, ...]:
    count = len(block_paths)
    ends = sorted({-(-count * quarter // 4) - 1 for quarter in (1, 2, 3, 4)})
    return tuple(block_paths[end] for end in ends)


def _widest(observation: Observation, run: Sequence[str], block_paths: Sequence[str]) -> str:
    """The outermost layer that ends a stage: it holds no other's blocks and keeps the last one's size."""
    last, others = run[-1], set(block_paths) - set(run)
    best = last
    for above in _ancestors(observation, last)[:-1]:
        if any(path.startswith(above + observation.separator) for path in others):
            break
        if above in observation.by_path and _hands_on(observation, above, last):
            best = above
    return best


def _hands_on(observation: Observation, above: str, last: str) -> bool:
    """Whether a layer gives one tensor where its last block does, on the same positions."""
    outer, inner = size(observation, above), size(observation, last)
    items = len(observation.by_path[above][-1].outputs), len(observation.by_path[last][-1].outputs)
    return outer is not None and inner is not None and outer[1] == inner[1] and items[0] <= items[1]


def _before_endings(observation: Observation) -> list[Item]:
    """The model's results, and the scores that a softmax or a reshape at the end made a result of."""
    results = list(observation.root.outputs)
    for call in reversed(observation.calls):
        ending = _ENDINGS & set(observation.layers[call.path].types) and len(call.inputs) == 1
        if ending and any(
            item.identity == result.identity and len(_lengths(item)) == 1
            for item in call.outputs
            for result in results
        ):
            results.append(call.inputs[0])
    return results


def _becomes(item: Item, result: Item) -> bool:
    """Whether a layer's output is the model's output, as it is or flattened."""
    flattened = len(item.shape) > len(result.shape) and _lengths(item) == _lengths(result)
    return item.identity == result.identity or flattened


def _lengths(item: Item) -> list[int]:
    """The axes that run over more than one number, the samples apart."""
    return [length for length in item.shape[1:] if length != 1]


def _address(observation: Observation, call: Call, side: Side) -> str:
    several = len(observation.by_path[call.path]) > 1
    items = call.items(side)
    return str(
        Address(literal(call.path), side, call.index if several else None, items[0].key if items else None)
    )


def _identities(items: Iterable[Item]) -> set[int]:
    return {item.identity for item in items}


def _grouped(pairs: Iterable[tuple[_Key, str]]) -> dict[_Key, list[str]]:
    groups: dict[_Key, list[str]] = {}
    for key, path in pairs:
        groups.setdefault(key, []).append(path)
    return groups


def _in_order(observation: Observation, paths: Iterable[str]) -> list[str]:
    return sorted(paths, key=lambda path: observation.by_path[path][0].start)


def _class(observation: Observation, path: str) -> str:
    return observation.layers[path].types[0]


def _parent(observation: Observation, path: str) -> str:
    return path.rpartition(observation.separator)[0]


def _ancestors(observation: Observation, path: str) -> list[str]:
    """From the parent up to the model itself."""
    parts = path.split(observation.separator)
    return [observation.separator.join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]


def _spot(path: str) -> str:
    return re.sub(r"\d+", "*", path)
