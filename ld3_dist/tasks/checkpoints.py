"""Checkpoints of trials, from which a killed one goes on: OUT/checkpoints/<task>.safetensors.

    state.<name>           the run's snapshot after an epoch (`Progress.snapshot`)
    train, valid [n, K]    the curves so far; of a family [n, F K], one NFE after the other

The header holds the rest: the epoch, when the trial began and the seconds it has taken, a
fingerprint of the trial and of the program, and a digest of all of it. A row learned with
interruptions equals one learned without, so a checkpoint serves only the trial and the version that
wrote it. One that cannot be read, or belongs to another, is left alone, and the trial begins anew.
There is one file per trial, replaced whole and written through the sweep's own storage. Tune's own
checkpoints are not used: they are scratch of the driver's machine.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..core.errors import InputError
from ..core.learning.family import FamilyProgress
from ..core.learning.learn import Progress
from ..experiment.plan import TrialSpec, digest
from ..schedule.provenance import now, provenance
from ..store.pairs import content_digest
from ..store.storage import Storage
from ..store.tables import read_records

FOLDER = "checkpoints"
FORMAT = 2
_KEY = "ld3_dist"

Note = Callable[[str], None]


@dataclass
class Course:
    """The part of a trial that is done.

    seconds: taken by the processes before this one.
    train, valid: losses [K] of every epoch, the start's first; of a family [F K], one NFE after the
        other.
    nfes: of a family.
    state: the run's snapshot after the last epoch; None where there is nothing to go on from.
    """

    started: str = field(default_factory=now)
    seconds: float = 0.0
    train: list[Tensor] = field(default_factory=list)
    valid: list[Tensor] = field(default_factory=list)
    state: dict[str, Tensor] | None = None
    nfes: tuple[int, ...] = ()

    @property
    def epoch(self) -> int:
        """The last epoch done."""
        return len(self.valid) - 1

    @property
    def resume(self) -> tuple[int, dict[str, Tensor]] | None:
        """The epoch and the state that `learn` goes on from."""
        return None if self.state is None else (self.epoch, self.state)

    def add(self, progress: Progress) -> None:
        """Append an epoch."""
        if isinstance(progress, FamilyProgress):
            self.nfes = progress.nfes
            self.train.append(progress.each_train.flatten())
            self.valid.append(progress.each_valid.flatten())
            return
        self.train.append(progress.train)
        self.valid.append(progress.valid)

    def at(self, nfe: int) -> Course:
        """The course of one NFE of a family; itself if there is none."""
        if not self.nfes:
            return self
        f, F = self.nfes.index(nfe), len(self.nfes)
        train, valid = ([v.view(F, -1)[f] for v in part] for part in (self.train, self.valid))
        return Course(self.started, self.seconds, train, valid)


class Checkpoints:
    """The checkpoint of one trial. A storage that cannot take it costs the trial nothing but the
    checkpoint.

    every: seconds between two writes; 0 is after every epoch.  note: told what a log should know.
    """

    def __init__(self, storage: Storage, spec: TrialSpec, every: float, note: Note) -> None:
        self.storage, self.spec, self.every, self.note = storage, spec, every, note
        self.name = name_of(spec.task)
        self.fingerprint = digest([spec.key, spec.keys, provenance()])
        self.began = self.last = time.monotonic()

    def elapsed(self, course: Course) -> float:
        """Seconds the trial has taken so far, in all its processes."""
        return course.seconds + time.monotonic() - self.began

    def load(self) -> Course:
        """Read what an earlier process left; a new beginning where it left nothing of use."""
        try:
            return self._parse(self.storage.read_bytes(self.name))
        except FileNotFoundError:
            return Course()
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            self.note(
                f"{self.storage.address(self.name)} is not used: {error}; the trial begins anew"
            )
            return Course()

    def keep(self, course: Course, progress: Progress) -> None:
        """Write where the trial stands, if it is time and there is more to come."""
        if progress.epoch == 0 or progress.epoch >= self.spec.config.epochs or self._early():
            return
        state = progress.snapshot()
        if not state["active"].numel():
            return
        tensors = {f"state.{name}": value.contiguous() for name, value in state.items()}
        tensors |= {"train": torch.stack(course.train), "valid": torch.stack(course.valid)}
        header = {"format": FORMAT, "fingerprint": self.fingerprint, "digest": ""}
        header |= {
            "epoch": progress.epoch,
            "started": course.started,
            "seconds": self.elapsed(course),
        }
        header["digest"] = content_digest(header, tensors)
        try:
            self.storage.write_bytes(self.name, save_tensors(tensors, {_KEY: json.dumps(header)}))
        except OSError as error:
            self.note(f"no checkpoint after epoch {progress.epoch}: {error}")
        self.last = time.monotonic()

    def remove(self) -> None:
        """The trial has its rows. One that cannot be removed goes when the sweep is resumed."""
        try:
            self.storage.remove(self.name)
        except OSError as error:
            self.note(f"{self.storage.address(self.name)} is left behind: {error}")

    def _early(self) -> bool:
        return time.monotonic() - self.last < self.every

    def _parse(self, data: bytes) -> Course:
        """Raises InputError, or what safetensors and JSON raise, for anything but a checkpoint of
        this trial.
        """
        tensors = load_tensors(data)
        header = json.loads(_metadata(data)[_KEY])
        if header["format"] != FORMAT:
            raise InputError(f"it has format {header['format']}, not {FORMAT}")
        if header["fingerprint"] != self.fingerprint:
            raise InputError("it belongs to another trial or another version")
        if header["digest"] != content_digest({**header, "digest": ""}, tensors):
            raise InputError("its content does not match its digest")
        state = {
            name.removeprefix("state."): v
            for name, v in tensors.items()
            if name.startswith("state.")
        }
        train, valid = list(tensors["train"]), list(tensors["valid"])
        seconds = float(header["seconds"])
        if (
            len(valid) != header["epoch"] + 1
            or len(train) != len(valid)
            or not math.isfinite(seconds)
        ):
            raise InputError(
                f"it ends after epoch {header['epoch']} but has curves of {len(valid)} epochs"
            )
        return Course(str(header["started"]), seconds, train, valid, state)


def name_of(task: str) -> str:
    """The checkpoint of a task."""
    return f"{FOLDER}/{task}.safetensors"


def remove_finished(storage: Storage) -> list[str]:
    """Remove the checkpoints of tasks whose rows are there; returns their names.

    They are left where a process died between the two writes. The rows of a task that failed do
    not count: it is tried again, from its checkpoint.
    """
    removed = []
    for name in storage.list(FOLDER):
        task = name.removeprefix(f"{FOLDER}/").removesuffix(".safetensors")
        rows = read_records(storage, "rows", task)
        if rows and not any(row["status"] == "failed" for row in rows):
            storage.remove(name)
            removed.append(name)
    return removed


def _metadata(data: bytes) -> dict[str, str]:
    """The header of a safetensors file: its length in eight bytes, then JSON."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length])["__metadata__"]
