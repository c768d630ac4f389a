"""The experiments of the paper on tiny checkpoints, and a whole sweep in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from edm_pickles import SIZE, SONG, write

from ld3_dist.experiment import Experiment, parse_experiment
from ld3_dist.store.opening import open_storage
from ld3_dist.store.results import load_results
from ld3_dist.tasks.baselines import run_baselines
from ld3_dist.tasks.evaluate import Item, finish, pictures, sample_part, teacher_item
from ld3_dist.tasks.planning import make_plan
from ld3_dist.tasks.teach import make_shard, missing_shards, seal
from ld3_dist.tasks.trial import run_trial

ROOT = Path(__file__).parents[2] / "experiments"
EDM = ("cifar10", "ffhq", "afhqv2")
KINDS = {
    "lsun_bedroom": "bedroom",
    "imagenet256": "cin",
    "sd14": "sd",
    "sd15": "sd",
    "instaflow": "rectified",
    "sd3": "sd3",
    "flux": "flux",
}
FILES = {file.stem: file for folder in ("paper", "flow") for file in (ROOT / folder).glob("*.yaml")}


def shrunk(name: str, folders: dict[str, Path], tmp_path: Path, **changes: Any) -> Experiment:
    """The experiment as its file says, but a tiny checkpoint, few pairs and samples, two cells and
    l2.
    """
    settings = yaml.safe_load(FILES[name].read_text())
    (model,) = settings["models"]
    if name in EDM:
        assert Path(model["model"]).suffix == ".pkl"
        model["model"] = f"edm:{tmp_path / 'net.pkl'}"
        write(tmp_path / "net.pkl", {**SONG, **SIZE})
    else:
        model |= {"model": f"diffusers:{folders[KINDS[name]]}", "dtype": "float32"}
        if "prompts" in model:
            model["prompts"] = str(folders["prompts"])
        if "size" in model:
            model["size"] = [16, 16]
    assert settings["distance"] in ("lpips-vgg", "l2")
    settings |= {
        "distance": "l2", "pairs": {"train": 2, "valid": 2}, "nfe": settings["nfe"][:1],
        "solvers": settings["solvers"][:1], "baselines": settings["baselines"][:2],
        "evaluate": {"samples": 4, "extractor": "identity", "pictures": 2},
    }  # fmt: skip
    settings["teacher"]["nfe"] = 6
    settings["learn"] |= {"epochs": 1}
    return parse_experiment(settings | changes)


def run(experiment: Experiment, folder: Path) -> Any:
    """Every stage of a sweep, in this process; returns (plan, results)."""
    plan, storage = make_plan(experiment), open_storage(folder)
    (model,), (cell, *_) = experiment.models, plan.cells
    for start, stop in missing_shards(plan, model, storage)[0]:
        make_shard(plan, model, storage, start, stop, "cpu")
    seal(plan, model, storage)
    run_baselines(plan, cell, storage, "cpu")
    spec = plan.trial(cell, plan.points()[0])
    outcome = run_trial(plan, spec, storage, {"round": 0, "attempts": 1}, "cpu")
    assert outcome.status == "ok"
    rows = load_results(folder)
    base, learned = (
        Item(
            row["key"],
            row["kind"],
            model,
            cell,
            {n: tuple(map(float, row[n])) for n in ("knots", "evals")},
        )
        for kind in ("baseline", "learned")
        for row in rows[rows["kind"] == kind].to_dict("records")[:1]
    )
    for item in (teacher_item(plan, model), base, learned):
        sample_part(plan, item, storage, *plan.eval_range, device="cpu")
        finish(plan, item, storage, 0.0, {}, device="cpu")
    pictures(plan, base, learned, storage, "cpu")
    return plan, load_results(folder)
