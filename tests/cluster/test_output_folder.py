"""Whose an output folder is: keys follow content and not paths, messages say what differs, and a
lost experiment.json is made again.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from forked_sweeps import SMALL, sweep
from tiny_sweep import changed, lasting

from ld3_dist import load_results
from ld3_dist.cluster.output_folder import check_claim, claim, read_claim, with_names_of
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import parse_experiment
from ld3_dist.experiment.plan import Plan, content_of_conditioning
from ld3_dist.models.digits import NETWORK
from ld3_dist.models.weights import read_tensors, save_tensors
from ld3_dist.report import write_report
from ld3_dist.store.opening import open_storage
from ld3_dist.store.storage import Storage
from ld3_dist.tasks.planning import make_plan

QUICKSTART = Path(__file__).parents[1] / "support" / "format_1"


def plan_of(**settings: Any) -> Plan:
    return make_plan(parse_experiment(changed(**SMALL | settings)))


def claimed(folder: Path, **settings: Any) -> Storage:
    storage = open_storage(folder)
    claim(storage, plan_of(**settings))
    return storage


def refused(storage: Storage, plan: Plan) -> str:
    with pytest.raises(InputError) as caught:
        check_claim(storage, plan)
    assert storage.url in str(caught.value)
    assert "--output" in str(caught.value)
    return str(caught.value)


def weights_at(file: Path, scale: float = 1.0) -> dict[str, Any]:
    """A model whose weights are a file; `scale` changes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors, config = read_tensors(NETWORK.file, NETWORK.kind, "")
    save_tensors(file, {name: t * scale for name, t in tensors.items()}, NETWORK.kind, config)
    return {"model": f"digits:{file}"}


def test_the_same_weights_under_another_path_are_the_same_experiment(tmp_path: Path) -> None:
    first = weights_at(tmp_path / "a" / "net.safetensors")
    out = open_storage(tmp_path / "out")
    sweep(out, changed(**SMALL | {"models": [first]}))
    table = lasting(Path(out.url))
    moved = weights_at(tmp_path / "b" / "elsewhere.safetensors")
    (tmp_path / "a" / "net.safetensors").unlink()
    before = {name: out.read_bytes(name) for name in out.list(recursive=True)}
    plan = plan_of(models=[moved])
    assert check_claim(out, plan)
    same = with_names_of(out, plan)
    assert [cell.id for cell in same.cells] == [f"{first['model']}/ddim/3"]
    assert same.fingerprint == plan.fingerprint
    assert same.cells[0].model.model == moved["model"]
    (Path(out.url) / "rows" / f"{same.baseline_key(same.cells[0])}.parquet").unlink()
    sweep(out, changed(**SMALL | {"models": [moved]}))
    pd.testing.assert_frame_equal(lasting(Path(out.url)), table, check_exact=True)
    assert set(out.list(recursive=True)) >= set(before)
    other = plan_of(models=[weights_at(tmp_path / "c" / "net.safetensors", scale=1.01)])
    message = refused(out, other)
    assert "models.0.weights: " in message
    assert message.count(" there, ") == 1


def test_other_files_count_by_their_content_too(tmp_path: Path) -> None:
    """LPIPS trunks, reference statistics, weights of extractors, prompts and classes."""
    a, b, c = (tmp_path / name / "file.bin" for name in "abc")
    for file, content in ((a, b"one"), (b, b"one"), (c, b"two")):
        file.parent.mkdir()
        file.write_bytes(content)

    def prints(**settings: Any) -> set[str]:
        found = set()
        for file in (a, b, c):
            named = {
                key: {
                    name: value.replace("FILE", str(file)) if isinstance(value, str) else value
                    for name, value in part.items()
                }
                for key, part in settings.items()
            }
            plan = Plan(parse_experiment(changed(**SMALL | named)), {"analytic:mixture-2d": "h"})
            found.add(f"{plan.fingerprint} {plan.teacher_key(plan.experiment.models[0])}")
        return found

    assert len(prints(lpips={"trunk": "FILE"})) == 2
    assert len(prints(evaluate={"reference": "FILE", "samples": 8})) == 2
    assert len(prints(evaluate={"extractor": "inception:FILE", "samples": 8})) == 2
    assert content_of_conditioning("prompts:a:b.txt:01234567") == "prompts:01234567"
    assert content_of_conditioning("class") == "class"


def test_what_differs_is_said_setting_by_setting(tmp_path: Path) -> None:
    storage = claimed(tmp_path)
    assert check_claim(storage, plan_of(name="renamed", resources={"batch": 5}))
    other = plan_of(seed=7, learn={"epochs": 3, "batch": 8}, nfe=[3, 4])
    message = refused(storage, other)
    assert "another experiment ('tiny')" in message
    assert [line.strip() for line in message.splitlines() if " there, " in line] == [
        "learn.epochs: 1 there, 3 here",
        "nfe: [3] there, [3, 4] here",
        "seed: 0 there, 7 here",
    ]
    renamed = plan_of(models=[{"model": "analytic:mixture-2d", "name": "mix"}])
    assert "models.0.name: 'analytic:mixture-2d' there, 'mix' here" in refused(storage, renamed)


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[1]", b"{}", b"\xff\xfe"])
def test_a_lost_experiment_json_is_made_again(damage: bytes | None, tmp_path: Path) -> None:
    storage, name = open_storage(tmp_path / "out"), "experiment.json"
    sweep(storage, changed(**SMALL))
    before = storage.read_bytes(name)
    storage.remove(name)
    if damage is not None:
        storage.write_bytes(name, damage)
    assert "rows of another experiment" in refused(storage, plan_of(seed=3))
    assert not check_claim(storage, plan_of())
    claim(storage, plan_of())
    assert storage.read_bytes(name) == before


def test_pairs_of_another_teacher_keep_a_lost_experiment_json_lost(tmp_path: Path) -> None:
    storage = open_storage(tmp_path / "out")
    storage.write_bytes("pairs/0123456789abcdef/manifest.json", b"{}")
    assert "pairs/0123456789abcdef" in refused(storage, plan_of())


def test_a_folder_of_format_1_is_read_but_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(QUICKSTART, out)
    message = refused(open_storage(out), plan_of())
    assert "format 1" in message
    assert "ld3-dist report" in message
    assert "cannot go on in it" in message
    frame = load_results(out)
    assert len(frame) == 7
    assert {r["procedure"] for r in frame.to_dict("records") if r["kind"] == "learned"} == {
        "default"
    }
    assert frame["eval_loss"].notna().all()
    assert max(frame["gain"].tolist()) > 1
    page = Path(write_report(out).html).read_text()
    assert "samples" in page.lower()
    assert read_claim(open_storage(out)) == json.loads((out / "experiment.json").read_text())
