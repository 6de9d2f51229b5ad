"""Blocks of a flat network: a graph of layers that no layer groups, as most Keras models are.

A *node* is a layer of that graph: neither a model nor a chain itself, and in nothing else. Two things tell
where blocks are.

*Names*, read as a hierarchy of their numbers: ``conv3_block4_out`` lies in ``conv3`` and in ``conv3_block4``.
Groups of names that differ in numbers only are blocks where they run one after the other; if their size
changes at most steps and there are numbered groups in them, those are looked at instead. A group without a
number but with the same names inside (``expanded_conv_project`` beside ``block_1_project``) is a block too.

*Merges*: layers without weights that join tensors of one size (Add, Concatenate). A merge ends a block unless
what it gives goes into one other merge only, or something is still to be read that came out of no merge:
then it lies inside a block.

A block ends where, once its named layers have run, the fewest tensors are still to be read; and past the
normalisation or activation that follows most of the blocks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from operator import attrgetter

from spile.observation import Call, Item, Layer, Observation

ACTIVATIONS = frozenset(
    ("ReLU", "ReLU6", "LeakyReLU", "PReLU", "ELU", "SELU", "CELU", "GELU", "SiLU", "Mish", "Hardswish",
     "Sigmoid", "Tanh", "Softplus", "Activation")
)  # fmt: skip
_FINISHING = ACTIVATIONS | {
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "RMSNormalization",
}
_TRANSPARENT = frozenset(("Functional", "Sequential"))
_NUMBER = re.compile(r"\d+[a-z]?(?=[_.\-]|$)")
_NEW_POSITIONS = 1.5

Size = tuple[int, int]


def size(observation: Observation, path: str) -> Size | None:
    """Channels and number of positions of the first tensor that the layer's last run gives."""
    outputs = observation.by_path[path][-1].outputs
    return size_of(outputs[0]) if outputs else None


def size_of(item: Item) -> Size | None:
    """Channels and number of positions of a tensor; ``None`` for a single number."""
    if not item.shape:
        return None
    if item.layout is None or "C" not in item.layout:
        return item.shape[-1], prod(item.shape[:-1])
    sizes = dict(zip(item.layout, item.shape, strict=True))
    return sizes["C"], prod(sizes.get(axis, 1) for axis in "ZYXT")


def alike(observation: Observation, one: str, next_one: str) -> bool:
    """Whether two blocks in a row belong to one stage: one width and about as many positions.

    A class token more, or a border less, is no new stage; nor is a width that grows because the second block
    joins what the first one gave to its own (DenseNet).
    """
    first, second = size(observation, one), size(observation, next_one)
    if first is None or second is None:
        return first is second
    few, many = sorted((first[1], second[1]))
    width = first[0] == second[0] or _appends(observation, one, next_one)
    return width and many < _NEW_POSITIONS * few


def _appends(observation: Observation, one: str, next_one: str) -> bool:
    """Whether the second layer gives the channels of the first one's tensor and of others, side by side."""
    given, call = _ids(observation.by_path[one][-1].outputs), observation.by_path[next_one][-1]
    widths = [found[0] for item in call.inputs if (found := size_of(item))]
    end = size(observation, next_one)
    return bool(given & _ids(call.inputs)) and end is not None and len(widths) > 1 and sum(widths) == end[0]


def blocks(observation: Observation) -> tuple[str, ...]:
    """Paths of the layers that end the blocks, in forward order; empty where the network shows none."""
    graph = _Graph(observation)
    groups = _named(graph)
    ends = [_end(graph, group, until) for group, until in zip(groups, _starts(graph, groups), strict=True)]
    inside = {i for group in groups for i in range(group[0], group[-1] + 1)}
    ends = sorted({*ends, *(i for i in _outer_merges(graph) if i not in inside)})
    if len(ends) < 2:
        return ()
    ends = _finished(graph, ends, {i for group in groups for i in group})
    return tuple(graph.path(i) for i in (ends if groups else _whole(graph, ends)))


def lie_inside(observation: Observation, paths: Iterable[str], block_paths: Sequence[str]) -> bool:
    """Whether these layers are parts of the blocks: a path leads past each of them to its block's end."""
    graph = _Graph(observation)
    index = {call.path: i for i, call in enumerate(graph.nodes)}
    ends = [index[path] for path in block_paths]

    def inner(path: str) -> bool:
        at = index.get(path)
        end = next((end for end in ends if at is not None and at < end), None)
        return at is not None and end is not None and len(graph.live[at]) > len(graph.live[end])

    return bool(block_paths) and all(map(inner, paths))


@dataclass(frozen=True)
class _Graph:
    """The nodes of a flat network in forward order, and which tensors flow between them."""

    observation: Observation

    @cached_property
    def nodes(self) -> list[Call]:
        seen, separator = self.observation, self.observation.separator
        clear = {"": True}

        def is_clear(path: str) -> bool:
            if path not in clear:
                layer = seen.layers.get(path)
                clear[path] = is_clear(path.rpartition(separator)[0]) and (
                    layer is None or layer.container or not _TRANSPARENT.isdisjoint(layer.types)
                )
            return clear[path]

        calls = (c for c in seen.calls if not is_clear(c.path) and is_clear(c.path.rpartition(separator)[0]))
        return sorted(calls, key=attrgetter("start"))

    @cached_property
    def readers(self) -> dict[int, list[int]]:
        """By tensor, the nodes that read it."""
        found: dict[int, list[int]] = {}
        for i, call in enumerate(self.nodes):
            for tensor in _ids(call.inputs):
                found.setdefault(tensor, []).append(i)
        return found

    @cached_property
    def live(self) -> list[frozenset[int]]:
        """By node, the tensors that are there once it has run and are still to be read."""
        last = {tensor: readers[-1] for tensor, readers in self.readers.items()}
        last |= dict.fromkeys(_ids(self.observation.root.outputs), len(self.nodes))
        found: list[frozenset[int]] = []
        now: set[int] = set()
        for i, call in enumerate(self.nodes):
            now = {
                tensor for tensor in now | _ids(call.inputs) | _ids(call.outputs) if last.get(tensor, i) > i
            }
            found.append(frozenset(now))
        return found

    def path(self, node: int) -> str:
        return self.nodes[node].path

    def layer(self, node: int) -> Layer:
        return self.observation.layers[self.path(node)]

    def runs_once(self, node: int) -> bool:
        return len(self.observation.by_path[self.path(node)]) == 1

    def only_reader(self, node: int) -> int | None:
        """The one node that reads what this one gives, if no other does."""
        tensors = _ids(self.nodes[node].outputs)
        later = {reader for tensor in tensors for reader in self.readers.get(tensor, ()) if reader > node}
        return later.pop() if len(later) == 1 else None

    def finish(self, node: int) -> list[int]:
        """The normalisations and activations that follow a node, each the only reader of the one before."""
        found: list[int] = []
        reader = self.only_reader(node)
        while reader is not None and self.runs_once(reader) and _FINISHING & set(self.layer(reader).types):
            found.append(reader)
            reader = self.only_reader(reader)
        return found


# ----------------------------------------------------------------------------- names

_Groups = dict[str, list[int]]


def _named(graph: _Graph) -> list[list[int]]:
    """Groups of nodes that the names say are blocks."""
    classes = _classes(graph)
    steady: dict[str, _Groups] = {}
    changing: dict[str, _Groups] = {}
    for skeleton in sorted(classes, key=lambda text: text.count("*")):
        groups = {name: nodes for name, nodes in classes[skeleton].items() if len(nodes) > 1}
        if any(skeleton.startswith(outer) for outer in steady) or not _in_a_row(graph, list(groups.values())):
            continue
        paths = [graph.path(_end(graph, nodes, nodes[-1] + 1)) for nodes in groups.values()]
        changes = sum(not alike(graph.observation, a, b) for a, b in pairwise(paths))
        if 2 * changes < len(paths) - 1:
            steady[skeleton] = groups
        elif not any(inner.startswith(skeleton) for inner in classes if inner != skeleton):
            changing[skeleton] = groups
    chosen = steady or changing
    found = [(name, nodes) for groups in chosen.values() for name, nodes in groups.items()]
    found += [("", nodes) for nodes in _kin(graph, chosen)]
    return _joined(sorted(found, key=lambda group: group[1][0]))


def _classes(graph: _Graph) -> dict[str, _Groups]:
    """By name with its numbers taken out, the groups of nodes that lie in each name of that kind."""
    found: dict[str, _Groups] = {}
    for i in range(len(graph.nodes)):
        path, home = graph.path(i), _home(graph, i)
        if not _automatic(graph, i):
            for match in _NUMBER.finditer(path, len(home)):
                name = path[: match.end()]
                skeleton = home + _NUMBER.sub("*", name[len(home) :])
                found.setdefault(skeleton, {}).setdefault(name, []).append(i)
    return found


def _in_a_row(graph: _Graph, groups: Sequence[list[int]]) -> bool:
    """Whether groups with weights run one after the other, not side by side."""
    weights = all(any(graph.layer(i).params for i in group) for group in groups)
    return len(groups) > 1 and weights and all(a[-1] < b[0] for a, b in pairwise(groups))


def _kin(graph: _Graph, classes: dict[str, _Groups]) -> Iterator[list[int]]:
    """Groups without a number that hold names which the groups of a class hold too."""
    taken = {i for groups in classes.values() for nodes in groups.values() for i in nodes}
    free = [i for i in range(len(graph.nodes)) if i not in taken and not _automatic(graph, i)]
    inner = {
        graph.path(i)[len(name) :]
        for groups in classes.values()
        for name, nodes in groups.items()
        for i in nodes
    } - {""}
    fitting: dict[str, list[int]] = {}
    for i in free:
        endings = [ending for ending in inner if graph.path(i).endswith(ending)]
        if endings:
            fitting.setdefault(graph.path(i).removesuffix(max(endings, key=len)), []).append(i)
    for name, nodes in fitting.items():
        everything = [i for i in free if graph.path(i).startswith(name)]
        if len(nodes) > 1 and nodes == everything and any(graph.layer(i).params for i in nodes):
            yield nodes


def _joined(groups: Iterable[tuple[str, list[int]]]) -> list[list[int]]:
    """Groups in a row with equal numbers and different names (``conv_dw_3``, ``conv_pw_3``) are one block."""
    found: list[list[int]] = []
    before: list[str] = []
    for name, nodes in groups:
        numbers = _NUMBER.findall(name)
        if found and numbers and numbers == before:
            found[-1] = found[-1] + nodes
        else:
            found.append(nodes)
        before = numbers
    return found


def _automatic(graph: _Graph, node: int) -> bool:
    """Whether Keras made the name up from the class and a count, which changes from process to process."""
    name = re.sub(r"(_\d+)?$", "", graph.path(node)[len(_home(graph, node)) :])
    return name.replace("_", "") == graph.layer(node).types[0].lower()


def _home(graph: _Graph, node: int) -> str:
    """The path before a node's own name, with the separator."""
    path = graph.path(node)
    return path[: path.rfind(graph.observation.separator) + 1]


def _starts(graph: _Graph, groups: Sequence[list[int]]) -> list[int]:
    """Of every group, the node at which the next one starts."""
    return [*(group[0] for group in groups), len(graph.nodes)][1:] if groups else []


def _end(graph: _Graph, group: Sequence[int], until: int) -> int:
    """The node that ends a block: after the last named layer the first with the fewest tensors to be read."""
    after = [i for i in range(group[-1], until) if graph.runs_once(i)] or [group[-1]]
    return min(after, key=lambda i: len(graph.live[i]))


# ----------------------------------------------------------------------------- merges


def _outer_merges(graph: _Graph) -> list[int]:
    merges = [i for i in range(len(graph.nodes)) if _merges(graph, i)]
    maps = [i for i in merges if (size_of(graph.nodes[i].outputs[0]) or (0, 0))[1] > 1]
    merged = _ids(graph.observation.root.inputs)
    for i in merges:
        merged |= {t for node in (i, *graph.finish(i)) for t in _ids(graph.nodes[node].outputs)}
    return [i for i in maps or merges if graph.live[i] <= merged and graph.only_reader(i) not in merges]


def _merges(graph: _Graph, node: int) -> bool:
    """Whether a layer without weights joins several tensors of as many positions as it gives."""
    call, layer = graph.nodes[node], graph.layer(node)
    if not layer.leaf or layer.params or len(call.outputs) != 1 or len(_ids(call.inputs)) < 2:
        return False
    positions = {found[1] if (found := size_of(item)) else 0 for item in (*call.inputs, *call.outputs)}
    return graph.runs_once(node) and len(positions) == 1


def _finished(graph: _Graph, ends: Sequence[int], named: set[int]) -> list[int]:
    """Move the ends past the normalisations and activations that follow most of them."""
    chains = [[i for i in graph.finish(end) if i not in named] for end in ends]
    kinds = [tuple(graph.layer(i).types[0] for i in chain) for chain in chains]
    usual = Counter(kinds).most_common(1)[0][0]
    count = len(usual)
    return [
        chain[count - 1] if count and kind[:count] == usual else end
        for end, chain, kind in zip(ends, chains, kinds, strict=True)
    ]


def _whole(graph: _Graph, ends: Sequence[int]) -> list[int]:
    """Where nothing changes its size and the parts between merges take turns, a block is one full turn.

    Attention with its merge and a perceptron with its own make one block of a transformer.
    """
    paths = [graph.path(end) for end in ends]
    if all(alike(graph.observation, a, b) for a, b in pairwise(paths)):
        starts = [0, *(end + 1 for end in ends)]
        parts = [
            [graph.layer(i).types[0] for i in range(start, end + 1)]
            for start, end in zip(starts, ends, strict=False)
        ]
        for turn in range(1, len(ends) // 2 + 1):
            pairs = zip(parts, parts[turn:], strict=False)
            if len(ends) % turn == 0 and all(a[-len(b) :] == b for a, b in pairs):
                return list(ends[turn - 1 :: turn])
    return list(ends)


def _ids(items: Iterable[Item]) -> set[int]:
    return {item.identity for item in items}
