"""The terminal that all commands write to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape

from ..core.errors import InputError

console = Console()


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup in it, no wrapping."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def warn(head: str, text: str, colour: str = "yellow") -> None:
    """Print a line that begins with a coloured word."""
    console.print(f"[{colour}]{head}:[/{colour}] {escape(text)}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def option(name: str) -> Iterator[None]:
    """Put the name of an option in front of the messages of a block."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def duration(seconds: float) -> str:
    """A length of time in its two largest units: 2 d 3 h, 4 min 10 s."""
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
        elif parts:
            break
    return " ".join(parts[:2])
