"""Writing a report of a synthetic sweep and parsing its page, for the tests of the report."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

from synthetic_sweep import records, write_sweep

from ld3_dist.report import write_report
from ld3_dist.store.opening import open_storage
from ld3_dist.store.tables import write_table


class Tags(HTMLParser):
    """Tags that were opened and what they point to; fails on a tag closed out of order."""

    VOID = frozenset({"meta", "link", "br", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(
    folder: Path, change: Callable[[list[dict], list[dict]], None] | None = None, **kinds
) -> str:
    """The page of a synthetic sweep whose records were changed first."""
    write_sweep(folder, **kinds)
    if change:
        rows, evaluations = records(**kinds)
        change(rows, evaluations)
        write_table(open_storage(folder), "rows", "all", rows)
        write_table(open_storage(folder), "evaluations", "all", evaluations)
    paths = write_report(folder)
    assert paths.warnings == ()  # every figure was drawn
    text = Path(paths.html).read_text()
    Tags(text)
    return text
