"""The terminal that all commands write to."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

console = Console()


def say(text: str, style: str | None = None) -> None:
    """Print a line as it is: no markup in it, no wrapping."""
    console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def warn(head: str, text: str, colour: str = "yellow") -> None:
    """Print a line that begins with a coloured word."""
    console.print(f"[{colour}]{head}:[/{colour}] {escape(text)}", highlight=False, soft_wrap=True)
