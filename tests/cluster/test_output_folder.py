"""The experiments of an output folder: keys follow content and not paths, every version is kept,
and a lost experiment.json is made again.
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
from ld3_dist.cluster.output_folder import check_claim, claim, with_names_of
from ld3_dist.core.errors import InputError
from ld3_dist.experiment import parse_experiment
from ld3_dist.experiment.plan import Plan, content_of_conditioning
from ld3_dist.models.digits import NETWORK
from ld3_dist.models.weights import read_tensors, save_tensors
from ld3_dist.report import write_report
from ld3_dist.store.lineage import current, lineages, read_claim
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


def refused(storage: Storage) -> str:
    with pytest.raises(InputError) as caught:
        check_claim(storage)
    assert storage.url in str(caught.value)
    assert "--output" in str(caught.value)
    return str(caught.value)


def weights_at(file: Path, scale: float = 1.0) -> dict[str, Any]:
    """A model whose weights are a file; `scale` changes them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    tensors, config = read_tensors(NETWORK.file, NETWORK.kind, "")
    save_tensors(file, {name: t * scale for name, t in tensors.items()}, NETWORK.kind, config)
    return {"model": f"digits:{file}"}


def test_the_same_weights_under_another_path_are_the_same_experiment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = weights_at(tmp_path / "a" / "net.safetensors")
    out = open_storage(tmp_path / "out")
    sweep(out, changed(**SMALL | {"models": [first]}))
    table = lasting(Path(out.url))
    moved = weights_at(tmp_path / "b" / "elsewhere.safetensors")
    (tmp_path / "a" / "net.safetensors").unlink()
    before = {name: out.read_bytes(name) for name in out.list(recursive=True)}
    plan = plan_of(models=[moved])
    same = with_names_of(out, plan)
    assert [cell.id for cell in same.cells] == [f"{first['model']}/ddim/3"]
    assert same.fingerprint == plan.fingerprint
    assert same.cells[0].model.model == moved["model"]
    for file in Path(out.url, "rows").glob("baseline-*"):
        file.unlink()
    sweep(out, changed(**SMALL | {"models": [moved]}))
    pd.testing.assert_frame_equal(lasting(Path(out.url)), table, check_exact=True)
    assert set(out.list(recursive=True)) >= set(before)
    named = plan_of(models=[moved | {"name": "mine"}])
    with caplog.at_level("WARNING", "ld3_dist"):
        assert with_names_of(out, named).cells[0].id == same.cells[0].id
    assert "model mine is called" in caplog.text


def test_other_weights_of_the_same_name_have_keys_of_their_own(tmp_path: Path) -> None:
    """So their rows lie beside the old ones, in the same cell and with another teacher."""
    experiment = parse_experiment(changed(**SMALL))
    one, other = (Plan(experiment, {"analytic:mixture-2d": name}) for name in ("a", "b"))
    storage = open_storage(tmp_path / "out")
    claim(storage, one)
    assert with_names_of(storage, other) == other
    claim(storage, other)
    cell = one.cells[0]
    assert cell == other.cells[0]
    assert one.teacher_key(cell.model) != other.teacher_key(cell.model)
    keys = [plan.trial(cell, plan.points()[0]).keys for plan in (one, other)]
    keys += [tuple(key for key, *_ in plan.baselines(cell)) for plan in (one, other)]
    assert len({key for found in keys for key in found}) == sum(map(len, keys))


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


def test_every_version_is_kept_and_the_last_one_is_current(tmp_path: Path) -> None:
    storage = claimed(tmp_path / "out")
    first = plan_of()
    assert current(storage)["fingerprint"] == first.fingerprint
    claim(storage, plan_of(name="renamed", resources={"batch": 5}))  # changes no result
    assert [one["name"] for one in lineages(storage)] == ["renamed"]
    second = plan_of(nfe=[3, 4])
    claim(storage, second)
    assert {one["fingerprint"] for one in lineages(storage)} == {
        first.fingerprint,
        second.fingerprint,
    }
    assert current(storage)["settings"]["nfe"] == [3, 4]
    claim(storage, first)
    assert current(storage)["settings"]["nfe"] == [3]
    asked = current(storage)["asked"]
    assert asked["members"] == [[0, "log_snr"]]
    assert asked["baselines"] == [key for c in first.cells for key, *_ in first.baselines(c)]


def test_what_was_asked_for_stays_asked_for(tmp_path: Path) -> None:
    """A driver that is killed, and two drivers that share the work, lose nothing."""
    storage, plan = open_storage(tmp_path / "out"), plan_of()
    specs = [plan.trial(plan.cells[0], point) for point in plan.points()]
    one, other = claim(storage, plan), claim(storage, plan)
    for lineage, spec in zip((one, other), specs, strict=True):
        lineage.ask(spec)
        lineage.write(at_once=True)
    assert set(current(storage)["asked"]["trials"]) == {spec.key for spec in specs}
    assert not current(storage)["asked"]["complete"]
    other.finish()
    claim(storage, plan)
    assert current(storage)["asked"]["complete"]


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[1]", b"{}", b"\xff\xfe"])
def test_a_lost_experiment_json_is_made_again(damage: bytes | None, tmp_path: Path) -> None:
    storage, name = open_storage(tmp_path / "out"), "experiment.json"
    sweep(storage, changed(**SMALL))
    before = storage.read_bytes(name)
    storage.remove(name)
    if damage is not None:
        storage.write_bytes(name, damage)
    assert current(storage)["fingerprint"] == plan_of().fingerprint  # the latest that ran
    claim(storage, plan_of())
    assert storage.read_bytes(name) == before


def test_rows_of_an_older_format_without_any_experiment_are_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(QUICKSTART / "rows", out / "rows")
    assert "older ld3_dist" in refused(open_storage(out))


def test_a_folder_of_format_1_is_read_but_not_continued(tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(QUICKSTART, out)
    message = refused(open_storage(out))
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
