from __future__ import annotations

import re

import pytest

from spile.reporting import heat
from spile.reporting.findings import Grid


def grid(n: int) -> Grid:
    names = tuple(f"layer<{i}>" for i in range(n))
    values = tuple(tuple(1.0 if i == j else -0.02 if i < j else 0.5 for j in range(n)) for i in range(n))
    return Grid(title="Similarity", rows=names, columns=names, values=values)


def test_a_cell_a_number_with_its_share_and_its_text() -> None:
    drawn = str(heat.draw(grid(3), width=620))
    assert re.findall(r"--share:([\d.]+)", drawn) == (
        ["1.000", "0.000", "0.000", "0.500", "1.000", "0.000", "0.500", "0.500", "1.000"]
    )
    assert re.findall(r'in-cell">([^<]+)<', drawn)[:4] == ["1.00", "−.02", "−.02", ".50"]
    assert "<title>layer&lt;0&gt;, layer&lt;1&gt;: −0.02</title>" in drawn
    assert "Most alike: layer&lt;2&gt; and layer&lt;1&gt;, 0.5." in drawn


@pytest.mark.parametrize("width", [340, 620, 920])
@pytest.mark.parametrize("n", [1, 20])
def test_it_stays_within_its_width_and_text_only_where_it_fits(n: int, width: int) -> None:
    drawn = str(heat.draw(grid(n), width=width))
    ends = [
        float(x) + float(w) for x, w in re.findall(r'<rect x="([\d.]+)" y="[^"]+" width="([\d.]+)"', drawn)
    ]
    assert len(ends) == n * n and max(ends) <= width
    assert ("in-cell" in drawn) == (n == 1 or width == 920)


def test_what_is_not_known_is_an_empty_cell() -> None:
    drawn = str(heat.draw(Grid(title="t", rows=("a",), columns=("b",), values=((None,),)), width=340))
    assert "<title>a, b: –</title>" in drawn and "in-cell" not in drawn


def test_a_grid_has_a_value_for_each_pair() -> None:
    with pytest.raises(ValueError, match="1 × 2 values"):
        Grid(title="t", rows=("a",), columns=("b", "c"), values=((1.0,),))


def test_very_many_cells_are_a_few_paths() -> None:
    drawn = str(heat.draw(grid(60), width=620))
    assert "<rect" not in drawn and drawn.count("<path") == 3
    corners = [float(x) + float(w) for x, w in re.findall(r"M([\d.]+) [\d.]+h([\d.]+)", drawn)]
    assert len(corners) == 3600 and max(corners) <= 620
