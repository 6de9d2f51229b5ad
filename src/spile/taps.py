"""Tap any layer of a model. **Read this first.**

    tap = spile.tap(model, ["layer3", "layer4.*.conv2@in"], pool="avg", example=images)
    activations = tap(images)                # stops at the deepest point
    activations["layer3"]                    # (samples, channels)

A *layer* is a module (PyTorch) or layer (Keras) of the model; an *address* names a place at it
(`spile.address`); on a concrete model an address becomes *points*, one tensor per forward pass each; a *pool*
says what is kept of it (`spile.pool`); points and pools on a model are a *tap*. How the tensors are caught is
the framework's business: `spile.torch.taps`, `spile.keras.taps`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

from spile.address import literal
from spile.backend import backend_of
from spile.errors import MissingDependency
from spile.interfaces import Activations, Mode, Tap, Verification
from spile.models import as_loaded, example_for
from spile.observation import Item, Observation
from spile.resolution import AddressesLike, PoolsLike
from spile.structure import places

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console, ConsoleOptions, OverflowMethod, RenderResult
    from rich.table import Table

__all__ = ["Activations", "LayerRow", "LayerTable", "Tap", "Verification", "layers", "tap"]


def tap(
    model: Any,
    addresses: AddressesLike,
    *,
    pool: PoolsLike = "auto",
    example: Any = None,
    mode: Mode = "eval",
) -> Tap:
    """Tap a model at one or several addresses.

    `model` is a ``torch.nn.Module`` or a ``keras.Model``, a reference such as ``"timm:resnet50"``, or what
    `spile.load_model` gave; the latter two bring their preprocessing along. `addresses` is one address, a
    list, or a dict ``{name: address}``. `pool` is one pool for all, or a dict from address (or own name) to
    pool. `example` is a batch, or the shape of one, for the dry pass that learns which layers run and how
    often; without it the first batch serves. The pass runs in evaluation mode and puts the flags back;
    ``mode="as_is"`` runs the model as you left it, for training.

    Returns a tap that is called like the model and gives `Activations`: one tensor a point, samples first. Of
    a PyTorch model it is a ``torch.nn.Module``. Raises `AddressError`, `PoolError`, and on any later batch
    `CaptureError` where a point did not fire as it should.
    """
    loaded = as_loaded(model)
    if example is None:
        example = example_for(loaded)
    made = backend_of(loaded.model).tap(loaded.model, addresses, pool=pool, example=example, mode=mode)
    made.origin = loaded if loaded.reference else None
    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One layer. `output` is the shape for one sample; `stride` is input pixels a cell, for maps.

    Both are those of the first tensor of the layer's last call, and ``None`` where they cannot be told.
    """

    address: str
    type: str
    output: tuple[int, ...] | None
    dtype: str | None
    params: int
    macs: int
    """Multiply-accumulates a sample to reach the end of the layer's last call."""
    calls: int
    stride: int | None
    block: bool
    stage: bool


class LayerTable(Sequence[LayerRow]):
    """The layers of a model in forward order. Prints as a table; `to_pandas` and `to_json` give more."""

    def __init__(self, rows: Sequence[LayerRow]) -> None:
        self._rows = tuple(rows)

    @overload
    def __getitem__(self, index: int) -> LayerRow: ...
    @overload
    def __getitem__(self, index: slice) -> LayerTable: ...
    def __getitem__(self, index: int | slice) -> LayerRow | LayerTable:
        return LayerTable(self._rows[index]) if isinstance(index, slice) else self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self._rows)

    def to_json(self) -> list[dict[str, Any]]:
        """One plain dict a layer."""
        return [asdict(row) for row in self._rows]

    def to_pandas(self) -> pd.DataFrame:
        """One row a layer."""
        try:
            import pandas as pd
        except ImportError:
            raise MissingDependency("pandas", extra="data", purpose="LayerTable.to_pandas()") from None
        return pd.DataFrame(self.to_json())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(options.max_width)

    def _table(self, width: int) -> Table:
        """For `width` columns of text: long types are cut short first, then long addresses fold."""
        from rich.markup import escape
        from rich.table import Table

        columns = self._columns()
        widths = {heading: max(map(len, [heading, *texts])) for heading, texts in columns.items()}
        room = width - sum(widths.values()) - len(widths) + 1
        for heading, narrowest in (("type", 10), ("address", 16)):
            if room < 0 and heading in widths:
                cut = min(-room, max(0, widths[heading] - narrowest))
                widths[heading], room = widths[heading] - cut, room + cut
        table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=True)
        table.caption, table.caption_justify = self._caption() or None, "left"
        for heading, size in widths.items():
            overflow: OverflowMethod = "fold" if heading == "address" else "ellipsis"
            right = heading in ("params", "MACs", "calls", "stride")
            table.add_column(heading, width=size, overflow=overflow, justify="right" if right else "left")
        for row, cells in zip(self._rows, zip(*columns.values(), strict=True), strict=True):
            table.add_row(
                *map(escape, cells), style="bold cyan" if row.stage else "cyan" if row.block else None
            )
        return table

    def _columns(self) -> dict[str, list[str]]:
        """Texts by heading; what says nothing, or the same everywhere, is left out."""
        rows = self._rows
        several_dtypes = len({row.dtype for row in rows if row.dtype}) > 1
        columns = {
            "address": [row.address for row in rows],
            "type": [row.type for row in rows],
            "output": ["" if row.output is None else "×".join(map(str, row.output)) for row in rows],
            "dtype": [row.dtype or "" if several_dtypes else "" for row in rows],
            "params": [_short(row.params) if row.params else "" for row in rows],
            "MACs": [_short(row.macs) for row in rows],
            "calls": [str(row.calls) if row.calls > 1 else "" for row in rows],
            "stride": [str(row.stride) if row.stride else "" for row in rows],
            "unit": ["stage" if row.stage else "block" if row.block else "" for row in rows],
        }
        return {heading: texts for heading, texts in columns.items() if any(texts) or heading == "address"}

    def _caption(self) -> str:
        """What holds for every row; empty for an empty table."""
        dtypes = {row.dtype for row in self._rows if row.dtype}
        if not self._rows:
            return ""
        return "MACs: a sample, to the end of the layer" + (
            f"; all {dtypes.pop()}" if len(dtypes) == 1 else ""
        )

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        def row(tag: str, cells: Iterable[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        columns = self._columns()
        body = "".join(row("td", cells) for cells in zip(*columns.values(), strict=True))
        head = f"<caption>{escape(self._caption())}</caption><thead>{row('th', columns)}</thead>"
        return f"<table>{head}<tbody>{body}</tbody></table>"


def layers(model: Any, example: Any = None) -> LayerTable:
    """List the layers that run, in forward order: address, type, output, parameters, MACs, calls and stride.

    `model` is as for `tap`. `example` is a batch or its shape, e.g. ``(1, 3, 224, 224)``, and not needed for
    a reference that tells its input size; no real data is run where the model allows fake tensors.
    """
    loaded = as_loaded(model)
    observation = backend_of(loaded.model).observe(
        loaded.model, example_for(loaded) if example is None else example
    )
    known = places(observation)
    blocks, stages = set(known.blocks), set(known.stages)
    return LayerTable([_row(observation, path, path in blocks, path in stages) for path in known.paths])


def _row(observation: Observation, path: str, block: bool, stage: bool) -> LayerRow:
    calls = observation.by_path[path]
    layer, last = observation.layers[path], calls[-1]
    output = last.outputs[0] if last.outputs else None
    return LayerRow(
        address=literal(path),
        type=layer.types[0],
        output=_of_one_sample(output) if output else None,
        dtype=output.dtype if output else None,
        params=layer.params,
        macs=last.macs,
        calls=len(calls),
        stride=_stride(observation.root.inputs, output) if output else None,
        block=block,
        stage=stage,
    )


def _of_one_sample(item: Item) -> tuple[int, ...] | None:
    if item.layout is None:
        return None
    return tuple(size for size, axis in zip(item.shape, item.layout, strict=True) if axis != "B")


def _stride(inputs: Sequence[Item], output: Item) -> int | None:
    """Input pixels a cell of a map, from the heights of the input image and of the map."""
    heights = [_height(item) for item in (*inputs, output)]
    image = next((height for height in heights[:-1] if height), None)
    return round(image / heights[-1]) if image and heights[-1] else None


def _height(item: Item) -> int | None:
    return item.shape[item.layout.index("Y")] if item.layout and "Y" in item.layout else None


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= 0.9995 * size:  # 999,999 is 1 M
            return f"{number / size:.3g} {unit}"
    return str(number)
