"""A family in a sweep: one curve learned for all NFEs of a cell's model and solver, a row each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_sweep import sweep
from tiny_sweep import changed

import ld3_dist as ld3
from ld3_dist.cluster.search.proposals import points_by_cell
from ld3_dist.core.learning.family import CurveDescent
from ld3_dist.experiment import parse_experiment
from ld3_dist.experiment.families import siblings
from ld3_dist.store.opening import open_storage
from ld3_dist.store.part import Part
from ld3_dist.store.tables import read_table
from ld3_dist.tasks.check import check
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.schedules import schedule_name


def settings(*nfes: int, **search: Any) -> dict[str, Any]:
    plain: dict[str, Any] = {"rounds": 1, "grid": {}, "optuna": {}, "members": {"seeds": 2}}
    return changed(
        learn={"procedure": "curve", "epochs": 2, "batch": 4},
        search=plain | search,
        solvers=["dpmpp-2"],
        nfe=list(nfes),
    )


def learned(place: Path) -> Any:
    frame = ld3.load_results(place)
    return frame[frame["kind"] == "learned"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("curve") / "out"
    sweep(open_storage(place), settings(3, 5))
    return place


def test_every_nfe_has_a_row_of_the_family(out: Path) -> None:
    rows = learned(out)
    assert sorted(rows["nfe"]) == [3, 3, 5, 5]
    assert set(rows["status"]) == {"ok"}
    for _, family in rows.groupby("family"):
        assert sorted(family["nfe"]) == [3, 5]
        curve = ld3.load_schedule(out / schedule_name(family["family"].iloc[0]))
        for row in family.to_dict("records"):
            own = ld3.load_schedule(out / schedule_name(row["key"]))
            assert own.curve is None
            assert own.row == row["key"]
            assert curve.at(row["nfe"]).knots == own.knots == tuple(row["knots"])
            assert curve.at(row["nfe"]).evals == own.evals
            assert curve.curve is not None
            assert curve.curve["losses"][str(row["nfe"])] == row["valid_loss"]
    grids = ld3.load_results(out).query("kind == 'baseline'")
    assert all(grids["family"].isna())
    found = [finding.file for finding in check(open_storage(out))]
    assert not [file for file in found if not file.startswith("parts/")]  # nobody cleared those


def test_it_is_learned_once_and_never_again(
    out: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also a sweep in another folder learns one family, not one for every cell."""
    epochs: list[int] = []
    epoch = CurveDescent.epoch
    monkeypatch.setattr(
        CurveDescent, "epoch", lambda self, n: (epochs.append(n), epoch(self, n))[1]
    )
    sweep(open_storage(out), settings(3, 5))
    assert epochs == []
    sweep(open_storage(tmp_path / "other"), settings(3, 5))
    assert epochs == [1, 2]


def test_the_work_is_shared_among_the_rows(out: Path) -> None:
    """By their NFE: 2 epochs of 8 pairs, a backward pass counted once, and 3 validations of 8."""
    for row in learned(out).to_dict("records"):
        assert row["network_evals"] == row["nfe"] * (2 * 8 + 3 * 8)


def test_another_nfe_makes_another_family(tmp_path: Path) -> None:
    """Beside the first, whose rows stay in the folder; readers see what the last YAML asks for."""
    storage = open_storage(tmp_path / "grown")
    sweep(storage, settings(3, 5))
    before = set(learned(tmp_path / "grown")["key"])
    sweep(storage, settings(3, 4, 5))
    rows = learned(tmp_path / "grown")
    assert sorted(rows["nfe"]) == [3, 3, 4, 4, 5, 5]
    assert rows["family"].nunique() == 2
    assert not set(rows["key"]) & before
    assert before < set(read_table(storage, "rows")["key"])


def test_a_lost_curve_is_learned_again_and_a_lost_grid_is_not(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    sweep(storage, settings(3, 4))
    rows = learned(tmp_path / "out")
    files = {
        key: (tmp_path / "out" / schedule_name(key)).read_text()
        for key in [*rows["key"], *rows["family"]]
    }
    for key in (rows["key"].iloc[0], rows["family"].iloc[0]):
        (tmp_path / "out" / schedule_name(key)).unlink()
    sweep(storage, settings(3, 4))
    for key, text in files.items():
        again = json.loads((tmp_path / "out" / schedule_name(key)).read_text())
        assert again["knots"] == pytest.approx(json.loads(text)["knots"], rel=1e-9)


def test_siblings_share_the_family_and_the_members_of_a_part() -> None:
    plan = make_plan(parse_experiment(settings(3, 5)))
    first, second = (plan.trial(cell, {}) for cell in plan.cells)
    assert first.family == second.family
    assert first.curves == second.curves
    assert not set(first.keys) & set(second.keys)
    assert [one.keys for one in siblings(plan, first.only([1]))] == [
        first.keys[1:],
        second.keys[1:],
    ]
    other = make_plan(parse_experiment(settings(3, 4, 5)))
    assert other.trial(other.cells[0], {}).family != first.family
    alone = plan.trial(plan.cells[0], {"procedure": "default", "points": None})
    assert alone.family is None
    assert siblings(plan, alone) == [alone]


def test_a_family_is_in_one_part_of_a_sweep() -> None:
    """Every point of every cell once, and the cells of a family together."""
    data = settings(3, 5, grid={"gamma": [0.0, 0.1]}) | {"solvers": ["ddim", "dpmpp-2"]}
    plan = make_plan(parse_experiment(data))
    seen: dict[tuple[str, float], list[int]] = {}
    for i in range(1, 4):
        for cell, points in points_by_cell(plan, Part(i, 3)):
            for point in points:
                seen.setdefault((cell.solver, point["gamma"]), []).append(i)
    assert len(seen) == 4
    for parts in seen.values():
        assert len(parts) == 2
        assert len(set(parts)) == 1


def test_the_procedure_can_be_an_axis(tmp_path: Path) -> None:
    """default beside curve: each cell has a row of both, and the default's key is as ever."""
    axis = {"procedure": ["default", "curve"]}
    data = settings(3, 4, grid=axis, members={"seeds": 1, "starts": ["log_snr"]})
    del data["learn"]["procedure"]
    sweep(open_storage(tmp_path / "out"), data)
    rows = learned(tmp_path / "out")
    assert rows.groupby(["nfe", "procedure"]).size().to_dict() == {
        (3, "curve"): 1, (3, "default"): 1, (4, "curve"): 1, (4, "default"): 1
    }  # fmt: skip
    assert rows["family"].notna().tolist() == (rows["procedure"] == "curve").tolist()
    assert torch.isfinite(torch.tensor(rows["valid_loss"].to_numpy())).all()


def test_a_sampler_cannot_propose_a_family() -> None:
    data = settings(3, 4, optuna={"procedure": ["default", "curve"]})
    del data["learn"]["procedure"]
    with pytest.raises(ld3.InputError, match=r"search\.grid\.procedure"):
        parse_experiment(data)
