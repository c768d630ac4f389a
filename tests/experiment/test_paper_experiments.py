"""The experiments of the paper, end to end on tiny checkpoints of the same formats; and the page on
one's own model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from paper_experiments import EDM, FILES, KINDS, ROOT, run, shrunk
from schedules import one_thread  # noqa: F401
from slowly import few
from typer.testing import CliRunner

from ld3_dist.cli.app import app
from ld3_dist.experiment import Plan, load_experiment, parse_experiment
from ld3_dist.experiment.cost import cost_of
from ld3_dist.models import open_model
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import load_pairs
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard


def test_every_experiment_is_there() -> None:
    assert set(FILES) == {*EDM, *KINDS}


@pytest.mark.parametrize("name", [*EDM, *KINDS])
def test_settings_as_published(name: str) -> None:
    e = load_experiment(FILES[name])
    text = FILES[name].read_text()
    plan = Plan(e, {m.label: "unknown" for m in e.models})
    cost = sum(cost_of(plan).values()) / 1e6
    assert (
        f"about {cost:.1f} M evaluations" in text
    )  # the cost beside the command is that of `show`
    assert e.learn["gamma"] == 0.001
    config = None
    if name not in ("sd3", "flux"):
        assert e.distance == "lpips-vgg"
        config = plan.trial(plan.cells[0], {}).config
        assert config.procedure == "paper"
        assert config.coordinate == ("lambda" if name in EDM else "time")
        assert (config.lr, config.lr_times, config.lr_noise) == (
            0.005,
            0.1 if name in EDM else 0.001,
            12.0,
        )
        assert (config.knots_only, config.epochs, config.batch) == (
            (2, 2 + 5, 2) if name in EDM else (2, 2 + 3, 1)
        )
        assert (config.patience, config.clip, config.offset_window) == (5, 1.0, 0.5)
        assert not hasattr(config, "coefficients")
        assert e.pairs.train == e.pairs.valid == (25 if name.startswith(("sd", "insta")) else 50)
    if name in EDM:
        assert (e.teacher.solver, e.teacher.nfe, e.teacher.start) == ("unipc-3-bh1", 20, "log_snr")
        assert e.search.members.starts == ("log_snr",)
    teacher, guidance = (e.teacher.solver, e.teacher.nfe, e.teacher.start), e.models[0].guidance
    if name == "imagenet256":
        assert (teacher, guidance) == (("unipc-3", 10, "uniform"), 2.0)
    if name == "lsun_bedroom":
        assert teacher == ("unipc-3", 20, "uniform")
    if name in ("sd14", "sd15"):
        assert (teacher[0], guidance) == ("ipndm-2", 7.5)
    if config is not None:  # the ablation is one line away
        (line,) = re.findall(r"# our own procedure instead: learn: (\{.*?\})", text)
        ours = parse_experiment(e.model_dump(mode="json") | {"learn": yaml.safe_load(line)})
        assert ours.learn == {"coordinate": config.coordinate, "gamma": 0.001}
    # r = gamma d / NFE^2: 0.192 at 4 evaluations and 0.031 at 10, as the paper's code has it for
    # CIFAR10
    if name == "cifar10":
        config = plan.trial(plan.cells[0], {}).config
        assert config.radius((3, 32, 32), 4) == pytest.approx(0.192)
        assert config.radius((3, 32, 32), 10) == pytest.approx(0.031, abs=5e-4)


@pytest.mark.parametrize("name", FILES)
def test_show_needs_no_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no weights/
    done = CliRunner().invoke(app, ["show", str(FILES[name])], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    for cell in Plan(load_experiment(FILES[name]), {name: "unknown"}).cells:
        assert cell.id in done.output
    assert "unknown until the weights are there" in " ".join(
        done.output.split()
    )  # a title may be wrapped
    assert "Network evaluations" in done.output


@pytest.mark.parametrize("name", few([*EDM, *KINDS], ("cifar10", "flux")))
def test_runs_on_a_tiny_checkpoint_of_its_format(
    name: str, pipelines: dict[str, Path], tmp_path: Path, format_modules: None
) -> None:
    experiment = shrunk(name, pipelines, tmp_path)
    plan, rows = run(experiment, tmp_path / "out")
    assert set(rows["status"]) == {"ok"}
    assert {"learned", "baseline"} <= set(rows["kind"])
    learned = rows[rows["kind"] == "learned"].iloc[0]
    if name not in (
        "sd3",
        "flux",
    ):  # rows have the procedure's values, though the file says its name alone
        found = {key: learned[key] for key in ("procedure", "lr", "lr_noise", "lr_times")}
        assert pd.isna(learned["coefficients"])  # the published procedure has none
        assert found == {
            "procedure": "paper",
            "lr": 0.005,
            "lr_noise": 12.0,
        } | {"lr_times": 0.1 if name in EDM else 0.001}
        assert json.loads(learned["settings"])["learn"]["patience"] == 5
    assert learned["valid_loss"] <= learned["start_loss"]
    assert learned["eval_loss"] > 0
    assert learned["fid"] >= 0
    pairs = load_pairs(
        open_storage(tmp_path / "out").child(f"pairs/{plan.teacher_key(experiment.models[0])}"),
        0,
        2,
    )
    latent = experiment.loss_space == "latent"
    assert (pairs["noise"].shape == pairs["target"].shape) == (latent or name in EDM)
    assert (tmp_path / "out" / "schedules" / f"{learned['key']}.json").is_file()


def test_latent_and_image_losses_are_two_experiments(
    pipelines: dict[str, Path], tmp_path: Path
) -> None:
    image = shrunk("lsun_bedroom", pipelines, tmp_path)
    latent = shrunk("lsun_bedroom", pipelines, tmp_path, loss_space="latent")
    plans = [make_plan(e) for e in (image, latent)]
    assert plans[0].teacher_key(image.models[0]) != plans[1].teacher_key(latent.models[0])
    for plan in plans:
        make_shard(plan, plan.experiment.models[0], open_storage(tmp_path), 0, 2, "cpu")
    made = [
        load_pairs(
            open_storage(tmp_path).child(f"pairs/{p.teacher_key(p.experiment.models[0])}"), 0, 2
        )
        for p in plans
    ]
    decoded = open_model(latent.models[0].model).denoiser.decode(made[1]["target"])
    torch.testing.assert_close(decoded, made[0]["target"], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="loss_space"):
        parse_experiment(latent.model_dump() | {"distance": "lpips-vgg"})


def test_options_of_lpips_are_part_of_keys(pipelines: dict[str, Path], tmp_path: Path) -> None:
    plain = shrunk("lsun_bedroom", pipelines, tmp_path)
    keys = set()
    for distance, upsample in (
        ("l2", False),
        ("l2", True),
        ("lpips-vgg", False),
        ("lpips-vgg", True),
    ):
        e = parse_experiment(
            plain.model_dump() | {"distance": distance, "lpips": {"upsample": upsample}}
        )
        plan = Plan(e, {"lsun_bedroom": "hash"})
        keys |= {
            plan.trial(plan.cells[0], {}).key,
            plan.baseline_key(plan.cells[0], "uniform", distance),
        }
    assert (
        len(keys) == 6
    )  # trials and baselines under l2, which has no options, and under LPIPS without and with


def test_edited_prompts_give_new_pairs(pipelines: dict[str, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\n")
    experiment = shrunk("sd15", {**pipelines, "prompts": prompts}, tmp_path)
    before = make_plan(experiment)
    prompts.write_text("a dog\n")
    after = make_plan(experiment)
    (model,) = experiment.models
    assert before.teacher_key(model) != after.teacher_key(model)
    assert before.fingerprint != after.fingerprint
    with pytest.raises(ValueError, match="prompts"):
        make_shard(before, model, open_storage(tmp_path / "out"), 0, 2, "cpu")
    assert not (tmp_path / "out").exists()


def test_the_page_on_your_own_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT.parent / "docs" / "how-to" / "own-model.md").read_text()
    code, more, _ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(code.splitlines()) <= 22
    (tmp_path / "my_model.py").write_text(f"{code}\n{more}")
    monkeypatch.chdir(tmp_path)
    (spec,) = set(re.findall(r"python:my_model\.py:build\b(?!_)", page))
    model = open_model(spec)
    assert model.image_shape == (3, 32, 32)
    whole = open_model("python:my_model.py:build_all")
    assert whole.extractor is not None
    assert whole.data is not None
    assert whole.extractor.features(whole.data).shape == (50, 3)
    assert whole.conditioning == "class"
    settings = {
        "models": [{"name": "mine", "model": spec}],
        "solvers": ["ddim"],
        "nfe": [3],
        "name": "mine",
    }
    settings |= {
        "pairs": {"train": 2, "valid": 2},
        "learn": {"epochs": 1},
        "baselines": ["uniform"],
    }
    settings |= {
        "teacher": {"nfe": 6, "start": "uniform"},
        "search": {"members": {"seeds": 1, "starts": ["uniform"]}},
    }
    settings["evaluate"] = {"samples": 4, "extractor": "none", "pictures": 2}
    _, rows = run(parse_experiment(settings), tmp_path / "out")
    assert set(rows["status"]) == {"ok"}
