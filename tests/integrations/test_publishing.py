"""What is published beside weights: the schedule as it is, its own numbers, nothing private."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from command_line import call
from PIL import Image
from schedules import STABLE_DIFFUSION, coupled_schedule

import ld3_dist as ld3
from ld3_dist.core.noise import EDM, VPDiscrete
from ld3_dist.integrations.publishing import card, licence_of, without_folders
from ld3_dist.report.figures.grids import schedule_picture
from ld3_dist.schedule.file import Schedule, load_schedule


def made(**more) -> Schedule:
    return replace(
        coupled_schedule(EDM(), 4),
        losses={"start_loss": 0.02, "valid_loss": 0.004},
        metrics={"eval_loss": 0.005, "eval_loss_sem": 0.0005, "fid": 3.25},
        baselines={"karras": {"valid_loss": 0.012}, "uniform": {"valid_loss": 0.1}},
        **more,
    )


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def test_the_folder_holds_file_card_and_picture(tmp_path: Path, run: Run) -> None:
    private = "diffusers:/home/me/very secret/tiny"
    schedule = made(model=private, start="file:/home/me/very secret/start.json")
    schedule.save(tmp_path / "my.json")
    command = ("publish", tmp_path / "my.json", "--to", tmp_path / "out", "--license", "mit")
    assert run(*command)[0] == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "grid.png", "my.json"]
    shared = load_schedule(out / "my.json")
    assert shared == replace(schedule, model=shared.model, start="file:start.json")
    assert shared.model == "diffusers:tiny"
    text = (out / "README.md").read_text()
    for path in ("README.md", "my.json"):
        assert "/home" not in (out / path).read_text()
    assert front_matter(text)["license"] == "mit"
    assert Image.open(BytesIO((out / "grid.png").read_bytes())).size[0] > 500


def test_the_cards_numbers_are_the_files() -> None:
    text = card(made(), "my", None)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert rows == [
        ["grid", "held-out loss", "held-out gain", "fresh loss", "gain"],
        ["**learned**", "0.004", "–", "0.005 ± 0.00098", "–"],
        ["karras", "0.012", "3×", "–", "–"],
        ["uniform", "0.1", "25×", "–", "–"],
    ]
    assert "fid 3.25" in text
    assert "licence is not known" in text
    assert "license" not in front_matter(text)
    assert "schedule.sample(model, n=16)" in text


def test_a_pipelines_card_has_the_lines_for_diffusers() -> None:
    schedule = coupled_schedule(VPDiscrete(STABLE_DIFFUSION), 5)
    text = card(replace(schedule, model="diffusers:owner/sd", guidance=7.5), "my", "openrail")
    assert front_matter(text)["base_model"] == "owner/sd"
    assert 'LD3Scheduler.from_schedule("my.json", pipe.scheduler)' in text
    assert "num_inference_steps=5, guidance_scale=7.5" in text
    assert "## Numbers" not in text  # a file without losses has no table


def test_nothing_is_replaced_unasked(tmp_path: Path, run: Run) -> None:
    made().save(tmp_path / "my.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    command = ("publish", tmp_path / "my.json", "--to", tmp_path / "out")
    code, _, told = run(*command)
    assert code == 2
    assert "exists already" in told
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
    assert run(*command, "--force")[0] == 0
    before = (tmp_path / "my.json").read_bytes()
    code, _, told = run("publish", tmp_path / "my.json", "--to", tmp_path, "--force")
    assert code == 2
    assert "is the file that the command reads" in told
    assert (tmp_path / "my.json").read_bytes() == before
    assert run(*command, "--force", "--license", "a\nb")[0] == 2


@pytest.mark.parametrize(
    ("private", "public"),
    [
        ("diffusers:/home/me/sdxl/", "diffusers:sdxl"),
        ("diffusers:owner/sdxl", "diffusers:owner/sdxl"),
        ("python:/home/me/models.py:net", "python:models.py:net"),
        ("python:../here/models.py:net", "python:models.py:net"),
        ("~/weights/a.pt", "a.pt"),
        ("C:\\weights\\a.pt", "C:a.pt"),
        ("digits", "digits"),
        ("file:/home/me/my grids/a b.json", "file:a b.json"),
    ],
)
def test_texts_lose_their_folders(private: str, public: str) -> None:
    assert without_folders({private: [private, 1.5]}) == {public: [public, 1.5]}


def test_the_licence_is_read_from_the_models_card(tmp_path: Path) -> None:
    model = f"diffusers:{tmp_path}"
    assert licence_of(model) is None
    place = tmp_path / "README.md"
    for text, licence in [
        ("---\nlicense: apache-2.0\n---\n# x", "apache-2.0"),
        ("# no front matter", None),
        ("---\nlicense: [a, b]\n---", None),
        ("---\n: : {", None),
    ]:
        place.write_text(text)
        assert licence_of(model) == licence
    assert licence_of("digits") is None


def test_a_picture_needs_no_baselines() -> None:
    schedule = replace(made(), baselines={"tors": {"valid_loss": 1.0}})
    assert schedule_picture(schedule).startswith(b"\x89PNG")
    assert json.loads(schedule.to_json())["baselines"]


@pytest.fixture(scope="module")
def curve() -> Schedule:
    model = ld3.load_model("analytic:mixture-2d")
    pairs = ld3.teach(model, 16)
    return ld3.learn(model, "ddim", [2, 4], pairs, procedure="curve", epochs=2)


def test_the_card_of_a_curve_has_a_line_per_nfe_it_was_learned_at(curve: Schedule) -> None:
    text = card(curve, "any", None)
    assert "# any: any number of network evaluations for mixture-2d" in text
    assert "learned at 2, 4" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    for row, nfe in zip(rows[1:], (2, 4), strict=True):
        at = curve.at(nfe)
        loss, grids = at.losses["valid_loss"], at.baselines
        best = min(grids, key=lambda name: grids[name]["valid_loss"] or math.inf)
        least = grids[best]["valid_loss"]
        assert loss is not None
        assert least is not None
        assert row == [str(nfe), f"{loss:.4g}", f"{least:.4g} ({best})", f"{least / loss:.3g}×"]
    assert f"schedule.at({curve.nfe}).sample" in text


def test_one_nfe_of_a_curve_is_published_alone(curve: Schedule, tmp_path: Path, run: Run) -> None:
    curve.save(tmp_path / "any.json")
    command = ("publish", tmp_path / "any.json", "--to", tmp_path / "out")
    assert run(*command)[0] == 0
    assert load_schedule(tmp_path / "out" / "any.json").curve is not None
    assert run(*command, "--force", "--nfe", "3")[0] == 0  # a number that it was not learned at
    shared = load_schedule(tmp_path / "out" / "any.json")
    assert shared.nfe == 3
    assert shared.curve is None
    assert "3 network evaluations" in (tmp_path / "out" / "README.md").read_text()
    made().save(tmp_path / "my.json")
    code, _, told = run("publish", tmp_path / "my.json", "--to", tmp_path / "x", "--nfe", "3")
    assert code == 2
    assert "3" in told
    assert not (tmp_path / "x").exists()
