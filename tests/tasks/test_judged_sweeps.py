"""A sweep of a model with prompts whose samples are scored by judges, prompt by prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from plain_sweep import sweep
from published_judges import save_clip, save_hps

from ld3_dist import InputError, load_results
from ld3_dist.experiment.reading import parse_experiment
from ld3_dist.report import read_sweep_tables, summary_table
from ld3_dist.report.columns import shown
from ld3_dist.store.opening import open_storage
from ld3_dist.tasks.kept_samples import read_kept
from ld3_dist.tasks.planning import make_plan

pytest.importorskip("diffusers")
NAMES = ("clip_score", "hpsv2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("judged")
    for name in NAMES:
        (found / name).mkdir()
    save_clip(found / "clip_score")
    save_hps(found / "hpsv2")
    (found / "prompts.txt").write_text("a cat\ntwo dogs\nred\n")
    return found


def experiment(model: Path, place: Path, **evaluate: Any) -> dict[str, Any]:
    """One cell of three evaluations, one trial and two hand-made grids."""
    return {
        "name": "judged",
        "models": [{"model": f"diffusers:{model}", "prompts": str(place / "prompts.txt")}],
        "solvers": ["ddim"],
        "nfe": [3],
        "teacher": {"solver": "ddim", "nfe": 6, "start": "karras"},
        "pairs": {"train": 4, "valid": 4},
        "distance": "l2",
        "learn": {"epochs": 1, "batch": 4},
        "search": {"rounds": 1, "members": {"starts": ["karras"]}},
        "baselines": ["karras", "uniform"],
        "evaluate": {
            "samples": 10,
            "extractor": "none",
            "metrics": [f"{name}:{place / name}" for name in NAMES],
        }
        | evaluate,
    }


@pytest.fixture(scope="module")
def out(place: Path, pipelines: dict[str, Path]) -> Path:
    sweep(open_storage(place / "out"), experiment(pipelines["sd"], place))
    return place / "out"


def test_every_row_has_the_mean_of_its_samples(out: Path) -> None:
    storage, frame = open_storage(out), load_results(out)
    for row in frame.to_dict("records"):
        kept = read_kept(storage, row["key"], row["evaluation"])
        assert kept is not None
        assert kept.prompts is not None
        assert set(kept.prompts) <= {"a cat", "two dogs", "red"}
        for name in NAMES:
            scores = kept.scores[name]
            assert len(scores) == len(kept.prompts) == 10
            assert row[f"metric.{name}"] == pytest.approx(scores.mean().item(), rel=1e-5)
    assert frame["metric.hpsv2"].nunique() == len(frame)
    assert frame["not_measured"].isna().all()


def test_a_learned_row_is_compared_prompt_by_prompt(out: Path) -> None:
    storage, frame = open_storage(out), load_results(out)
    grid = frame[frame["kind"] == "baseline"].sort_values("eval_loss").iloc[0]
    learned = frame[frame["kind"] == "learned"].iloc[0]
    mine, theirs = (read_kept(storage, r["key"], r["evaluation"]) for r in (learned, grid))
    assert mine is not None
    assert theirs is not None
    assert mine.prompts == theirs.prompts
    assert mine.prompts is not None
    differences = pd.Series((mine.scores["hpsv2"] - theirs.scores["hpsv2"]).numpy())
    mean = differences.mean()
    assert learned["over_grid.hpsv2"] == pytest.approx(mean, rel=1e-4)
    totals = (differences - mean).groupby(list(mine.prompts)).sum()
    count = len(totals)
    error = np.sqrt(count / (count - 1) * (totals**2).sum()) / len(differences)
    width = {2: 12.7062, 3: 4.302653}[count] * error
    half = (learned["over_grid.hpsv2_high"] - learned["over_grid.hpsv2_low"]) / 2
    assert half == pytest.approx(width, rel=1e-4)
    assert frame[frame["kind"] == "baseline"]["over_grid.hpsv2"].isna().all()


def test_the_summary_shows_the_difference(out: Path) -> None:
    tables = read_sweep_tables(out)
    table = summary_table(tables.results, tables.evaluations)
    (row,) = table.to_dict("records")
    known = {column.name: column for column in shown(table, "page")}
    text = known["over_grid.clip_score"].text(row)
    assert text.startswith("+" if row["over_grid.clip_score"] > 0 else "-")
    assert " to " in text
    assert row["metric.clip_score"] == pytest.approx(
        row["baseline_metric.clip_score"] + row["over_grid.clip_score"], rel=1e-4
    )
    assert "teacher_metric.hpsv2" in known


def test_weights_count_by_their_content(out: Path, place: Path, pipelines: dict[str, Path]) -> None:
    before = {f: f.stat().st_mtime_ns for f in out.glob("parts/**/*.safetensors")}
    assert before
    (place / "elsewhere").mkdir()
    for name in NAMES:
        (place / name).rename(place / "elsewhere" / name)
    data = experiment(pipelines["sd"], place)
    data["evaluate"]["metrics"] = [f"{name}:{place / 'elsewhere' / name}" for name in NAMES]
    try:
        sweep(open_storage(out), data)
        frame = load_results(out)
    finally:
        for name in NAMES:
            (place / "elsewhere" / name).rename(place / name)
    assert {f: f.stat().st_mtime_ns for f in out.glob("parts/**/*.safetensors")} == before
    assert frame["evaluation"].nunique() == 1


def test_missing_weights_are_refused_before_any_work(
    place: Path, pipelines: dict[str, Path]
) -> None:
    data = experiment(pipelines["sd"], place, metrics=[f"hpsv2:{place / 'nowhere'}"])
    with pytest.raises(InputError, match=r"hpsv2:.*nowhere is no folder; download"):
        make_plan(parse_experiment(data))
    data = experiment(pipelines["sd"], place, metrics=["hps:x"])
    with pytest.raises(InputError, match="unknown metric 'hps:x'"):
        parse_experiment(data)
    both = [f"hpsv2:{place}", f"hpsv2:{place / 'hpsv2'}"]
    with pytest.raises(InputError, match=r"metric\.hpsv2"):
        parse_experiment(experiment(pipelines["sd"], place, metrics=both))
