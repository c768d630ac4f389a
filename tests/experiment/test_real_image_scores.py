"""Inception scores and LPIPS in whole experiments: tiny EDM checkpoints, random trunks of the
published formats.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from edm_pickles import SIZE, SONG, write
from paper_experiments import run, shrunk
from random_weights import write_inception, write_trunk
from schedules import one_thread  # noqa: F401
from typer.testing import CliRunner

from ld3_dist.cli.app import app
from ld3_dist.core.distance import LPIPS
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import parse_experiment
from ld3_dist.metrics.extractors import open_extractor, read_reference
from ld3_dist.metrics.inception import FEATURES
from ld3_dist.models import open_model
from ld3_dist.models.weights import sha256_of
from ld3_dist.report import read_sweep_tables, summary_table, write_report
from ld3_dist.schedule.file import load_schedule
from ld3_dist.store.opening import open_storage
from ld3_dist.tasks.opened import model_of, pairs_of


@pytest.mark.slow  # quicker: tests/metrics/test_inception.py
def test_a_sweep_with_inception_scores(tmp_path: Path, format_modules: None) -> None:
    weights, reference = write_inception(tmp_path / "inception.pth"), tmp_path / "reference.npz"
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    np.savez(reference, mu=np.zeros(FEATURES), sigma=np.eye(FEATURES), arr_0=images)
    asked = {
        "samples": 8,
        "extractor": f"inception:{weights}",
        "reference": str(reference),
        "pictures": 2,
    }
    experiment = shrunk("cifar10", {}, tmp_path, evaluate=asked, baselines=["karras"])
    _, rows = run(experiment, tmp_path / "out")
    evaluations = read_sweep_tables(tmp_path / "out").evaluations
    assert set(evaluations["kind"]) == {"teacher", "baseline", "learned"}
    assert set(evaluations["extractor"]) == {"inception"}
    assert set(evaluations["extractor_hash"]) == {sha256_of(weights)}
    assert set(evaluations["reference"]) == {str(reference)}
    for name in (
        "fid",
        "kid",
        "kid_std",
        "precision",
        "recall",
        "density",
        "coverage",
        "inception_score",
    ):
        assert evaluations[name].notna().all(), name
    assert (evaluations["inception_score"] >= 1).all()
    assert (evaluations["fid"] > 0).all()
    learned = rows[rows["kind"] == "learned"].iloc[0]
    schedule = load_schedule(tmp_path / "out" / "schedules" / f"{learned['key']}.json")
    assert schedule.metrics["inception_score"] == learned["inception_score"]
    (line,) = summary_table(rows, evaluations).to_dict("records")
    scores = evaluations.set_index("kind")["inception_score"]
    assert line["inception_score"] == scores["learned"]
    assert line["baseline_inception_score"] == scores["baseline"]
    assert line["teacher_inception_score"] == scores["teacher"]
    for heading in ("IS learned", "IS hand-made", "IS teacher"):
        assert heading in Path(write_report(tmp_path / "out").markdown).read_text()


def test_a_reference_of_moments_alone_gives_the_frechet_distance_alone(tmp_path: Path) -> None:
    extractor = open_extractor("identity", open_model("digits"))
    file = tmp_path / "reference.npz"
    np.savez(file, mu=np.zeros(192), sigma=np.eye(192))
    assert read_reference(str(file), extractor).features is None
    images = np.arange(2 * 192, dtype=np.uint16).astype(np.uint8).reshape(2, 8, 8, 3)
    np.savez(file, mu=np.zeros(192), sigma=np.eye(192), arr_0=images)
    found = read_reference(str(file), extractor).features
    assert found is not None
    assert torch.equal(
        found, (torch.from_numpy(images).permute(0, 3, 1, 2).flatten(1).float() - 127.5) / 127.5
    )
    np.savez(file, mu=np.zeros(192), sigma=np.eye(192), arr_0=images / 255)
    with pytest.raises(InputError, match=r"reference\.npz: arr_0 is float64"):
        read_reference(str(file), extractor)


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """VGG's convolutions (about 60 MB)."""
    file = write_trunk(tmp_path_factory.mktemp("trunk") / "vgg16.pth", "vgg")
    yield file
    file.unlink()


@pytest.mark.slow  # quicker: test_learn_with_lpips_is_one_command
def test_a_sweep_learns_with_lpips_and_computes_the_teacher_s_features_once(
    tmp_path: Path, format_modules: None, trunk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = shrunk(
        "cifar10",
        {},
        tmp_path,
        distance="lpips-vgg",
        lpips={"trunk": str(trunk)},
        baselines=["karras"],
    )
    write(tmp_path / "net.pkl", {**SONG, **SIZE, "img_resolution": 16})
    experiment = parse_experiment(
        experiment.model_dump() | {"learn": {**experiment.learn, "epochs": 3}}
    )
    seen: list[torch.Tensor] = []
    features = LPIPS.features

    def spy(self: LPIPS, x: torch.Tensor) -> list[torch.Tensor]:
        seen.append(x.detach().clone())
        return features(self, x)

    monkeypatch.setattr(LPIPS, "features", spy)
    plan, rows = run(experiment, tmp_path / "out")
    learned = rows[rows["kind"] == "learned"].iloc[0]
    assert learned["distance"] == "lpips-vgg"
    assert learned["epochs_run"] == 3
    assert 0 < learned["valid_loss"] <= learned["start_loss"]
    assert json.loads(learned["settings"])["distance_options"] == {
        "trunk": str(trunk),
        "upsample": False,
    }
    (model,) = experiment.models
    start, stop = plan.train_range(0)
    targets = pairs_of(plan, model, open_storage(tmp_path / "out"), start, stop, "cpu").target
    times = [sum(bool((x == target).all()) for batch in seen for x in batch) for target in targets]
    assert times == [1] * len(targets)  # in three epochs


@pytest.mark.slow  # the sweep above learns with the same distance
def test_learn_with_lpips_is_one_command(tmp_path: Path, format_modules: None, trunk: Path) -> None:
    write(tmp_path / "net.pkl", {**SONG, **SIZE, "img_resolution": 16})
    call = [
        "learn",
        "--model",
        f"edm:{tmp_path / 'net.pkl'}",
        "--nfe",
        "3",
        "--pairs",
        "2",
        "--epochs",
        "1",
    ]
    call += ["--teacher", "unipc-3/6/karras", "--distance", "lpips-vgg", "--trunk", str(trunk)]
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "my.json")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "my.png").is_file()
    assert "lpips-vgg" in done.output


def test_images_too_small_for_the_trunk_are_refused_before_anything_is_written(
    tmp_path: Path, format_modules: None, trunk: Path
) -> None:
    experiment = shrunk("cifar10", {}, tmp_path, distance="lpips-vgg", lpips={"trunk": str(trunk)})
    with pytest.raises(InputError, match=r"at least 16 pixels.*upsample: true"):
        run(experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert min(model_of(experiment.models[0], "cpu").image_shape[1:]) == 8


def test_what_cannot_be_scored_is_refused_before_anything_is_written(
    tmp_path: Path, format_modules: None
) -> None:
    wrong, reference = tmp_path / "wrong.pth", tmp_path / "reference.npz"
    torch.save({"features.0.weight": torch.zeros(3)}, wrong)
    reference.write_bytes(b"<html>not found</html>")
    asked = {"samples": 4, "extractor": f"inception:{wrong}"}
    with pytest.raises(InputError, match=r"wrong\.pth: not those of Inception-v3"):
        run(shrunk("cifar10", {}, tmp_path, evaluate=asked), tmp_path / "out")
    asked = {"samples": 4, "extractor": "identity", "reference": str(reference)}
    with pytest.raises(InputError, match=r"reference\.npz: need an npz with mu and sigma"):
        run(shrunk("cifar10", {}, tmp_path, evaluate=asked), tmp_path / "out")
    assert not (tmp_path / "out").exists()
