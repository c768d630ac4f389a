"""Damage to every kind of file that a sweep leaves: `check` names it, the next sweep repairs it.

The sweeps run in this process, without Ray, each task after the other.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from forked_sweeps import SMALL, sweep
from slowly import few
from tiny_sweep import changed, lasting
from typer.testing import CliRunner

from ld3_dist.cli.app import app
from ld3_dist.schedule.file import load_schedule
from ld3_dist.schedule.provenance import provenance
from ld3_dist.store.opening import open_storage
from ld3_dist.tasks.check import Finding, check

KINDS = {
    "experiment": "experiment.json",
    "trial": "rows/[!b]*.parquet",
    "baselines": "rows/baseline*.parquet",
    "schedule": "schedules/*.json",
    "evaluation": "evaluations/[!bt]*.parquet",
    "evaluation of a grid": "evaluations/baseline*.parquet",
    "losses": "losses/[!t]*.parquet",
    "evaluation of a teacher": "evaluations/teacher*.parquet",
    "shard": "pairs/*/*.safetensors",
    "manifest": "pairs/*/manifest.json",
}

Damage = Callable[[Path], object]


def _garbage(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\0garbage\xff" * 9)


def _another(file: Path) -> None:
    """Another file of the same kind, or where there is none, of the nearest."""
    siblings = [f for f in file.parent.glob(f"*{file.suffix}") if f != file]
    siblings += [f for top in file.parents[:3] for f in sorted(top.rglob("*.parquet"))]
    file.write_bytes(siblings[0].read_bytes())


DAMAGES: dict[str, Damage] = {
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-20]),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "garbage appended": _garbage,
    "deleted": lambda file: file.unlink(),
    "another's": _another,
    "empty": lambda file: file.write_bytes(b""),
    "of another format": lambda file: file.write_bytes(b'["what is this"]'),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which a sweep is finished; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD3_DIST_COMMIT", "none")  # asking git takes as long as a sweep
        provenance.cache_clear()
        folder = tmp_path_factory.mktemp("finished") / "out"
        sweep(open_storage(folder), changed(**SMALL))
        shutil.rmtree(folder / "parts")
        yield folder
    provenance.cache_clear()  # the tests that follow have a commit again


def findings(folder: Path) -> list[Finding]:
    return list(check(open_storage(folder)))


def test_nothing_is_wrong_in_a_finished_folder(finished: Path) -> None:
    assert findings(finished) == []
    done = CliRunner().invoke(app, ["check", str(finished)])
    assert done.exit_code == 0
    assert "everything is well" in done.stdout


def harm(out: Path, kind: str, damage: str) -> tuple[Path, bytes]:
    """Damage the first file of a kind; returns the file and its bytes before."""
    file = sorted(out.glob(KINDS[kind]))[0]
    before = file.read_bytes()
    DAMAGES[damage](file)
    return file, before


def named(out: Path, file: Path) -> bool:
    """True if `check` names the file, or the folder that it lies in."""
    name = file.relative_to(out).as_posix()
    stems = [name, name.rpartition("/")[0] or name]
    return any(finding.file in stems for finding in findings(out))


def repaired(out: Path, finished: Path) -> None:
    """The next sweep makes the folder whole again."""
    sweep(open_storage(out), changed(**SMALL))
    shutil.rmtree(out / "parts", ignore_errors=True)
    assert findings(out) == []
    pd.testing.assert_frame_equal(lasting(out), lasting(finished), check_exact=True)


SAME_BYTES = ("schedule", "shard", "manifest", "experiment")
"""Kinds of files that are made again byte by byte."""


ALONE = ("deleted", "another's")
"""Damages that hide each other where several files have them."""


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage not in ALONE])
def test_damage_to_every_kind_is_named_at_once(damage: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    harmed = {kind: harm(out, kind, damage)[0] for kind in KINDS}
    told = {finding.file for finding in findings(out)}
    for kind, file in harmed.items():
        name = file.relative_to(out).as_posix()
        assert told & {name, name.rpartition("/")[0] or name}, kind


@pytest.mark.parametrize("damage", few(DAMAGES, ALONE))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.siblings(6)
def test_damage_is_named(kind: str, damage: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    file, _ = harm(out, kind, damage)
    assert findings(out), "the damage is not noticed"
    if (kind, damage) != ("trial", "deleted"):  # known from its schedules alone
        assert named(out, file)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.siblings(3)
def test_damage_to_every_kind_is_repaired_at_once(
    damage: str, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    harmed = {kind: harm(out, kind, damage) for kind in KINDS}
    repaired(out, finished)
    for kind in SAME_BYTES:
        file, before = harmed[kind]
        assert file.read_bytes() == before, kind


@pytest.mark.slow  # the tests above do the same with all kinds in one sweep
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_repaired(kind: str, damage: str, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    file, before = harm(out, kind, damage)
    repaired(out, finished)
    if kind in SAME_BYTES:
        assert file.read_bytes() == before


def test_a_lost_schedule_whose_evaluation_is_gone_too(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for file in (*out.glob("schedules/*.json"), *out.glob("evaluations/[!bt]*.parquet")):
        file.unlink()
    sweep(open_storage(out), changed(**SMALL))
    shutil.rmtree(out / "parts", ignore_errors=True)
    assert findings(out) == []
    pd.testing.assert_frame_equal(lasting(out), lasting(finished), check_exact=True)


def test_parts_that_do_not_fit_are_made_again(finished: Path, tmp_path: Path) -> None:
    """Parts of another schedule, and damaged ones, do not count."""
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    for file in out.glob("evaluations/*.parquet"):
        file.unlink()
    sweep(open_storage(out), changed(**SMALL))
    parts = sorted((out / "parts").rglob("*.safetensors"))
    assert len(parts) >= 2
    assert {finding.file for finding in findings(out)} == {
        part.relative_to(out).as_posix() for part in parts
    }
    whole = [part.read_bytes() for part in parts]
    for file in out.glob("evaluations/*.parquet"):
        file.unlink()
    for part, other in zip(parts, whole[1:] + whole[:1], strict=True):
        part.write_bytes(other)
    parts[0].write_bytes(whole[0][:-4])
    sweep(open_storage(out), changed(**SMALL))
    assert [part.read_bytes() for part in parts] == whole
    pd.testing.assert_frame_equal(lasting(out), lasting(finished), check_exact=True)


def test_learned_coefficients_are_learned_again(tmp_path: Path) -> None:
    """They stand in no row, so that a lost schedule takes its trial."""
    out, learn = tmp_path / "out", {"epochs": 2, "batch": 8, "coefficients": True}
    experiment = changed(**SMALL | {"learn": learn})
    sweep(open_storage(out), experiment)
    shutil.rmtree(out / "parts")
    (file, *_) = sorted(out.glob("schedules/*.json"))
    before, table = file.read_bytes(), lasting(out)
    file.unlink()
    assert ["learns its trial" in finding.remedy for finding in findings(out)] == [True]
    sweep(open_storage(out), experiment)
    again = load_schedule(file)
    file.with_suffix(".old").write_bytes(before)
    old = load_schedule(file.with_suffix(".old"))
    assert torch.equal(again.tableau.outputs, old.tableau.outputs)
    pd.testing.assert_frame_equal(lasting(out), table, check_exact=True)


def test_a_schedule_with_other_coefficients_is_noticed(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (file, *_) = sorted(out.glob("schedules/*.json"))
    body = json.loads(file.read_text())
    body["outputs"][1][0] *= 1.001
    file.write_text(json.dumps(body))
    (finding,) = findings(out)
    assert "do not follow from its knots" in finding.problem


def test_strays_are_named(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    strays = {
        "failures/search-x-1-a.parquet": b"PAR1",
        "rows/notes.txt": b"mine",
        "schedules/none-0.json": b"{}",
        "samples/x.safetensors": b"",
        "studies.journal": b"{",
        "checkpoints/x.safetensors": b"",
        "rows/.tmp~elsewhere~1~s~0~x": b"",
    }
    for name, data in strays.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(data)
    assert {finding.file for finding in findings(out)} == set(strays)


def test_an_unreadable_file_is_named_once(
    finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "rows" / "torn.parquet").write_bytes(b"PAR1 torn")
    done = CliRunner().invoke(app, ["check", str(out)])
    assert done.exit_code == 1
    assert done.output.replace("\n", "").count("rows/torn.parquet") == 1
    assert not caplog.records


def test_the_command(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    (out / "experiment.json").write_bytes(b"{")
    done = CliRunner().invoke(app, ["check", str(out), "--json"])
    assert done.exit_code == 1
    body = json.loads(done.stdout)
    assert body["folder"] == str(out)
    (finding,) = body["findings"]
    assert finding["file"] == "experiment.json"
    assert "damaged" in finding["problem"]
    assert "next sweep" in finding["remedy"]
    assert "1 finding" in CliRunner().invoke(app, ["check", str(out)]).stdout
