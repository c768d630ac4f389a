"""The documentation's lines for DuckDB and Polars, on the raw files of a merged folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from synthetic_sweep import write_sweep

import ld3_dist as ld3
from ld3_dist.store.folding import Segments
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import write_table

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "reading-results.md"


def line_of(package: str) -> str:
    """The expression that the page gives for a package."""
    (found,) = re.findall(rf"^{package}\.\S.*$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return found


@pytest.mark.parametrize(("package", "short"), [("duckdb", "duckdb"), ("polars", "pl")])
def test_other_readers_see_every_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, short: str
) -> None:
    module = pytest.importorskip(package, reason="needs the dev extra")
    monkeypatch.chdir(tmp_path)
    out = write_sweep(tmp_path / "OUT")
    storage = open_storage(out)
    Segments(storage, "rows").fold(1)
    later = {"key": "x", "kind": "learned", "cell": "new", "status": "ok"}
    write_table(storage, "rows", "later", [later])
    Segments(storage, "rows").fold(1)
    found = eval(line_of(short), {short: module})
    rows = dict(found.fetchall() if package == "duckdb" else found.rows())
    frame = ld3.load_results(out)
    ok = frame[frame["status"] == "ok"]
    assert rows == ok.groupby("cell").size().to_dict()
