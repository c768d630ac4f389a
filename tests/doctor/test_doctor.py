"""doctor: what is there, what is missing and where to get it, what learning will take; nothing is
written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from ld3_dist.cli.app import app
from ld3_dist.core.denoiser import map_condition
from ld3_dist.doctor import Check, examine
from ld3_dist.doctor.footprint import footprint, pairs_bytes, readable
from ld3_dist.experiment import Plan, load_experiment, parse_experiment
from ld3_dist.models import open_model
from ld3_dist.store.pairs import load_pairs
from ld3_dist.store.storage import open_storage
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard

ROOT = Path(__file__).parents[2] / "experiments"
SMALL: dict[str, Any] = {
    "solvers": ["ddim"],
    "nfe": [3],
    "pairs": {"train": 2, "valid": 2},
    "evaluate": {"samples": 4},
}
DIGITS = SMALL | {"models": ["digits"]}


def checks(settings: dict[str, Any], output: Path | None = None) -> list[Check]:
    return list(examine(parse_experiment(settings), None if output is None else str(output)))


def missing(settings: dict[str, Any], output: Path | None = None) -> str:
    """All that is said about what is missing."""
    return "\n".join(
        f"{c.name}: {c.detail} {c.remedy}"
        for c in checks(settings, output)
        if c.status == "missing"
    )


def test_a_whole_experiment_passes_and_nothing_is_written(tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text(yaml.safe_dump(DIGITS))
    done = CliRunner().invoke(app, ["doctor", str(file), "--output", str(tmp_path / "a" / "b")])
    assert done.exit_code == 0, done.output
    assert "checks passed" in done.output
    assert make_plan(load_experiment(file)).fingerprint in done.output
    assert sorted(p.name for p in tmp_path.iterdir()) == ["digits.yaml"]


SOURCES = {
    "paper/cifar10": [
        "/edm-cifar10-32x32-uncond-vp.pkl",
        "fid-refs/cifar10-32x32.npz",
        "vgg16-397923af.pth",
    ],
    "paper/ffhq": [
        "/edm-ffhq-64x64-uncond-vp.pkl",
        "fid-refs/ffhq-64x64.npz",
        "vgg16-397923af.pth",
    ],
    "paper/afhqv2": [
        "/edm-afhqv2-64x64-uncond-vp.pkl",
        "fid-refs/afhqv2-64x64.npz",
        "vgg16-397923af.pth",
    ],
    "paper/lsun_bedroom": ["lsun_bedrooms.zip", "ld3-dist convert", "VIRTUAL_lsun_bedroom256.npz"],
    "paper/imagenet256": [
        "nitro/cin/model.ckpt",
        "cin256-v2.yaml",
        "VIRTUAL_imagenet256_labeled.npz",
    ],
    "paper/sd14": ["CompVis/stable-diffusion-v1-4", "weights/prompts.txt", "vgg16-397923af.pth"],
    "paper/sd15": [
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "weights/prompts.txt",
        "vgg16-397923af.pth",
    ],
    "flow/instaflow": [
        "XCLiu/2_rectified_flow_from_sd_1_5",
        "weights/prompts.txt",
        "vgg16-397923af.pth",
    ],
    "flow/sd3": ["stabilityai/stable-diffusion-3-medium-diffusers", "weights/prompts.txt"],
    "flow/flux": ["black-forest-labs/FLUX.1-dev", "weights/prompts.txt"],
}


@pytest.mark.parametrize("name", SOURCES)
def test_missing_files_are_named_with_their_source(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor", str(ROOT / f"{name}.yaml")])
    assert done.exit_code == 2, done.output
    said = [
        *SOURCES[name],
        "weights-inception-2015-12-05-6726825d.pth",
        "unknown until every model is there",
    ]
    output = "".join(done.output.split())  # long lines are wrapped
    for text in said:
        assert "".join(text.split()) in output
    assert list(tmp_path.iterdir()) == []


def test_every_experiment_has_its_sources_tested() -> None:
    files = {
        f"{f.parent.name}/{f.stem}"
        for folder in ("paper", "flow")
        for f in (ROOT / folder).glob("*.yaml")
    }
    assert files == set(SOURCES)


def test_what_is_only_on_the_network_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD3_DIST_CACHE", str(tmp_path / "cache"))
    url = "https://example.org/edm-ffhq-64x64-uncond-vp.pkl"
    assert "not in the cache" in missing(SMALL | {"models": [f"edm:{url}"]})
    pytest.importorskip("huggingface_hub")
    assert "not in the cache" in missing(
        SMALL | {"models": ["diffusers:nobody/no-such-model-of-mine"]}
    )
    assert not (tmp_path / "cache").exists()


def test_damaged_trunks_and_small_images(tmp_path: Path) -> None:
    trunk = tmp_path / "vgg16-397923af.pth"
    trunk.write_bytes(b"half a download")
    said = missing(DIGITS | {"distance": "lpips-vgg", "lpips": {"trunk": str(trunk)}})
    assert "damaged" in said
    assert "download.pytorch.org" in said
    assert "images of 8 pixels" in said
    assert "upsample" in said


def test_resources_and_extras() -> None:
    gpus = torch.cuda.device_count() + 2
    assert f"ask for {gpus}" in missing(DIGITS | {"resources": {"gpus_per_trial": gpus}})
    assert "CPUs" in missing(DIGITS | {"resources": {"cpus_per_actor": 1e6}})


def test_whose_folder_it_is(tmp_path: Path) -> None:
    plan = make_plan(parse_experiment(DIGITS))
    mine, other, file = tmp_path / "mine", tmp_path / "other", tmp_path / "file"
    for folder, fingerprint in ((mine, plan.fingerprint), (other, "0123")):
        folder.mkdir()
        (folder / "experiment.json").write_text(json.dumps({"fingerprint": fingerprint}))
    file.write_text("")
    assert missing(DIGITS, mine) == ""
    assert "another experiment's (fingerprint 0123)" in missing(DIGITS, other)
    assert "not a folder" in missing(DIGITS, file)


def test_memory_is_what_autograd_keeps() -> None:
    opened = open_model("digits")
    found = footprint(opened, None)

    def kept(samples: int) -> int:
        tensors = {}
        x = torch.randn(samples, *opened.denoiser.shape, requires_grad=True)
        condition = map_condition(lambda c: c[:samples], opened.draw_condition(0, range(2)))

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            tensors[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            opened.denoiser(x, torch.full((samples,), 5.0), condition)
        return sum(t.untyped_storage().nbytes() for t in tensors.values())

    assert found.evaluation == pytest.approx(kept(2) - kept(1), rel=0.01)
    assert found.weights >= 4 * sum(p.numel() for p in opened.denoiser.parameters())  # type: ignore[attr-defined]
    assert found.step(10, 3) == found.weights + 10 * (3 * found.evaluation + found.comparison)


def test_pairs_on_disk(tmp_path: Path) -> None:
    experiment = parse_experiment(DIGITS)
    plan, (model,) = make_plan(experiment), experiment.models
    storage = open_storage(tmp_path)
    for start, stop in plan.shards():
        make_shard(plan, model, storage, start, stop, "cpu")
    place = storage.child(f"pairs/{plan.teacher_key(model)}")
    stop = plan.eval_range[1]
    total = sum(t.nbytes for t in load_pairs(place, 0, stop).values())
    assert pairs_bytes(plan, model, open_model("digits")) == total
    assert [readable(n) for n in (12, 1500, 69.8e9, 2e15)] == [
        "12 B",
        "1.5 kB",
        "69.8 GB",
        "2,000 TB",
    ]
    assert Plan(experiment, {"digits": "x"}).shards() == plan.shards()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "where they do not fit and are made again (checkpointing: auto)"),
        ({"learn": {"checkpointing": "never"}}, "activations kept (checkpointing: never)"),
        ({"learn": {"checkpointing": "always"}}, "activations made again (checkpointing: always)"),
        (
            {"models": [{"model": "digits", "recompute": True}]},
            "activations made again (checkpointing: always)",
        ),
    ],
)
def test_memory_knows_whether_activations_are_kept(settings: dict[str, Any], said: str) -> None:
    (check,) = [
        c for c in checks(DIGITS | settings) if c.area == "memory" and c.name.startswith("digits")
    ]
    assert check.status == "ok"
    assert said in check.detail
    size = footprint(open_model("digits"), None)
    assert (readable(size.step(6, 3)) in check.detail) == ("on)" not in said)
    assert (readable(size.step(6, 3, recomputed=True)) in check.detail) == ("off" not in said)


def test_memory_of_recomputation_hardly_grows_with_evaluations() -> None:
    size = footprint(open_model("digits"), None)
    state = 4 * 8 * 8
    assert (
        size.step(5, 7, recomputed=True) - size.step(5, 6, recomputed=True) == 2 * 5 * state
    )  # what goes in and out
    assert size.step(5, 20, recomputed=True) < size.step(5, 2)


def test_too_little_memory_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.is_available():
        pytest.skip("the memory of a GPU counts")
    size = footprint(open_model("digits"), None)
    for free, said in (
        (size.step(2, 3, True), "in smaller parts"),
        (size.weights, "too little for one sample"),
    ):
        monkeypatch.setattr("ld3_dist.doctor.checks.free_memory", lambda _, free=free: free)
        (check,) = [c for c in checks(DIGITS) if c.area == "memory" and c.name.startswith("digits")]
        assert check.status == "note"
        assert said in check.remedy
