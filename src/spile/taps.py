"""Tap any layer of a model. **Read this first.**

    tap = spile.tap(model, ["layer3", "layer4.*.conv2@in"], pool="avg", example=images)
    activations = tap(images)                # stops at the deepest point
    activations["layer3"]                    # (samples, channels)

A *layer* is a module of the model; an *address* names a place at it (`spile.address`); on a concrete model an address
becomes *points*, one tensor per forward pass each; a *pool* says what is kept of it (`spile.pool`); points and pools on a
model are a *tap*. How the tensors are caught is the framework's business: `spile.torch.taps`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, overload

from spile.backend import Activations, Mode, Tap, Verification, backend_of
from spile.errors import MissingDependency
from spile.models import as_loaded, example_for
from spile.observation import Call, Observation
from spile.resolution import AddressesLike, PoolsLike
from spile.structure import places

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["Activations", "LayerRow", "LayerTable", "Tap", "Verification", "layers", "tap"]


def tap(
    model: Any, addresses: AddressesLike, *, pool: PoolsLike = "auto", example: Any = None, mode: Mode = "eval"
) -> Tap:
    """Tap a model at one or several addresses.

    `model` is a model object, a reference such as ``"timm:resnet50"``, or what `spile.load_model` gave; the latter two
    bring their preprocessing along. `addresses` is one address, a list, or a dict ``{own name: address}``. `pool` is one pool for all, or a dict from address
    (or own name) to pool. `example` is a batch, or the shape of one, for the dry pass that learns which layers run and how
    often; without it the first batch serves. The pass runs in evaluation mode and puts the flags back; ``mode="as_is"``
    runs the model as you left it, for training.

    Returns a ``torch.nn.Module`` that is called like the model and gives `Activations`: one tensor a point, samples first.
    Raises `AddressError`, `PoolError`, and on any later batch `CaptureError` where a point did not fire as it should.
    """
    loaded = as_loaded(model)
    if example is None:
        example = example_for(loaded)
    made = backend_of(loaded.model).tap(loaded.model, addresses, pool=pool, example=example, mode=mode)
    made.origin = loaded if loaded.reference else None
    return made


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One layer. `output` is the shape for one sample; `stride` is input pixels a cell, for maps."""

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
    """The layers of a model in forward order. Prints as a table; ``to_pandas()`` for more."""

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

    def __rich__(self) -> Table:
        from rich.table import Table

        table = Table(header_style="bold", box=None, pad_edge=False)
        table.add_column("address", overflow="fold")
        for heading in ("type", "output", "dtype"):
            table.add_column(heading)
        for heading in ("params", "MACs to reach", "calls", "stride"):
            table.add_column(heading, justify="right")
        for row in self._rows:
            mark = "bold cyan" if row.stage else "cyan" if row.block else None
            table.add_row(
                f"[{mark}]{row.address}[/]" if mark else row.address,
                row.type,
                "" if row.output is None else "×".join(map(str, row.output)),
                row.dtype or "",
                _short(row.params) if row.params else "",
                _short(row.macs),
                str(row.calls) if row.calls != 1 else "",
                "" if row.stride is None else str(row.stride),
            )
        table.caption = "bold: ends a stage; coloured: a block" if any(row.block for row in self._rows) else None
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=140, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from html import escape

        heads = ("address", "type", "output", "dtype", "params", "MACs to reach", "calls", "stride")
        body = "".join(
            "<tr>"
            + "".join(
                f"<td>{escape(str(cell))}</td>"
                for cell in (
                    row.address,
                    row.type,
                    "" if row.output is None else "×".join(map(str, row.output)),
                    row.dtype or "",
                    _short(row.params),
                    _short(row.macs),
                    row.calls,
                    "" if row.stride is None else row.stride,
                )
            )
            + "</tr>"
            for row in self._rows
        )
        return f"<table><thead><tr>{''.join(f'<th>{h}</th>' for h in heads)}</tr></thead><tbody>{body}</tbody></table>"


def layers(model: Any, example: Any = None) -> LayerTable:
    """List the layers that run, in forward order: address, type, output, parameters, cost to reach, calls and stride.

    `model` is as for `tap`. `example` is a batch or its shape, e.g. ``(1, 3, 224, 224)``, and not needed for a reference
    that tells its input size; no real data is run where the model allows fake tensors.
    """
    loaded = as_loaded(model)
    observation = backend_of(loaded.model).observe(loaded.model, example_for(loaded) if example is None else example)
    known = places(observation)
    blocks, stages = set(known.blocks), set(known.stages)
    return LayerTable([_row(observation, path, path in blocks, path in stages) for path in known.paths])


def _row(observation: Observation, path: str, block: bool, stage: bool) -> LayerRow:
    calls = observation.by_path[path]
    layer, last = observation.layers[path], calls[-1]
    output = last.outputs[0] if last.outputs else None
    return LayerRow(
        address=path,
        type=layer.types[0],
        output=output.shape[1:] if output is not None else None,
        dtype=output.dtype if output is not None else None,
        params=layer.params,
        macs=last.macs,
        calls=len(calls),
        stride=_stride(observation, last),
        block=block,
        stage=stage,
    )


def _stride(observation: Observation, call: Call) -> int | None:
    """Input pixels a cell of a map, from the heights of the input and of the map."""
    image = next((item for item in observation.root.inputs if item.layout == "BCYX"), None)
    output = call.outputs[0] if call.outputs else None
    if image is None or output is None or "Y" not in (output.layout or ""):
        return None
    height = output.shape[output.layout.index("Y")]  # type: ignore[union-attr]
    return round(image.shape[image.layout.index("Y")] / height)  # type: ignore[union-attr]


def _short(number: int) -> str:
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
