"""The trials of all cells as one file that optuna-dashboard opens, a study for each cell.

The file is OUT/studies.journal, in Optuna's journal format.

    optuna-dashboard OUT/studies.journal

It holds finished trials only, and a sweep never reads it: the rows are the truth, from which a
resumed run makes the file anew, so that nothing can stand in it twice. The file is replaced as a
whole, so that it is complete on every storage whenever the driver is killed. The cost of a rewrite
grows with the number of trials; so at least `EVERY` times the duration of the last one passes
before the next.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Iterable
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import TrialState, create_trial

from ...store.storage import Storage
from .proposals import Proposal

NAME = "studies.journal"
SECONDS = 10.0
EVERY = 50.0


class _Lines(BaseJournalBackend):
    """The lines of a journal, as bytes until they are written.

    Optuna reads back what it appends, and keeps a copy of every trial (17 kB). It gets only the
    studies and the first trial, without which it cannot add another: nobody asks for the others."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.read_back: list[dict[str, Any]] = []
        self.trials = 0

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self.read_back[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        for log in logs:
            line = json.dumps(log, separators=(",", ":"))
            self.lines.append(line.encode() + b"\n")
            is_trial = "study_name" not in log
            if not is_trial or self.trials == 0:
                self.read_back.append(json.loads(line))  # as it would come back from a file
            self.trials += is_trial


class StudyMirror:
    """Copies of the cells' studies, on their way into the file."""

    def __init__(self, storage: Storage) -> None:
        self.storage, self.memory = storage, _Lines()
        self.journal = JournalStorage(self.memory)
        self.studies: dict[str, optuna.Study] = {}
        self.new = False
        self.next = time.monotonic() + SECONDS

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher for a restore we never do."""
        return {}

    def __call__(self, proposal: Proposal, new: bool) -> None:
        """A finished trial; `new` if it finished in this run. Writes the file when it is time."""
        outcome, cell = proposal.outcome, proposal.spec.cell.id
        assert outcome is not None
        numbers = {"trial": proposal.spec.key, "round": proposal.round}
        if cell not in self.studies:
            self.studies[cell] = optuna.create_study(
                study_name=cell, direction="minimize", storage=self.journal
            )
        good = math.isfinite(outcome.objective)
        losses = [loss if math.isfinite(loss) else None for loss in outcome.valid]
        self.studies[cell].add_trial(
            create_trial(
                state=TrialState.COMPLETE if good else TrialState.FAIL,
                value=outcome.objective if good else None,
                params=proposal.params,
                distributions=proposal.distributions,
                user_attrs={
                    "status": outcome.status,
                    "valid_losses": losses,
                    **numbers,
                },
            )
        )
        self.new = self.new or new
        if time.monotonic() >= self.next:
            self.write()

    def write(self) -> None:
        """Replace the file, unless it has it all; a file that cannot be written is merely out of
        date.
        """
        if not self.new and self.storage.exists(NAME):
            return
        clock = time.monotonic()
        body = b"".join(self.memory.lines)
        with contextlib.suppress(OSError):
            self.storage.write_bytes(NAME, body)
            self.new = False
        self.next = time.monotonic() + max(SECONDS, EVERY * (time.monotonic() - clock))
