"""Two sweeps compared: paired where the samples are the same, and said so where not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lineage_folders import EVAL_START, SETTINGS, baseline, learned, tailed, write_folder
from typer.testing import CliRunner

from ld3_dist import InputError, load_results
from ld3_dist.cli.app import app
from ld3_dist.metrics.paired import compare as compare_losses
from ld3_dist.report.compare import Row, compare_sweeps, differing, together
from ld3_dist.tasks.status import _gains


def folder(place: Path, factor: float, nfes: tuple[int, ...] = (4,), **kinds: object) -> Path:
    """Two seeds per cell, whose losses are those of the same samples times a factor."""
    rows, losses = [], {}
    for nfe in nfes:
        for seed in (0, 1):
            key = f"{place.name}-{nfe}-{seed}"
            rows.append(learned(key, f"t{nfe}", seed, factor, nfe))
            noise = np.random.default_rng(100 + seed).uniform(0.9, 1.1, 200)
            losses[key] = (tailed(nfe) * factor * noise).astype(np.float32)
        rows.append(baseline(f"b{nfe}", 9.0, nfe))
    return write_folder(place, rows, losses, **kinds)  # type: ignore[arg-type]


def test_the_same_samples_are_compared_in_pairs(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1.0), folder(tmp_path / "b", 0.8)
    (row,) = compare_sweeps(a, b).rows
    assert (row.how, row.samples, row.cells) == ("paired", 200, 1)
    noise = [np.random.default_rng(100 + s).uniform(0.9, 1.1, 200) for s in (0, 1)]
    x = [(tailed(4) * n).astype(np.float32) for n in noise]
    y = [(tailed(4) * 0.8 * n).astype(np.float32) for n in noise]
    expected = compare_losses(y, x)
    assert row.ratio == pytest.approx(expected.ratio.value)
    assert (row.low, row.high) == pytest.approx(expected.ratio[1:])
    assert row.ratio == pytest.approx(0.8, rel=1e-5)
    assert row.p_improvement == 1.0


def test_only_shared_samples_count_in_pairs(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 1.0)
    b = folder(tmp_path / "b", 1.0, start=EVAL_START + 150)
    (row,) = compare_sweeps(a, b).rows
    assert (row.how, row.samples) == ("paired", 50)


@pytest.mark.parametrize(
    ("change", "why"),
    [({"seed": 1}, "seed differs"), ({"teacher": {"nfe": 50}}, "teacher differs")],
)
def test_other_samples_are_not_paired_and_that_is_said(
    tmp_path: Path, change: dict, why: str
) -> None:
    a = folder(tmp_path / "a", 1.0)
    b = folder(tmp_path / "b", 0.5, settings=SETTINGS | change)
    found = compare_sweeps(a, b)
    (row,) = found.rows
    assert (row.how, row.why) == ("unpaired", why)
    paired = compare_sweeps(a, folder(tmp_path / "c", 0.5)).rows[0]
    assert row.high / row.low > 1.2 * paired.high / paired.low
    assert [name.partition(".")[0] for name, _, _ in found.settings] == [next(iter(change))] * len(
        found.settings
    )


@pytest.mark.parametrize(
    ("change", "why"), [({"distance": "l1"}, "distance"), ({"loss_space": "latent"}, "loss_space")]
)
def test_losses_of_other_distances_have_no_ratio(tmp_path: Path, change: dict, why: str) -> None:
    a = folder(tmp_path / "a", 1.0)
    b = folder(tmp_path / "b", 0.5, settings=SETTINGS | change)
    (row,) = compare_sweeps(a, b).rows
    assert (row.how, row.why) == ("none", f"{why} differs, so that losses do not compare; means of "
                                          "fresh samples")  # fmt: skip
    assert np.isnan(row.ratio)
    shown = CliRunner().invoke(app, ["compare", str(a), str(b)])
    assert "losses do not compare" in shown.output
    assert "nan" not in shown.output


@pytest.mark.parametrize(
    "other",
    [
        {"distance": "l1"},
        {"teacher": "u", "teacher_solver": "unipc-3", "teacher_nfe": 8},
        {"teacher": "u", "teacher_solver": "ddim", "teacher_nfe": 20},
        {"teacher": "u", "teacher_nfe": None},
    ],
)
def test_the_best_is_in_the_experiments_own_terms(tmp_path: Path, other: dict) -> None:
    """A loss in another distance, or from another teacher, may be as small as it likes."""
    own = {"teacher_solver": "unipc-3", "teacher_nfe": 20}
    rows = [learned("x", "t1", 0, 1e-9, **(own | other)), learned("a", "t", 0, 2.0, **own)]
    a = write_folder(tmp_path / "a", rows)
    b = write_folder(tmp_path / "b", [learned("b", "t", 0, 1.0, **own)])
    assert [(row.loss_a, row.ratio) for row in compare_sweeps(a, b).rows] == [(2.0, 0.5)]
    frame = load_results(a).assign(gain=3.0).sort_values("key", ascending=False)
    assert [gain.key for gain in _gains(frame, {"settings": SETTINGS})] == ["a"]
    assert [gain.key for gain in _gains(frame.drop(index=frame.index[1]), {})] == ["x"]


def test_without_losses_the_means_are_compared(tmp_path: Path) -> None:
    a = write_folder(tmp_path / "a", [learned("a", "1", 0, 2.0)])
    b = write_folder(tmp_path / "b", [learned("b", "1", 0, 1.0)])
    (row,) = compare_sweeps(a, b).rows
    assert (row.how, row.ratio) == ("values", 0.5)
    assert "held-out pairs" in row.why
    assert np.isnan(row.low)


def test_cells_are_grouped_by_columns(tmp_path: Path) -> None:
    a = folder(tmp_path / "a", 1.0, (4, 6, 8))
    b = folder(tmp_path / "b", 0.5, (4, 6, 10))
    found = compare_sweeps(a, b, ["solver", "nfe"])
    assert [dict(row.group) for row in found.rows] == [
        {"solver": "ddim", "nfe": 4},
        {"solver": "ddim", "nfe": 6},
    ]
    (row,) = compare_sweeps(a, b, ["solver"]).rows
    assert row.cells == 2
    assert row.ratio == pytest.approx(0.5, rel=1e-5)
    assert (found.only_a, found.only_b) == (["m/c/ddim/8"], ["m/c/ddim/10"])


def test_several_cells_are_their_geometric_mean() -> None:
    rows = [
        Row({}, 1, 1.0, ratio, ratio, ratio / width, ratio * width, 0.5, 10, "paired")
        for ratio, width in ((0.5, 1.2), (0.25, 1.3))
    ]
    row = together(rows)
    half = np.sqrt(np.log(1.2) ** 2 + np.log(1.3) ** 2) / 2
    assert row.ratio == pytest.approx(np.sqrt(0.5 * 0.25))
    assert row.high / row.ratio == pytest.approx(np.exp(half))
    assert row.ratio / row.low == pytest.approx(np.exp(half))


def test_settings_that_differ_are_named_in_full() -> None:
    a = {"learn": {"lr": 1, "epochs": 5}, "models": [{"model": "x"}], "nfe": [4]}
    b = {"learn": {"lr": 2, "epochs": 5}, "models": [{"model": "y"}], "nfe": [4, 6]}
    assert list(differing(a, b)) == [
        ("learn.lr", 1, 2),
        ("models.0.model", "x", "y"),
        ("nfe", [4], [4, 6]),
    ]


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1.0), folder(tmp_path / "b", 1.0, (6,))
    with pytest.raises(InputError, match=r"no cell with learned schedules in common: m/c/ddim/4"):
        compare_sweeps(a, b)
    with pytest.raises(InputError, match="the same folder was given twice"):
        compare_sweeps(a, a)
    with pytest.raises(InputError, match="unknown column in --by: 'slover': did you mean 'solver'"):
        compare_sweeps(a, folder(tmp_path / "c", 1.0), ["slover"])


def test_the_command(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "a", 1.0, (4, 6)), folder(tmp_path / "b", 0.5, (4,))
    shown = CliRunner().invoke(app, ["compare", str(a), str(b)], env={"COLUMNS": "160"})
    assert shown.exit_code == 0
    for text in ("no setting differs", "paired", "0.5", "Only in A: m/c/ddim/6"):
        assert text in shown.output
    found = CliRunner().invoke(app, ["compare", str(a), str(b), "--by", "nfe", "--json"])
    body = json.loads(found.output)
    assert body["rows"][0]["group"] == {"nfe": 4}
    assert body["rows"][0]["how"] == "paired"
