"""Every block of code of README and documentation is run, or at least read by what would run it.

Recipes run as the pages show them. Those whose names begin with `slow-` do so in the slow suite;
here their commands run with tiny budgets.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_pipelines
import yaml
from bad_experiments import FINE
from pages import GUIDES, ROOT, Fenced, commands, fault_of, fenced, lines_of, prose
from recipes import Block, blocks_of, commands_of, run, write

from ld3_dist.experiment.reading import parse_experiment

BLOCKS = [block for page in GUIDES for block in fenced(page)]
RECIPES = {
    (page, block.recipe): page.relative_to(ROOT).as_posix()
    for page in GUIDES
    for block in blocks_of(page.read_text(encoding="utf-8"))
    if not block.file
}
SLOW = [key for key in RECIPES if key[1].startswith("slow-")]
QUICK = [key for key in RECIPES if key not in SLOW]
ELSEWHERE = ("standalone", "readers")
"""Marks of blocks that tests of their own run: test_schedule_standalone and test_other_readers."""

TINY = {
    "learn": ["--pairs", "2", "--epochs", "1", "--start", "log_snr", "--device", "cpu"],
    "sweep": ["--dry-run"],
    "show": [], "schema": [], "export": [], "import": [],
}  # fmt: skip
"""What makes a command cheap; a later option counts. Others run in the slow suite alone."""

ALIKE = ("slow-diffusers", "slow-first-schedule", "slow-own-model", "slow-failing")
"""Slow recipes whose commands are like those of the README: the slow suite alone runs them."""


def named(key: tuple[Path, str]) -> str:
    return f"{RECIPES[key]} {key[1]}"


def prepare(page: Path, folder: Path, name: str) -> list[Block]:
    """A folder with what a reader has: the repository's files, and a pipeline where one is named.

    Returns the page's blocks; those that are files are written.
    """
    text = page.read_text(encoding="utf-8")
    for kept in ("experiments", "results"):
        (folder / kept).symlink_to(ROOT / kept)
    blocks = blocks_of(text)
    if any("path/to/pipeline" in block.code for block in blocks if block.recipe == name):
        (folder / "path" / "to").mkdir(parents=True)
        tiny_pipelines.text(folder / "path" / "to" / "pipeline")
    if "prompts.txt" in text:
        (folder / "prompts.txt").write_text("a red cat\na blue bird\n")
    for block in blocks:
        if block.file:
            write(block, folder)
    return blocks


def play(key: tuple[Path, str], folder: Path, whole: bool) -> Iterator[tuple[Block, list[str]]]:
    """Run a recipe, with tiny budgets if not whole, and yield what has run."""
    page, name = key
    for block in prepare(page, folder, name):
        if block.file or block.recipe != name:
            continue
        if block.language == "python":
            if whole:
                run(["-c", block.code], folder, block)
                yield block, ["python"]
            continue
        for command in commands_of(block):
            kind = command[2] if len(command) > 2 else ""
            tiny = TINY.get(kind)
            if whole or tiny is not None:
                fine = (0,) if whole else (0, 1) if kind == "learn" else (0,)
                run([*command, *([] if whole else tiny or [])], folder, block, fine)
                yield block, command


@pytest.mark.parametrize("key", QUICK, ids=named)
@pytest.mark.siblings(4)
def test_a_recipe_runs(key: tuple[Path, str], tmp_path: Path) -> None:
    assert list(play(key, tmp_path, whole=True))


@pytest.mark.siblings(1)
@pytest.mark.parametrize("key", [key for key in SLOW if key[1] not in ALIKE], ids=named)
def test_a_recipe_runs_with_a_tiny_budget(key: tuple[Path, str], tmp_path: Path) -> None:
    done = list(play(key, tmp_path, whole=False))
    assert done
    for _, command in done:
        if "--out" in command and command[2] == "learn":
            assert (tmp_path / command[command.index("--out") + 1]).is_file()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("key", SLOW, ids=named)
def test_a_slow_recipe_runs_as_it_stands(key: tuple[Path, str], tmp_path: Path) -> None:
    assert list(play(key, tmp_path, whole=True))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_no_block_is_left_out(block: Fenced) -> None:
    """Python and commands belong to a recipe; YAML to an experiment; the rest does not run."""
    marked = block.mark.startswith("recipe:") or block.mark in ELSEWHERE
    if block.language == "python":
        assert marked or block.code.startswith("import ld3_dist"), f"{block}: no recipe"
        ast.parse(block.code)
    elif block.language == "console":
        assert marked or block.mark == "parsed" or only_other_programs(block), f"{block}: no mark"
    elif block.language == "yaml":
        check_yaml(block)
    else:
        assert block.language in ("text", "json"), f"{block}: a block of {block.language!r}"


def only_other_programs(block: Fenced) -> bool:
    return all(words[0] in ("pip", "make") for words in lines_of(block.code))


def check_yaml(block: Fenced) -> None:
    """A whole experiment, or sections that fit into one."""
    given = yaml.safe_load(block.code)
    base = {name: FINE[name] for name in ("models", "solvers", "nfe")}
    assert parse_experiment(base | given, str(block))


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_line_is_one(page: Path) -> None:
    """Each line that begins with `ld3-dist`, wherever it stands, is read by the real parser."""
    found = [
        words
        for block in fenced(page)
        if block.language in ("console", "text")
        for words in lines_of(block.code if block.language == "console" else only_ours(block))
    ]
    faults = [fault_of(words) for words in found if words[0] == "ld3-dist"]
    assert not any(faults), "\n".join(filter(None, faults))
    others = {words[0] for words in found if words[0] not in ("ld3-dist", "python")}
    assert others <= {"pip", "make"}
    for words in found:
        check_other_program(words)


def only_ours(block: Fenced) -> str:
    return "\n".join(line for line in block.code.splitlines() if line.startswith("ld3-dist "))


def check_other_program(words: list[str]) -> None:
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), words
    if words[0] == "pip":
        extras = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            for name in extra.split(","):
                assert re.search(rf"^{name} = \[", extras, re.M), words


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_and_options_in_prose_exist(page: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(page))
    options = {flag for command in commands().values() for p in command.params for flag in p.opts}
    options |= {"--help", "--install-completion", "--show-completion"}
    for span in spans:
        if span.startswith("ld3-dist "):
            word = span.split()[1]
            assert word in commands() or word.startswith(("-", "sweep")), f"{page.name}: {span}"
        if span.startswith(("ld3-dist ", "--")):
            for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
                assert flag in options, f"{page.name}: {span}"
        if span.startswith("make "):
            check_other_program(span.split())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["ld3-dist", "swep", "a.yaml"], "no command"),
        (["ld3-dist", "sweep", "a.yaml", "--outptu", "x"], "--outptu"),
        (["ld3-dist", "learn", "--pairs", "x", "--model", "digits", "--out", "a"], "x"),
        (["ld3-dist", "learn", "--nfe", "4"], "Missing"),
        (["ld3-dist"], "no command"),
    ],
)
def test_a_wrong_command_line_is_found(line: list[str], said: str) -> None:
    assert said in fault_of(line)
