"""Fresh samples that are measured by further distances than the experiment's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plain_sweep import sweep

import ld3_dist as ld3
from ld3_dist import InputError, load_results
from ld3_dist.core.grid import Grid, discretize
from ld3_dist.core.sample import draw_noise, sample
from ld3_dist.core.solver import make_solver
from ld3_dist.experiment import Plan
from ld3_dist.experiment.reading import parse_experiment
from ld3_dist.metrics.paired import over_seeds
from ld3_dist.report import read_sweep_tables, summary_table
from ld3_dist.report.ablation import ablation_table
from ld3_dist.report.columns import shown
from ld3_dist.report.write import write_report
from ld3_dist.schedule.ranges import eval_range
from ld3_dist.store.opening import open_storage
from ld3_dist.tasks.kept_samples import read_kept
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.scored import evaluation_of

METRICS = ["fid", "distance:l1", "distance:l2+3*l1"]


def experiment(**evaluate: Any) -> dict[str, Any]:
    """Two levels of the distance that is learned, on a mixture in the plane."""
    return {
        "name": "further",
        "models": ["analytic:mixture-2d"],
        "solvers": ["ddim"],
        "nfe": [3],
        "teacher": {"solver": "ddim", "nfe": 6, "start": "karras"},
        "pairs": {"train": 6, "valid": 6},
        "learn": {"epochs": 2, "batch": 6},
        "search": {"members": {"seeds": 2, "starts": ["karras"]}},
        "ablate": {"base": {"distance": "l2"}, "vary": {"distance": ["l1"]}},
        "baselines": ["karras", "uniform"],
        "evaluate": {"rows": "all", "samples": 40, "metrics": METRICS} | evaluate,
    }


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("further") / "out"
    sweep(open_storage(folder), experiment())
    return folder


def test_they_are_means_over_the_same_samples() -> None:
    """Against the definition: |a - b| of samples that are made by the core alone."""
    model = ld3.load_model("analytic:mixture-2d")
    frame = ld3.evaluate(
        model, ["karras"], 30, solver="ddim", nfe=3, teacher="unipc-3/8/karras", metrics=METRICS[1:]
    ).set_index("name")
    noise = draw_noise(0, range(*eval_range(0, 30)), tuple(model.image_shape))
    made = []
    for name, nfe in (("ddim", 3), ("unipc-3", 8)):
        solver = make_solver(name)
        knots = discretize(model.noise, solver.steps(nfe), "karras")
        table = solver.tableau(model.noise, Grid(knots, knots[:-1]))
        made.append(sample(model.denoiser, table, noise * model.noise.prior_scale))
    gap = (made[0] - made[1]).double()
    l1, l2 = gap.abs().mean(), gap.square().mean()
    assert frame.loc["karras", "metric.distance.l1"] == pytest.approx(l1.item(), rel=1e-4)
    both = frame.loc["karras", "metric.distance.l2+3*l1"]
    assert both == pytest.approx((l2 + 3 * l1).item(), rel=1e-4)
    assert frame.loc["karras", "eval_loss"] == pytest.approx(l2.item(), rel=1e-4)
    assert frame.loc["teacher", "metric.distance.l1"] == 0


def test_every_row_of_a_sweep_has_them(out: Path) -> None:
    frame = load_results(out)
    assert frame["metric.distance.l1"].notna().all()
    assert frame["not_measured"].isna().all()
    schedules = frame[frame["kind"] != "teacher"]
    summed = schedules["eval_loss"] + 3 * schedules["metric.distance.l1"]
    assert schedules["metric.distance.l2+3*l1"].tolist() == pytest.approx(summed.tolist(), rel=1e-5)
    grid = frame[frame["kind"] == "baseline"].sort_values("eval_loss").iloc[0]
    for row in frame[frame["kind"] == "learned"].to_dict("records"):
        over = row["metric.distance.l1"] - grid["metric.distance.l1"]
        assert row["over_grid.distance.l1"] == pytest.approx(over, rel=1e-3, abs=1e-7)
        assert row["over_grid.distance.l1_low"] < over < row["over_grid.distance.l1_high"]


def test_what_was_learned_is_judged_by_all_of_them(out: Path) -> None:
    tables = read_sweep_tables(out)
    table = ablation_table(tables)
    rows = table[table["score"] == "metric.distance.l1"]
    assert rows["level"].tolist() == ["l1"]
    assert rows["better"].tolist() == ["lower"]
    frame = load_results(out)
    learned = frame[frame["kind"] == "learned"].set_index(["seed", "distance"])
    values = learned["metric.distance.l1"].unstack()
    expected = (values["l1"] / values["l2"]).prod() ** (1 / len(values))
    assert rows["ratio"].tolist() == pytest.approx([expected], rel=1e-5)
    assert rows["samples"].tolist() == [40]
    storage = open_storage(out)
    by_key = learned.reset_index().set_index(["distance", "seed"])
    kept = {
        at: read_kept(storage, row["key"], row["evaluation"])
        for at, row in by_key.to_dict("index").items()
    }
    sides = [
        np.stack([kept[name, seed].scores["distance.l1"].double().numpy() for seed in (0, 1)])
        for name in ("l1", "l2")
    ]
    found, p = over_seeds([sides[0]], [sides[1]])
    assert rows[["low", "high"]].to_numpy()[0].tolist() == pytest.approx([found.low, found.high])
    assert rows["p_value"].tolist() == pytest.approx([p])
    known = {column.name for column in shown(summary_table(tables.results, tables.evaluations),
                                             "page")}  # fmt: skip
    assert {"metric.distance.l1", "over_grid.distance.l1"} <= known


def test_the_page_and_the_tables_are_written(out: Path) -> None:
    write_report(str(out))
    assert "distance.l1" in (out / "report/index.html").read_text(encoding="utf-8")


def test_another_one_is_another_evaluation(out: Path) -> None:
    """What was measured stays, and nothing is learned again."""
    before = load_results(out)
    sweep(open_storage(out), experiment(metrics=[*METRICS, "distance:2*l1"]))
    after = load_results(out)
    assert sorted(before["key"].unique()) == sorted(after["key"].unique())
    assert after["metric.distance.2*l1"].tolist() == pytest.approx(
        (2 * after["metric.distance.l1"]).tolist(), rel=1e-5
    )


@pytest.mark.parametrize(
    ("metrics", "more", "said"),
    [
        (["distance"], {}, "no distance is named; write distance:NAME"),
        (["distance:"], {}, "no distance is named; write distance:NAME"),
        (["distance:l3"], {}, "unknown distance 'l3'"),
        (["distance:l1", "distance:l1"], {}, "distance.l1"),
        (["distance:lpips-vgg"], {"loss_space": "latent"}, "lpips-vgg compares images"),
    ],
)
def test_bad_names_are_refused_when_the_file_is_read(
    metrics: list[str], more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        parse_experiment(experiment(metrics=metrics) | more)


def test_images_that_are_too_small_are_refused_before_any_work() -> None:
    data = experiment(metrics=["distance:lpips-vgg"]) | {"models": ["digits"]}
    with pytest.raises(InputError, match="lpips-vgg needs images of at least"):
        make_plan(parse_experiment(data), "further.yaml")


def test_the_options_of_a_distance_make_another_evaluation() -> None:
    names = set()
    for upsample in (False, True):
        data = experiment(metrics=["distance:lpips-alex"]) | {"lpips": {"upsample": upsample}}
        parsed = parse_experiment(data)
        plan = Plan(parsed, {model.label: "unknown" for model in parsed.models})
        names.add(evaluation_of(plan, plan.models[0], "cpu"))
    assert len(names) == 2
