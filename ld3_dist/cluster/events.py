"""What a sweep tells whoever runs it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """What happened: `stage` (teach, baselines, search, evaluate), counts so far, and a line for
    the log.
    """

    stage: str
    done: int
    total: int
    running: int = 0
    failed: int = 0
    gain: float | None = None
    message: str = ""
