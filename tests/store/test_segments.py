"""Segments: every row is seen exactly once, whatever is killed between any two writes."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from mortal_storage import Died, Life, Watched, mortal
from object_store import endpoint  # noqa: F401
from slowly import few

from ld3_dist.core.errors import InputError
from ld3_dist.store import folding
from ld3_dist.store.folding import Segments
from ld3_dist.store.opening import open_storage
from ld3_dist.store.segments import MANIFEST, is_segment, problems, read_manifest
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_records, read_table, row_index, write_table

Seen = dict[str, tuple[str, float]]
"""Key of a row -> its status and its held-out loss."""


def row(key: str, loss: float = 1.0, status: str = "ok") -> dict[str, object]:
    values = {"kind": "learned", "cell": "c", "status": status, "valid_loss": loss}
    return {"key": key, "trial": None, "seed": 1, "knots": [2.0, loss], **values}


def seen(storage: Storage) -> Seen:
    frame = read_table(storage, "rows")
    assert not frame.attrs["unreadable"]
    assert frame["key"].is_unique
    assert [list(knots) for knots in frame["knots"]] == [[2.0, v] for v in frame["valid_loss"]]
    return dict(
        zip(frame["key"], zip(frame["status"], frame["valid_loss"], strict=True), strict=True)
    )


def plainly_seen(folder: Path) -> Seen:
    frame = pd.read_parquet(folder / "rows")
    assert frame["key"].is_unique
    return dict(
        zip(frame["key"], zip(frame["status"], frame["valid_loss"], strict=True), strict=True)
    )


class Story:
    """What happens to a folder; `told` is what a reader must see after each finished write."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.told: Seen = {}
        self.next: Seen = {}

    def write(self, name: str, *rows: dict[str, object]) -> None:
        self.next = self.told | {str(r["key"]): (str(r["status"]), r["valid_loss"]) for r in rows}  # type: ignore[misc]
        write_table(self.storage, "rows", name, rows)
        self.told = self.next

    def tell(self) -> None:
        """Merges of small files, of segments, of rows made anew, and what else a sweep does."""
        segments = Segments(self.storage, "rows")
        self.write("a", row("a-0"), row("a-1"))
        self.write("b", row("b-0", status="failed"), row("b-1", status="failed"))
        self.write("c", row("c-0", 3.0))
        assert segments.fold(4) == 0
        assert segments.fold(3) == 3
        self.write("b", row("b-0", 0.5), row("b-1", 0.25))  # tried again
        self.write("d", row("d-0"), row("c-1"))
        segments.fold(2)
        self.write("e", row("e-0", 7.0))
        segments.fold(1)
        self.write("f", row("f-0"), row("a-0", 1.0))  # made twice, packed with another
        Segments(self.storage, "rows").fold(1)
        self.write("f", row("f-1", status="failed"))
        self.write("g", row("f-1", 0.5))  # tried again, packed with another
        segments.fold(2)
        self.write("h", row("g-0"))


def steps_of(tmp_path: Path) -> int:
    storage = mortal(open_storage(tmp_path / "whole"), 10_000)
    Story(storage).tell()
    return int(10_000 - storage.life.left)  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", few(range(3), [0]))
def test_every_row_is_seen_once_whatever_is_killed(first: int, tmp_path: Path) -> None:
    steps = steps_of(tmp_path)
    assert steps > 25
    for at in range(first, steps, 3):
        place = open_storage(tmp_path / str(at))
        story = Story(mortal(place, at))
        with pytest.raises(Died):
            story.tell()
        assert seen(place) == story.told, at
        index = {key: (one.status, one.valid_loss) for key, one in row_index(place).items()}
        assert index == story.told, at
        for again in range(2):  # killed again while it clears up
            with contextlib.suppress(Died):
                Segments(mortal(place, again), "rows").fold(1)
            assert seen(place) == story.told, (at, again)
        Segments(place, "rows").fold(1)
        assert seen(place) == story.told, at
        if story.told:
            assert plainly_seen(tmp_path / str(at)) == story.told, at
            assert [*problems(place, "rows")] == []
            assert all(is_segment(name) for name in place.list("rows"))


def test_a_reader_loses_nothing_while_rows_are_merged(tmp_path: Path) -> None:
    """A whole merge happens before the reader's n-th look at the folder, for every n."""
    for at in range(12):
        place = open_storage(tmp_path / str(at))
        story = Story(place)
        story.write("a", row("a-0"), row("a-1"))
        story.write("b", row("b-0"))
        Segments(place, "rows").fold(1)
        story.write("c", row("c-0"), row("c-1"), row("c-2"))
        acts = iter([lambda place=place: Segments(place, "rows").fold(1)])
        reader = Watched(str(tmp_path / str(at)), lambda acts=acts: next(acts)(), Life(at))
        assert seen(reader) == story.told, at
        assert seen(place) == story.told, at


def test_segments_grow_and_stay_few(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    segments = Segments(storage, "rows")
    for i in range(64):
        write_table(storage, "rows", f"t{i:03d}", [row(f"{i:03d}-{m}", i) for m in range(3)])
        assert segments.fold(1) == 1
    manifest = read_manifest(storage, "rows")
    assert len(manifest.segments) <= 8
    assert sum(segment.rows for segment in manifest.segments) == 192
    assert len({segment.number for segment in manifest.segments}) == len(manifest.segments)
    assert len(seen(storage)) == 192
    assert [record["key"] for record in read_records(storage, "rows", "t007") or ()] == [
        "007-0",
        "007-1",
        "007-2",
    ]
    assert read_records(storage, "rows", "t064") is None


def test_no_segment_grows_past_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "LARGEST_ROWS", 10)
    monkeypatch.setattr(folding, "MOST", 4)
    storage = open_storage(tmp_path)
    for i in range(30):
        write_table(storage, "rows", f"t{i:03d}", [row(f"{i:03d}")])
    assert Segments(storage, "rows").fold(1) == 30
    rows = [segment.rows for segment in read_manifest(storage, "rows").segments]
    assert max(rows) <= 10
    assert sum(rows) == 30


def test_evaluations_and_losses_are_told_apart_by_more_than_their_key(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for name in ("1", "2", "1"):
        scores = {"key": "k", "evaluation": name, "kind": "learned", "eval_loss": float(name)}
        write_table(storage, "evaluations", f"k-{name}", [scores])
        parts = [
            {"key": "k", "evaluation": name, "repeat": r, "start": s, "losses": [0.5, 0.25]}
            for r in (0, 1)
            for s in (0, 2)
        ]
        write_table(storage, "losses", f"k-{name}", parts)
        for folder in ("evaluations", "losses"):
            Segments(storage, folder).fold(1)
    assert read_table(storage, "evaluations")["eval_loss"].tolist() == [1.0, 2.0]
    assert len(read_table(storage, "losses")) == 8
    assert read_table(storage, "losses", ["start"])["start"].tolist() == [0, 2] * 4


@pytest.fixture
def merged(tmp_path: Path) -> Storage:
    storage = open_storage(tmp_path)
    for i in range(6):
        write_table(
            storage, "rows", f"t{i}", [row(f"{i}-{m}", i) for m in range(8 if i < 3 else 1)]
        )
        if i in (2, 5):
            Segments(storage, "rows").fold(1)
    assert len(read_manifest(storage, "rows").segments) == 2
    write_table(storage, "rows", "small", [row("small-0")])
    return storage


@pytest.mark.parametrize("damage", ["cut", "missing", "changed"])
def test_a_lost_segment_is_named_and_the_rest_is_read(
    merged: Storage, damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = read_manifest(merged, "rows").segments[0].name
    path = tmp_path / "rows" / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-30] if damage == "cut" else bytes([*data[:40], 255, *data[41:]]))
    frame = read_table(merged, "rows")
    assert sorted(frame["key"]) == ["3-0", "4-0", "5-0", "small-0"]
    assert frame.attrs["unreadable"] == [f"rows/{name}"]
    assert any(str(path) in record.getMessage() for record in caplog.records)
    assert [file for file, _ in problems(merged, "rows")] == [f"rows/{name}"]
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        Segments(merged, "rows").fold(1)  # the next sweep
    assert "24 rows are lost" in caplog.text
    assert name in caplog.text
    assert sorted(plainly_seen(tmp_path)) == ["3-0", "4-0", "5-0", "small-0"]
    assert [*problems(merged, "rows")] == []
    if damage != "missing":
        assert (tmp_path / "rows" / f"_damaged-{name}").exists()


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", '{"format": 1}', '{"format": 1, "segments": [{"name": "x"}]}', None],
)
def test_a_damaged_manifest_loses_nothing(
    merged: Storage, text: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_table(merged, "rows")["key"].tolist()
    path = tmp_path / "rows" / MANIFEST
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    frame = read_table(merged, "rows")
    assert frame["key"].tolist() == before
    assert frame.attrs["unreadable"] == ([] if text is None else [f"rows/{MANIFEST}"])
    if text is not None:
        assert "is damaged" in caplog.text
        assert str(path) in caplog.text
    Segments(merged, "rows").fold(1)
    assert sorted(plainly_seen(tmp_path)) == sorted(before)
    assert not read_table(merged, "rows").attrs["unreadable"]


def test_a_newer_manifest_is_refused(merged: Storage, tmp_path: Path) -> None:
    path = tmp_path / "rows" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(InputError, match=r"_manifest\.json: written by a newer version"):
        read_table(merged, "rows")


def test_a_file_that_cannot_be_read_is_left_to_the_sweep(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    write_table(storage, "rows", "a", [row("a")])
    write_table(storage, "rows", "b", [row("b")])
    path = tmp_path / "rows" / "b.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    assert Segments(storage, "rows").fold(1) == 1
    assert [name for name in storage.list("rows") if not is_segment(name)] == ["rows/b.parquet"]
    assert read_table(storage, "rows").attrs["unreadable"] == ["rows/b.parquet"]


def test_merging_goes_on_in_the_background(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    for i in range(4):
        write_table(storage, "rows", f"t{i}", [row(f"{i}")])
    with folding.folding(storage, every=0.01, least=3):
        for _ in range(3000):
            if read_manifest(storage, "rows").segments:
                break
            time.sleep(0.01)
        write_table(storage, "rows", "last", [row("last")])
    assert all(is_segment(name) for name in storage.list("rows"))
    assert len(pq.read_table(tmp_path / "rows")) == 5
    interrupted = _interrupted(storage)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "rows/more.parquet" in storage.list("rows")
    assert len(seen(storage)) == 6


def _interrupted(storage: Storage) -> Callable[[], None]:
    def sweep() -> None:
        with folding.folding(storage, every=100):
            write_table(storage, "rows", "more", [row("more")])
            raise KeyboardInterrupt

    return sweep


@pytest.mark.siblings(1)
def test_segments_on_an_object_store(endpoint: str) -> None:  # noqa: F811
    url = f"s3://bucket/segments-%s?endpoint_override={endpoint}"
    for at in range(0, 24, 4):
        place = open_storage(url % at)
        story = Story(mortal(place, at))
        with pytest.raises(Died):
            story.tell()
        assert seen(place) == story.told, at
        Segments(place, "rows").fold(1)
        assert seen(place) == story.told, at
        assert all(is_segment(name) for name in place.list("rows"))
        assert [*problems(place, "rows")] == []
