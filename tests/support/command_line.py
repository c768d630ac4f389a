"""Calls of the command line in this process, and a sweep that does nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ld3_dist.cli import app as cli
from ld3_dist.cli import show as showing


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for module in (cli, showing):
        monkeypatch.setattr(module, "console", Console(width=200))


def exit_code(patch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the entry point in this process; its exit code."""
    patch.setattr(sys, "argv", ["ld3-dist", *map(str, arguments)])
    patch.setattr(cli.signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    return code if isinstance(code, int) else int(code is not None)


def call(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the entry point."""
    code = exit_code(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    return code, out, err


class FakeSweep:
    """Stands in for a sweep: some events, then an end of its own."""

    end: BaseException | None = None
    failures = 0

    def __init__(self, *_: object) -> None:
        self.failures = type(self).failures

    def run(self) -> Iterator[Any]:
        from ld3_dist.cluster.sweep import Event

        yield Event("teach", 0, 3, running=1)
        yield Event(
            "teach", 2, 3, failed=1, message="teach [bold]shard[/nonsense], attempt 1: lost; again"
        )
        if self.end:
            raise self.end
