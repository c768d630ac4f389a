"""Recipes of a Markdown page: code blocks under a comment that says what to do with them.

<!-- recipe: NAME, file: F -->    the block below is written to the file F
<!-- recipe: NAME, append: F -->  it is added to the file F
<!-- recipe: NAME, run -->        it is run: Python as a script, `console` as commands
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import warm_python

ROOT = Path(__file__).parents[2]
MARK = re.compile(r"^<!-- *recipe:(.*?)-->[ \t]*$", re.M)
FENCE = re.compile(r"\s*^```(\w+)\n(.*?)^```[ \t]*$", re.M | re.S)
ACTION = re.compile(r"(?P<name>[\w-]+), *(?:(?P<how>file|append): *(?P<file>[\w./-]+)|run)")
PROGRAMS = {"ld3-dist": ["-m", "ld3_dist.cli"], "python": []}
"""What commands may call, as arguments of this Python."""


@dataclass(frozen=True)
class Block:
    """A code block: its recipe, its language, the file it becomes ("" for one that runs).

    append: it is added to that file.
    """

    recipe: str
    language: str
    file: str
    code: str
    line: int
    append: bool = False


def blocks_of(page: str) -> list[Block]:
    """The marked blocks of a page, in its order.

    Raises ValueError, with the line, for a comment of another form or one without a block below.
    """
    found = []
    for mark in MARK.finditer(page):
        line = page.count("\n", 0, mark.start()) + 1
        action = ACTION.fullmatch(mark[1].strip())
        fence = FENCE.match(page, mark.end())
        if not action or not fence:
            raise ValueError(f"line {line}: {mark[0]!r} is not a recipe with a block below it")
        if not action["file"] and fence[1] not in ("python", "console"):
            raise ValueError(f"line {line}: blocks of {fence[1]} do not run; give a file")
        file, append = action["file"] or "", action["how"] == "append"
        found.append(Block(action["name"], fence[1], file, fence[2], line, append))
    return found


def carry_out(blocks: list[Block], folder: Path) -> None:
    """Write and run the blocks of one recipe in a folder; AssertionError where a run fails."""
    for block in blocks:
        if block.file:
            write(block, folder)
        elif block.language == "python":
            run(["-c", block.code], folder, block)
        else:
            for command in commands_of(block):
                run(command, folder, block)


def write(block: Block, folder: Path) -> None:
    """Write the file of a block, or add to it."""
    target = folder / block.file
    target.parent.mkdir(parents=True, exist_ok=True)
    before = target.read_text(encoding="utf-8") if block.append else ""
    target.write_text(before + block.code, encoding="utf-8")


def commands_of(block: Block) -> list[list[str]]:
    """The lines of a console block as arguments of Python; a line may end in a backslash."""
    commands = []
    for line in block.code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words:
            assert words[0] in PROGRAMS, (
                f"line {block.line}: {words[0]} is not one of {[*PROGRAMS]}"
            )
            commands.append([*PROGRAMS[words[0]], *words[1:]])
    return commands


def run(arguments: list[str], folder: Path, block: Block, fine: tuple[int, ...] = (0,)) -> None:
    """Run Python in the folder; AssertionError with its messages for another code than `fine`."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = warm_python.run(
        arguments, folder, os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode in fine, (
        f"recipe {block.recipe}, line {block.line}: code {done.returncode}\n"
        f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
