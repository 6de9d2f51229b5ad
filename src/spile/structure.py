"""Blocks and stages of a network, found by structure: no table of model names.

A *block* is one element of a stack: a list or chain of composite layers of one class that hand on tensors of one
shape (residual blocks, transformer layers). Networks without stacks (VGG, AlexNet) have their activations as blocks. A
*stage* is a run of blocks of one output shape; where every block has the same shape (ViT, BERT), the stages are the
ends of the four quarters.
"""

from __future__ import annotations

import re
from itertools import groupby

from spile.address import Places
from spile.observation import Call, Item, Observation

_ACTIVATIONS = frozenset(
    "ReLU ReLU6 LeakyReLU PReLU ELU SELU CELU GELU SiLU Mish Hardswish Sigmoid Tanh Softplus Activation".split()
)
_WEIGHTED = frozenset("Conv1d Conv2d Conv3d Linear".split())
_FEWEST_CHILDREN = 4


def places(observation: Observation) -> Places:
    """What addresses are matched against, from one dry pass."""
    ran = tuple(path for path in observation.by_path if path)
    in_order = tuple(sorted(ran, key=lambda path: observation.by_path[path][0].start))
    layers = observation.layers
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
    """Paths of the repeated blocks, in forward order; empty for a network that repeats nothing."""
    stacked = _outermost_classes(observation, _stacked(observation))
    if stacked:
        return _with_kin(observation, stacked)
    return _children_of_composites(observation) or _activations(observation)


def stages(observation: Observation, block_paths: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of the last layer of every stage, in forward order."""
    runs = [
        [path for _, path in run]
        for _, run in groupby(((_shape(observation, p), p) for p in block_paths), key=lambda pair: pair[0])
    ]
    if len(runs) == 1:
        return _quarters(block_paths)
    members = [frozenset(run) for run in runs]
    return tuple(_widest(observation, run[-1], own, block_paths) for run, own in zip(runs, members, strict=True))


def last_features(observation: Observation) -> str:
    """Address of what the model's final classifier reads, or of the model's last layer where there is none."""
    outputs = {item.identity for item in observation.root.outputs}
    for call in reversed(observation.calls):
        layer = observation.layers[call.path]
        if call.path and layer.leaf and _WEIGHTED & set(layer.types) and outputs & _identities(call.outputs):
            return f"{call.path}@in"
    block_paths = blocks(observation)
    return block_paths[-1] if block_paths else observation.calls[-2].path


def _stacked(observation: Observation) -> set[str]:
    """Composite layers in one list, of which another has the same class and the same output shape."""
    found: set[str] = set()
    for siblings in _lists(observation):
        alike: dict[tuple[str, tuple[int, ...] | None], list[str]] = {}
        for path in siblings:
            alike.setdefault((observation.layers[path].types[0], _shape(observation, path)), []).append(path)
        for (_, shape), paths in alike.items():
            if shape is not None and len(paths) > 1:
                found.update(paths)
    return found


def _lists(observation: Observation) -> list[list[str]]:
    """Composite layers grouped by the list that holds them, in forward order; lists of lists count as one list."""
    groups: dict[str, list[str]] = {}
    for path in _composites(observation):
        home = _parent(observation, path)
        if not observation.layers[home].container and not _numbers_its_children(observation, home):
            continue
        while home and observation.layers[above := _parent(observation, home)].container:
            home = above
        groups.setdefault(home, []).append(path)
    return list(groups.values())


def _numbers_its_children(observation: Observation, path: str) -> bool:
    """A layer that holds ``b1``, ``b2``, … and nothing else is a list in all but name."""
    depth = path.count(observation.separator) + 1 if path else 0
    start = path + observation.separator if path else ""
    children = [p for p in observation.layers if p and p.startswith(start) and p.count(observation.separator) == depth]
    return bool(path) and len({_spot(child) for child in children}) == 1 and children[0][-1].isdigit()


def _composites(observation: Observation) -> list[str]:
    """Layers that ran and hold layers with parameters, containers apart, in forward order."""
    holders = {_parent(observation, path) for path, layer in observation.layers.items() if path and layer.params}
    ran = [path for path in observation.by_path if path in holders and not observation.layers[path].container]
    return sorted((path for path in ran if path), key=lambda path: observation.by_path[path][0].start)


def _outermost_classes(observation: Observation, stacked: set[str]) -> set[str]:
    """Drop the classes of which some layer lies inside a stacked one: the convolutions of a block are no blocks."""
    inner = stacked - _outermost(observation, stacked)
    dropped = {observation.layers[path].types[0] for path in inner}
    return {path for path in stacked if observation.layers[path].types[0] not in dropped}


def _outermost(observation: Observation, paths: set[str]) -> set[str]:
    return {path for path in paths if not any(above in paths for above in _ancestors(observation, path))}


def _with_kin(observation: Observation, stacked: set[str]) -> tuple[str, ...]:
    """Add single blocks: those of a stacked class, and those that stand where stacked blocks stand elsewhere.

    ``blocks.0.0`` of an EfficientNet is of a class of its own, but ``blocks.*.*`` are blocks everywhere else.
    """
    classes = {observation.layers[path].types[0] for path in stacked}
    spots = {_spot(path) for path in stacked}
    chosen = [
        path
        for path in _composites(observation)
        if path in stacked or observation.layers[path].types[0] in classes or _spot(path) in spots
    ]
    outermost = _outermost(observation, set(chosen))
    return tuple(path for path in chosen if path in outermost)


def _children_of_composites(observation: Observation) -> tuple[str, ...]:
    """The model's own composite layers that hold composite layers (the inception modules of GoogLeNet)."""
    composites = _composites(observation)
    above = {ancestor for path in composites for ancestor in _ancestors(observation, path)}
    children = [path for path in composites if _parent(observation, path) == "" and path in above]
    return tuple(children) if len(children) >= _FEWEST_CHILDREN else ()


def _activations(observation: Observation) -> tuple[str, ...]:
    """Activation layers on maps, or the weighted layers where activations are no layers."""
    leaves = [call.path for call in observation.calls if call.path and observation.layers[call.path].leaf]
    leaves = [path for path in dict.fromkeys(leaves) if _is_map(observation, path)]
    for wanted in (_ACTIVATIONS, _WEIGHTED):
        chosen = tuple(path for path in leaves if wanted & set(observation.layers[path].types))
        if chosen:
            return chosen
    return ()


def _quarters(block_paths: tuple[str, ...]) -> tuple[str, ...]:
    count = len(block_paths)
    return tuple(block_paths[i] for i in sorted({-(-count * quarter // 4) - 1 for quarter in range(1, 5)}))


def _widest(observation: Observation, last: str, own: frozenset[str], block_paths: tuple[str, ...]) -> str:
    """The outermost layer that ends a stage: it holds blocks of this stage alone and keeps the last one's resolution."""
    best = last
    for above in _ancestors(observation, last)[:-1]:
        if not {path for path in block_paths if path.startswith(above + observation.separator)} <= own:
            break
        if above in observation.by_path and _resolution(observation, above) == _resolution(observation, last):
            best = above
    return best


def _resolution(observation: Observation, path: str) -> tuple[int, ...] | None:
    outputs = _last(observation, path).outputs
    if not outputs or outputs[0].layout is None:
        return None
    return tuple(size for size, axis in zip(outputs[0].shape, outputs[0].layout, strict=True) if axis in "ZYXT")


def _shape(observation: Observation, path: str) -> tuple[int, ...] | None:
    outputs = _last(observation, path).outputs
    return outputs[0].shape if outputs else None


def _is_map(observation: Observation, path: str) -> bool:
    resolution = _resolution(observation, path)
    return resolution is not None and max(resolution, default=1) > 1


def _last(observation: Observation, path: str) -> Call:
    return observation.by_path[path][-1]


def _identities(items: tuple[Item, ...]) -> set[int]:
    return {item.identity for item in items}


def _parent(observation: Observation, path: str) -> str:
    return path.rpartition(observation.separator)[0]


def _ancestors(observation: Observation, path: str) -> list[str]:
    """From the parent up to the model itself."""
    parts = path.split(observation.separator)
    return [observation.separator.join(parts[:n]) for n in range(len(parts) - 1, -1, -1)]


def _spot(path: str) -> str:
    return re.sub(r"\d+", "*", path)
