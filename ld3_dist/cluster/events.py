"""The events of a sweep."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """The state of a stage (teach, baselines, search, evaluate, score), and a line to show.

    The counts are of the stage's tasks; `gain` is the largest so far over a hand-made grid.
    `inside` is what the running tasks have done of themselves, in tasks: 1.5 of three that are half
    done. `work` and `work_left` are what this run has done, with what is inside, and what is still
    to do, in network evaluations of one sample; both are 0 where tasks are alike. `left` is a guess
    of the seconds until the stage ends."""

    stage: str
    done: int
    total: int
    running: int = 0
    failed: int = 0
    gain: float | None = None
    message: str = ""
    inside: float = 0.0
    work: float = 0.0
    work_left: float = 0.0
    left: float | None = None
