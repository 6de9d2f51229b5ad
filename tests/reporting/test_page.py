from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from spile.errors import DataError
from spile.reporting import write_report

VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Tables by caption, section ids, images and all text; fails on tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.values: list[float] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._rows, self._caption = [], ""
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "data":
            self.values.append(float(attributes["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self.tables[self._caption.strip()] = [[cell.strip() for cell in row] for row in self._rows]

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "caption" in self.open:
            self._caption += data
        elif ("td" in self.open or "th" in self.open) and "table" in self.open:
            self._rows[-1][-1] += data.replace("\u202f", " ")

    def table(self, start: str) -> list[list[str]]:
        return next(rows for caption, rows in self.tables.items() if caption.startswith(start))

    def attributes(self, tag: str, name: str) -> list[str]:
        return [
            attributes[name] or "" for found, attributes in self.tags if found == tag and name in attributes
        ]

    @property
    def sections(self) -> list[str]:
        return self.attributes("section", "id")


def write(folder: Path, record: dict[str, Any]) -> tuple[str, Page]:
    (folder / "run.json").write_text(json.dumps(record))
    html = write_report(folder).read_text(encoding="utf-8")
    return html, Page(html)


def test_a_full_run_shows_every_section(tmp_path: Path, run: dict[str, Any]) -> None:
    _, page = write(tmp_path, run)
    assert page.sections == [
        "run",
        "layers",
        "cost",
        "table",
        "seeds",
        "confusion",
        "neighbors",
        "mistakes",
        "maps",
        "timings",
        "skipped",
        "origin",
    ]
    for shown in (
        run["command"],
        run["fingerprint"],
        "17 November 2026",
        "2.15.0",
        "truncated file",
        "1.2e-07",
    ):
        assert shown in page.text


def test_the_tables_hold_the_numbers_of_the_run(tmp_path: Path, run: dict[str, Any]) -> None:
    _, page = write(tmp_path, run)
    header, *rows = page.table("10 points")
    assert len(rows) == len(run["table"])
    for shown, row in zip(rows, run["table"], strict=True):
        cells = dict(zip(header, shown, strict=True))
        assert cells["Point"].startswith(row["point"])
        assert cells["Score"] == f"{100 * row['score']:.1f} %"
        assert cells["Held out"] == f"{100 * row['test_score']:.1f} %"
        assert cells["Dims"] == f"{row['dims']:,}"
        assert {row["score"], row["stderr"], row["test_score"], row["alpha"]} <= set(page.values)
    assert [row[0] for row in rows if "chosen" in row[0]] == ["blocks.4 chosen"]
    _, *confusion = page.table("Rows are true labels")
    assert [[int(n) for n in row[1:]] for row in confusion] == run["confusion"]["matrix"]
    *seeds, mean = page.table("3 seeds")
    assert seeds[2] == ["1", "blocks.4", "79.3 %", "49.9 %", "60.5 %"]
    assert mean == ["Mean", "79.3 %", "51.0 %", "61.7 %"]
    assert page.table("Wall-clock")[2] == ["extract", "14.3 s", "", "349 images/s"]


def test_every_chart_and_picture_has_words_and_every_table_a_caption(
    tmp_path: Path, run: dict[str, Any]
) -> None:
    _, page = write(tmp_path, run)
    charts = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(charts) == 6
    assert all("blocks.4 82.0\u202f% ±\u202f3.8" in (chart["aria-label"] or "") for chart in charts)
    assert page.text.count("blocks.4 · 82.0\u202f%") == 6
    assert page.text.count("70\u202f%") >= 6, "round percents on the axes"
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 4 * 7 + 8 + 3 * 4
    assert all(image["alt"] for image in images)
    assert "" not in page.tables
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_the_page_is_complete_in_itself(tmp_path: Path, run: dict[str, Any]) -> None:
    html, page = write(tmp_path, run)
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("img", "src"))
    assert page.attributes("link", "href") == ["data:,"]
    assert not {"script", "iframe", "object", "a"} & {tag for tag, _ in page.tags}
    assert not re.search(r"https?://|url\(|@import|\bon\w+=", html)
    assert "default-src 'none'" in page.attributes("meta", "content")[-1]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_bare_probe_leaves_out_what_it_does_not_have(tmp_path: Path) -> None:
    table = [
        {"point": "a", "score": None, "order": 0},
        {"point": "b", "score": 0.25, "order": 1, "chosen": True},
    ]
    _, page = write(tmp_path, {"schema": 1, "title": "t", "metric": "accuracy", "table": table})
    assert page.sections == ["run", "layers", "table", "skipped"]
    assert "none" in page.text
    assert page.table("2 points") == [["Point", "Score"], ["a", "–"], ["b chosen", "25.0 %"]]


def test_nothing_scored_still_gives_a_page(tmp_path: Path) -> None:
    _, page = write(tmp_path, {"schema": 1, "title": "t", "metric": "accuracy", "table": []})
    assert page.sections == ["run", "table", "skipped"]


def test_markup_in_the_record_is_shown_as_text(tmp_path: Path, run: dict[str, Any]) -> None:
    nasty = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"

    def poison(value: object) -> object:
        if isinstance(value, dict):
            return {key: poison(item) for key, item in value.items()} | {nasty: nasty}
        if isinstance(value, list):
            return [poison(item) for item in value]
        return value + nasty if isinstance(value, str) else value

    clean = write(tmp_path, run)[1]
    keep = {key: run[key] for key in ("schema", "metric")}
    poisoned = poison({**run, "table": [], "neighbors": [], "mistakes": [], "maps": []})
    assert isinstance(poisoned, dict)
    table = [row | {"point": row["point"] + nasty, "note": nasty} for row in run["table"]]
    query = {"id": nasty, "label": nasty, "picture": nasty}
    html, page = write(
        tmp_path,
        poisoned
        | keep
        | {
            "table": table,
            "neighbors": [{"query": query, "neighbors": [query], "point": nasty}],
            "mistakes": [query | {"predicted": nasty}],
            "maps": [{"title": nasty, "picture": nasty, "levels": [{"point": nasty, "picture": nasty}]}],
        },
    )
    assert nasty in page.text
    assert "<script" not in html
    assert page.attributes("img", "src") == []
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in clean.tags} | {"span", "br"}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_only_browser_pictures_inside_of_the_folder_are_embedded(tmp_path: Path, run: dict[str, Any]) -> None:
    inside = tmp_path / "run"
    inside.mkdir()
    (tmp_path / "pictures" / "wrong0.png").rename(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "broken.png").write_bytes(b"no picture")
    Image.new("L", (4, 4)).save(inside / "odd.tiff")
    paths = [
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "broken.png",
        "odd.tiff",
        "absent.png",
        "",
        "\0",
        None,
    ]
    run["mistakes"] = [{"id": f"s{i}", "label": 1, "predicted": 2, "picture": p} for i, p in enumerate(paths)]
    run["neighbors"], run["maps"] = [], []
    _, page = write(inside, run)
    assert page.attributes("img", "src") == []
    assert all(f"s{i}" in page.text for i in range(len(paths)))


def test_many_classes_give_the_worst_confusions(tmp_path: Path, run: dict[str, Any]) -> None:
    n = 40
    matrix = [[0] * n for _ in range(n)]
    matrix[3][5], matrix[3][3], matrix[7][8] = 3, 9, 2
    run["confusion"] = {"labels": [f"class {i}" for i in range(n)], "matrix": matrix}
    _, page = write(tmp_path, run)
    assert page.table("The most frequent")[1:] == [
        ["class 3", "class 5", "3", "25.0 %"],
        ["class 7", "class 8", "2", "100.0 %"],
    ]


def test_more_skipped_than_listed_is_said(tmp_path: Path, run: dict[str, Any]) -> None:
    _, page = write(tmp_path, run | {"skipped_total": 1234})
    assert page.table("1,234 skipped, the first 1 listed")[1] == [
        "mnist/0417",
        "truncated file: 312 of 784 bytes",
    ]


def test_the_page_goes_where_it_is_sent_and_nothing_else_is_left(tmp_path: Path, run: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run))
    before = {path.name for path in tmp_path.iterdir()}
    elsewhere = tmp_path / "pictures" / "mine.html"
    assert write_report(tmp_path, elsewhere) == elsewhere
    assert write_report(str(tmp_path)) == tmp_path / "report.html"
    assert {path.name for path in tmp_path.iterdir()} == before | {"report.html"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, run: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(DataError, match=r"cannot be written to '.*absent.*No such file.*--out"):
        write_report(tmp_path, tmp_path / "absent" / "report.html")


def test_writing_a_report_loads_no_framework(tmp_path: Path, run: dict[str, Any]) -> None:
    (tmp_path / "run.json").write_text(json.dumps(run))
    code = (
        "import sys; from spile.reporting import write_report; write_report(sys.argv[1]);"
        "print({'torch', 'keras', 'sklearn', 'lance', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
