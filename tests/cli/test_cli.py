"""The command line: help that teaches, bad input as one message and exit code 2, failures as exit
code 1.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import FakeSweep, call, elsewhere  # noqa: F401
from rich.console import Console
from schedules import coupled_schedule
from tiny_sweep import changed, write
from typer.testing import CliRunner

from ld3_dist import load_schedule
from ld3_dist.cli import app as cli
from ld3_dist.cli.display import show as show_events
from ld3_dist.core.noise import FlowMatching
from ld3_dist.experiment import load_experiment, parse_experiment
from ld3_dist.store.storage import LocalStorage

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "experiments" / "quickstart.yaml"
COMMANDS = ("sweep", "teach", "evaluate", "report", "show", "learn")


def test_help_lists_every_command() -> None:
    result = CliRunner().invoke(cli.app, ["--help"])
    assert result.exit_code == 0
    for command in COMMANDS:
        assert command in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_teaches(command: str) -> None:
    result = CliRunner().invoke(
        cli.app, [command, "--help"], env={"COLUMNS": "200", "TERM": "dumb"}
    )
    assert result.exit_code == 0
    text = " ".join(result.output.split())
    assert len(text) > 300
    registered = next(
        c for c in cli.app.registered_commands if (c.callback and c.callback.__name__) == command
    )
    assert registered.callback is not None
    first = (registered.callback.__doc__ or "").splitlines()[0].split("(")[0].strip()
    assert first[:40] in text


QUICK_RESULTS = ROOT / "results" / "quickstart"
READERS = [["status"], ["table", "--value", "eval_loss"], ["report"], ["check"]]


@pytest.mark.parametrize("command", READERS, ids=lambda command: command[0])
@pytest.mark.parametrize("name", ["experiment.json", "rows/_manifest.json"])
def test_a_file_that_the_system_does_not_give_ends_with_a_message(
    command: list[str],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(QUICK_RESULTS, folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    code, out, err = call(monkeypatch, capsys, command[0], folder, *command[1:])
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {folder / name}: Is a directory; check the path")
    read = LocalStorage.read_bytes

    def denied(storage: LocalStorage, file: str) -> bytes:
        if file == name:
            raise PermissionError(13, "Permission denied", str(folder / name))
        return read(storage, file)

    monkeypatch.setattr(LocalStorage, "read_bytes", denied)
    code, out, err = call(monkeypatch, capsys, command[0], folder, *command[1:])
    assert (code, out) == (2, "")
    assert err.startswith(f"Error: {folder / name}: Permission denied; give this user access")


def test_show_the_quickstart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(monkeypatch, capsys, "show", QUICKSTART)
    assert code == 0
    experiment = load_experiment(QUICKSTART)
    cells = [f"digits/{solver}/{nfe}" for solver in experiment.solvers for nfe in experiment.nfe]
    for part in (*cells, "fingerprint", "Network evaluations", "teach", "search", "evaluate"):
        assert part in out
    resolved = yaml.safe_load("\n".join(out.split("fingerprint")[0].splitlines()[:-1]))
    assert parse_experiment(resolved) == experiment  # what is shown can be pasted back


def test_show_says_how_presets_learn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = write(
        tmp_path, changed(learn={"clip": 2.0}, search={"grid": {"procedure": ["default", "paper"]}})
    )
    code, out, _ = call(monkeypatch, capsys, "show", file)
    assert code == 0
    (paper,) = [line for line in out.splitlines() if line.startswith("Learning, procedure paper: ")]
    for part in ("lr_noise 12.0", "batch 4", "clip 2.0", "knots_only 2"):
        assert part in paper
    assert " lr " not in paper  # it is searched
    assert "Learning, procedure default: " in out


def test_learn_one_schedule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = call(
        monkeypatch,
        capsys,
        "learn",
        "--model",
        "analytic:mixture-2d",
        "--nfe",
        4,
        "--out",
        "mine.json",
        "--pairs",
        16,
        "--teacher",
        "unipc-3/12/karras",
        "--epochs",
        3,
        "--device",
        "cpu",
    )
    assert code == 0
    assert "x better" in out
    schedule = load_schedule(tmp_path / "mine.json")
    assert (schedule.solver, schedule.nfe, len(schedule.knots)) == ("ipndm-3", 4, 5)
    assert schedule.losses["valid_loss"] <= min(
        b["valid_loss"] for b in schedule.baselines.values()
    )  # type: ignore[operator, type-var]


LEARN = (
    "learn",
    "--model",
    "analytic:mixture-2d",
    "--nfe",
    "4",
    "--out",
    "mine.json",
    "--epochs",
    "1",
)

BAD = [
    (("sweep", "missing.yaml"), ["missing.yaml", "cannot be read"]),
    (("teach", "missing.yaml"), ["missing.yaml", "cannot be read"]),
    (("evaluate", "missing.yaml"), ["missing.yaml", "cannot be read"]),
    (("show", "missing.yaml"), ["missing.yaml", "cannot be read"]),
    (("show", "mistake.yaml"), ["mistake.yaml", "unknown key 'solverz'", "did you mean 'solvers'"]),
    (("sweep", "mistake.yaml"), ["mistake.yaml", "unknown key 'solverz'"]),
    (("show", "brackets.yaml"), ["[/red]", "unknown solver"]),
    (("show", "model.yaml"), ["'digitz'", "digits"]),
    (("report", "nowhere"), ["nowhere", "no such folder"]),
    (("report", "."), ["holds no results"]),
    ((*LEARN, "--model", "digitz"), ["digitz"]),
    ((*LEARN, "--solver", "ddmi"), ["did you mean 'ddim'"]),
    ((*LEARN, "--nfe", "0"), ["nfe", "0"]),
    ((*LEARN, "--nfe", "1", "--solver", "heun"), ["nfe", "1", "heun", "2"]),
    ((*LEARN, "--nfe", "3", "--distance", "lpips"), ["16 pixels", "--upsample"]),
    ((*LEARN, "--pairs", "1"), ["--pairs 1", "give 2 to"]),
    ((*LEARN, "--teacher", "unipc-3"), ["--teacher", "'unipc-3'", "solver/NFE/grid"]),
    ((*LEARN, "--teacher", "unipc-3/20/karas"), ["'karas'", "did you mean 'karras'"]),
    ((*LEARN, "--gamma", "-1"), ["gamma", "-1", "at least 0"]),
    ((*LEARN, "--distance", "l3"), ["'l3'"]),
    ((*LEARN, "--out", "no/such/folder/mine.json"), ["--out", "does not exist"]),
    ((*LEARN, "--epochs", "0"), ["epochs", "at least 1"]),
    ((*LEARN, "--pairs", "0"), ["--pairs 0", "give 2 to"]),
    ((*LEARN, "--procedure", "papr"), ["procedure 'papr'", "did you mean 'paper'"]),
    ((*LEARN, "--procedure", "paper", "--coefficients"), ["coefficients", "procedure: default"]),
    ((*LEARN, "--checkpointing", "maybe"), ["checkpointing 'maybe'", "auto, always, never"]),
    ((*LEARN, "--start", "karas"), ["--start", "'karas'", "did you mean 'karras'"]),
    ((*LEARN, "--start", "missing.json"), ["--start", "missing.json", "no such schedule file"]),
    (
        (*LEARN, "--start", "no_schedule.json"),
        ["--start", "no_schedule.json", "not a schedule file"],
    ),
    (
        (*LEARN, "--start", "flow.json"),
        ["--start", "flow.json", "another noise schedule", "name flow", "name edm"],
    ),
    (("swep", "mistake.yaml"), ["swep"]),
    (("sweep",), ["experiment"]),
    (("sweep", "good.yaml", "--outptu", "x"), ["--outptu"]),
    ((*LEARN, "--nfe", "four"), ["--nfe"]),
]


@pytest.mark.parametrize(("arguments", "parts"), BAD, ids=[" ".join(a)[-50:] for a, _ in BAD])
@pytest.mark.siblings(12)
def test_bad_input_is_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    parts: list[str],
) -> None:
    write(tmp_path, changed(name="good"))
    write(tmp_path, changed(name="mistake") | {"solverz": ["ddim"]})
    write(tmp_path, changed(name="brackets", solvers=["[/red]"]))
    write(tmp_path, changed(name="model", models=["digitz"]))
    (tmp_path / "no_schedule.json").write_text("[1, 2")
    coupled_schedule(FlowMatching(), 4).save(tmp_path / "flow.json")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 2
    for part in parts:
        assert part in err
    assert "Traceback" not in out + err
    assert sorted(tmp_path.rglob("*")) == before


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    file = write(tmp_path, changed(nfe=[]))
    command = [sys.executable, "-m", "ld3_dist.cli", "sweep", str(file), "--output", "out"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=1200, cwd=tmp_path, check=False
    )
    assert done.returncode == 2
    assert "nfe: is empty" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("end", "failures", "expected", "say"),
    [
        (None, 0, 0, "teacher shards: 2/3"),
        (None, 2, 1, "2 tasks failed"),
        (
            RuntimeError("teacher [/pairs] could not be made"),
            0,
            1,
            "teacher [/pairs] could not be made",
        ),
        (KeyboardInterrupt(), 0, 1, "everything finished is kept"),
    ],
)
def test_exit_codes_of_a_sweep(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    end: BaseException | None,
    failures: int,
    expected: int,
    say: str,
) -> None:
    monkeypatch.setattr(
        "ld3_dist.cluster.sweep.Sweep",
        type("Fake", (FakeSweep,), {"end": end, "failures": failures}),
    )
    file = write(tmp_path, changed())
    code, out, _ = call(monkeypatch, capsys, "teach", file, "--output", tmp_path / "out")
    assert code == expected
    assert say in out
    assert "teach [bold]shard[/nonsense], attempt 1: lost; again" in out
    if end:
        assert f"ld3-dist teach {file} --output {tmp_path / 'out'}" in " ".join(out.split())


def test_bars_on_a_terminal() -> None:
    from ld3_dist.cluster.sweep import Event

    console = Console(force_terminal=True, width=160, record=True)
    events = [
        Event("search", 1, 4, 2, 0, 3.2),
        Event("search", 4, 4, 0, 1, 5.25, "trial [x] failed: NaN"),
    ]
    show_events(iter(events), console)
    text = console.export_text()
    for part in ("trials", "4/4", "1 failed", "best held-out gain 5.2x", "trial [x] failed: NaN"):
        assert part in text
