"""Time left: how fast a stage goes on, and a length of time in words."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..cluster.events import Event

WINDOW = 600.0
"""Seconds over which the speed is taken."""

LEAST = 10.0
"""Seconds of a stage before its end is guessed."""


class Pace:
    """The speed of the stages of a running sweep.

    Work is counted in tasks, with the part that the running ones have done of themselves. What was
    there before the stage began counts for nothing."""

    def __init__(self) -> None:
        self.marks: dict[str, deque[tuple[float, float]]] = {}

    def left(self, event: Event) -> float | None:
        """Seconds until the event's stage ends, None while that cannot be guessed."""
        now, work = time.monotonic(), event.done + event.failed + event.inside
        marks = self.marks.setdefault(event.stage, deque())
        if not marks or now - marks[-1][0] > 1.0:
            marks.append((now, work))
        while len(marks) > 2 and now - marks[1][0] > WINDOW:
            marks.popleft()
        begin, before = marks[0]
        if now - begin < LEAST or work <= before:
            return None
        return max(event.total - work, 0.0) * (now - begin) / (work - before)


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
