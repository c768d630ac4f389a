"""One line of the checklist."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "missing"]


@dataclass(frozen=True)
class Check:
    """The result of one check.

    area: heading that it stands under.
    name: the thing that was checked.
    status: "ok", "note" for something that does not stop an experiment, or "missing".
    detail: what was found.
    remedy: what to do about a note or something missing.
    """

    area: str
    name: str
    status: Status
    detail: str
    remedy: str = ""
