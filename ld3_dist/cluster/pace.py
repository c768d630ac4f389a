"""Time left: how fast the stages of a running sweep go on."""

from __future__ import annotations

import time
from collections import deque

from .events import Event

WINDOW = 600.0
"""Seconds over which the speed is taken."""

LEAST = 10.0
"""Seconds of a stage before its end is guessed."""


class Pace:
    """The speed of the stages of a running sweep.

    Work is counted in network evaluations where the event says them, else in tasks, with the part
    that the running ones have done of themselves. What was there before the stage began counts for
    nothing, even where the stage finds it late."""

    def __init__(self) -> None:
        self.marks: dict[str, deque[tuple[float, float]]] = {}

    def left(self, event: Event) -> float | None:
        """Seconds until the event's stage ends, None while that cannot be guessed."""
        now, work, to_do = time.monotonic(), event.work, event.work_left
        if not work and not to_do:
            work = event.done + event.failed + event.inside
            to_do = event.total - work
        marks = self.marks.setdefault(event.stage, deque())
        if not marks or now - marks[-1][0] > 1.0:
            marks.append((now, work))
        while len(marks) > 2 and now - marks[1][0] > WINDOW:
            marks.popleft()
        begin, before = marks[0]
        if now - begin < LEAST or work <= before:
            return None
        return max(to_do, 0.0) * (now - begin) / (work - before)
