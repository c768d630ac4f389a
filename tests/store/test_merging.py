"""Several output folders merged into one: nothing lost, nothing twice, killed anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lineage_folders import SETTINGS, baseline, learned, tailed, write_folder
from mortal_storage import Died, mortal
from slowly import few

import ld3_dist as ld3
from ld3_dist import InputError
from ld3_dist.store import lock as locks
from ld3_dist.store.folding import Segments
from ld3_dist.store.merging import merge
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import Manifest, load_pairs, write_shard
from ld3_dist.store.results import losses_in
from ld3_dist.store.segments import problems
from ld3_dist.store.storage import Storage
from ld3_dist.store.tables import read_records

META = {"teacher": "t"}


def pairs(folder: Path, *ranges: tuple[int, int]) -> None:
    storage = open_storage(folder / "pairs" / "t")
    made = []
    for start, stop in ranges:
        noise = torch.arange(start, stop, dtype=torch.float32).reshape(-1, 1)
        made.append(write_shard(storage, start, stop, {"noise": noise, "target": -noise}, META))
    Manifest(META, tuple(made)).save(storage)


@pytest.fixture
def sources(tmp_path: Path) -> list[Storage]:
    shared = [baseline("b1", 2.0), learned("a", "1", 0, 1.0)]
    one = write_folder(tmp_path / "one", [*shared, learned("c", "2", 0, 0.5)], {"c": tailed(1)})
    other = SETTINGS | {"name": "second"}
    rows = [*shared, learned("d", "3", 1, 0.25, nfe=6), baseline("b2", 1.0, 6)]
    two = write_folder(tmp_path / "two", rows, {"a": tailed(0)}, other, fingerprint="e2")
    for folder in ("rows", "evaluations", "losses"):
        Segments(open_storage(two), folder).fold(1)
    (one / "schedules").mkdir()
    (one / "schedules" / "c.json").write_text("{}")
    (two / "schedules").mkdir()
    (two / "schedules" / "d.json").write_text("{}")
    pairs(one, (0, 4), (4, 6))
    pairs(two, (0, 4), (4, 8))
    return [open_storage(one), open_storage(two)]


def results(*places: object) -> pd.DataFrame:
    return ld3.load_results(*places).drop(columns="source").set_index("key")  # type: ignore[arg-type]


def whole(target: Storage, sources: list[Storage]) -> None:
    pd.testing.assert_frame_equal(
        results(target).sort_index(axis=1), results(*sources).sort_index(axis=1), check_dtype=False
    )
    plain = pd.read_parquet(Path(str(target.local_path), "rows"))
    assert sorted(plain["key"]) == ["a", "b1", "b2", "c", "d"]
    mine, theirs = ld3.load_samples(target), ld3.load_samples(*sources)
    order = ["key", "index"]
    np.testing.assert_array_equal(
        mine.sort_values(order)["loss"], theirs.sort_values(order)["loss"]
    )
    assert target.list("schedules") == ["schedules/c.json", "schedules/d.json"]
    assert load_pairs(target.child("pairs/t"), 0, 8)["noise"].flatten().tolist() == [*range(8)]
    assert not [*problems(target, "rows")]
    assert read_records(target, "rows", "c")[0]["valid_loss"] == 0.5  # type: ignore[index]


def test_nothing_is_lost_and_nothing_twice(sources: list[Storage], tmp_path: Path) -> None:
    target = open_storage(tmp_path / "all")
    lines = list(merge(sources, target))
    whole(target, sources)
    assert any(line.startswith("rows: 3 from") for line in lines)
    current = json.loads(target.read_bytes("experiment.json"))["current"]
    body = json.loads(target.read_bytes(f"experiments/{current}.json"))
    assert body["merged"] == ["e1", "e2"]
    assert body["name"] == "first + second"
    assert body["asked"]["trials"] == ["1", "2", "3"]
    assert set(target.list("experiments")) >= {
        "experiments/e1.json",
        "experiments/e2.json",
    }
    assert not target.exists("_merge.json")


@pytest.mark.parametrize("first", few(range(6), [2, 3]))
def test_a_merge_killed_anywhere_goes_on(
    first: int, sources: list[Storage], tmp_path: Path
) -> None:
    for at in range(first, steps_of(sources, tmp_path), 6):
        killed_and_merged_again(at, sources, tmp_path)


def test_a_merge_killed_by_its_lock_or_its_mark_goes_on(
    sources: list[Storage], tmp_path: Path
) -> None:
    last = steps_of(sources, tmp_path)
    for at in (0, 1, 2, 3, last - 2, last - 1):
        killed_and_merged_again(at, sources, tmp_path)


def steps_of(sources: list[Storage], tmp_path: Path) -> int:
    """The writes and removals of a merge."""
    counted = mortal(open_storage(tmp_path / "counted"), 10_000)
    list(merge(sources, counted))
    steps = int(10_000 - counted.life.left)  # type: ignore[attr-defined]
    assert steps > 25
    return steps


def killed_and_merged_again(at: int, sources: list[Storage], tmp_path: Path) -> None:
    target = open_storage(tmp_path / f"all{at}")
    with pytest.raises(Died):
        list(merge(sources, mortal(target, at)))
    if target.exists(locks.LOCK):  # ours; no process has a number as large as this one
        lock = json.loads(target.read_bytes(locks.LOCK)) | {"pid": 2**22 + 1}
        target.write_bytes(locks.LOCK, json.dumps(lock).encode())
    list(merge(sources, target))
    whole(target, sources)
    assert not target.exists("_merge.json")
    assert not target.exists(locks.LOCK)


FAILED = {"status": "failed", "valid_loss": None, "knots": None, "evals": None, "valid_curve": None}
OTHER = {"knots": [2.5, 1.0], "evals": [2.5], "valid_loss": 0.75}


@pytest.mark.parametrize(
    ("first", "scored", "second", "counts"),
    [
        (FAILED, False, {}, "two"),  # learned where the first failed
        ({}, True, FAILED, "one"),
        (OTHER, False, {}, "two"),  # evaluated, the first was not
        (OTHER, True, {}, "one"),  # both evaluated: the first
    ],
)
def test_of_one_row_that_differs_one_counts_with_all_that_is_its_own(
    first: dict, scored: bool, second: dict, counts: str, tmp_path: Path
) -> None:
    kept = {"one": {"a": tailed(1)} if scored else {}, "two": {} if second else {"a": tailed(2)}}
    changes = {"one": first, "two": second}
    places = {}
    for name in ("one", "two"):
        row = learned("a", "1", 0, 1.0) | changes[name]
        places[name] = write_folder(tmp_path / name, [row, baseline("b", 2.0)], kept[name])
        if changes[name] is not FAILED:
            (places[name] / "schedules").mkdir()
            (places[name] / "schedules" / "a.json").write_text(name)
    target = open_storage(tmp_path / "all")
    lines = list(merge([*map(open_storage, places.values())], target))
    assert len([line for line in lines if line.startswith("left out: 1 rows of")]) == 1
    assert target.read_bytes("schedules/a.json").decode() == counts
    for found in (results(target), results(*places.values())):
        row = found.loc["a"]
        wanted = learned("a", "1", 0, 1.0) | changes[counts]
        assert (row["status"], row["valid_loss"]) == ("ok", wanted["valid_loss"])
        assert list(row["knots"]) == wanted["knots"]
        assert row["eval_loss"] == pytest.approx(kept[counts]["a"].mean())
    for curves in (ld3.load_curves(target), ld3.load_curves(*places.values())):
        assert len(curves) == 3  # a row that failed has no curve
    samples = ld3.load_samples(target)
    np.testing.assert_allclose(samples["loss"], kept[counts]["a"])


def test_the_same_row_keeps_the_evaluations_of_both_folders(tmp_path: Path) -> None:
    row = learned("a", "1", 0, 1.0)
    one = write_folder(tmp_path / "one", [row], {"a": tailed(1)})
    two = write_folder(tmp_path / "two", [row], {"a": tailed(2)}, evaluation="v2")
    target = open_storage(tmp_path / "all")
    list(merge([open_storage(one), open_storage(two)], target))
    samples = ld3.load_samples(target, all=True)
    for name, seed in (("v1", 1), ("v2", 2)):
        one_of = samples[samples["evaluation"] == name]
        np.testing.assert_allclose(one_of["loss"], tailed(seed))


def test_folders_are_given_one_by_one_or_in_a_list(sources: list[Storage]) -> None:
    for load in (ld3.load_results, ld3.load_curves, ld3.load_samples):
        pd.testing.assert_frame_equal(load(sources), load(*sources))
        with pytest.raises(InputError, match="no folder was given"):
            load([])


def test_losses_are_those_of_the_row_that_counts(tmp_path: Path) -> None:
    """Both folders evaluated the same row; the losses of the second are ten times as large."""
    places = [
        write_folder(
            tmp_path / name,
            [learned("a", "1", 0, 1.0), baseline("b", 2.0)],
            {"a": tailed(1) * by, "b": tailed(2)},
        )
        for name, by in (("one", 1.0), ("two", 10.0))
    ]
    frame = ld3.load_results(*places)
    found = losses_in([*map(open_storage, places)], frame)(["a"])["a"]
    np.testing.assert_allclose(found, tailed(1), rtol=1e-6)
    assert found.mean() == pytest.approx(frame.set_index("key").loc["a", "eval_loss"])


def test_shards_of_one_experiment_stay_that_experiment(tmp_path: Path) -> None:
    parts = []
    for i in range(3):
        parts.append(
            open_storage(write_folder(tmp_path / str(i), [learned(f"{i}", f"t{i}", i, 1)]))
        )
    target = open_storage(tmp_path / "all")
    list(merge(parts, target))
    assert json.loads(target.read_bytes("experiment.json")) == {"format": 3, "current": "e1"}
    assert len(ld3.load_results(target)) == 3


def test_what_cannot_be_merged_is_refused(sources: list[Storage], tmp_path: Path) -> None:
    def refused(message: str, folders: list[Storage], target: Path) -> None:
        before = sorted(str(p) for p in tmp_path.rglob("*"))
        with pytest.raises(InputError, match=message):
            list(merge(folders, open_storage(target)))
        assert sorted(str(p) for p in tmp_path.rglob("*")) == before

    new = tmp_path / "new"
    older = tmp_path / "older"
    older.mkdir()
    (older / "experiment.json").write_text(json.dumps({"format": 2, "fingerprint": "x"}))
    refused("different formats.*has 3.*has 2", [sources[0], open_storage(older)], new)
    refused("folders of format 2 cannot be merged", [open_storage(older)], new)
    refused("is one of the folders to merge", sources, tmp_path / "one")
    refused("exists already and holds files", sources[:1], tmp_path / "two")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "_merge.json").write_text(json.dumps({"sources": ["elsewhere"]}))
    refused("a merge of other folders was begun there", sources, tmp_path / "begun")
    (older / "experiment.json").unlink()
    refused("is missing or damaged", [open_storage(older)], new)
    name = sources[1].list("rows")[0]
    Path(str(sources[1].local_path), name).write_bytes(b"cut")
    with pytest.raises(InputError, match=f"{name}: has 3 bytes"):
        list(merge(sources, open_storage(new)))
