"""Experiment trackers, through Tune's callbacks: resources.callbacks of an experiment names them.

tensorboard   OUT/logs/tensorboard/<cell>/<trial key>: objective, epoch and improvement of every
              trial wandb, mlflow their own servers, set up by their own environment variables"""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.logger import TBXLoggerCallback

from ...core.errors import InputError
from ...core.text import file_name
from ...experiment.settings import Experiment
from ...store.storage import Storage

NEEDS = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}
"""The package behind each tracker; the extra of ld3_dist that brings it has the tracker's name."""


def check_trackers(experiment: Experiment) -> None:
    """Raises InputError, naming the extra, for a tracker whose package is not installed here."""
    for name in experiment.resources.callbacks:
        if find_spec(NEEDS[name]) is None:
            raise InputError(
                f"resources.callbacks: {name} needs the package {NEEDS[name]}; pip install "
                f"'ld3_dist[{name}]', "
                "or leave it out"
            )


def make_trackers(experiment: Experiment, storage: Storage) -> list[Callback]:
    """The trackers asked for."""
    made: list[Callback] = []
    for name in experiment.resources.callbacks:
        if name == "tensorboard":
            made.append(TensorBoard(storage))
        elif name == "wandb":
            from ray.air.integrations.wandb import WandbLoggerCallback

            made.append(WandbLoggerCallback(project=experiment.name))
        else:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            made.append(MLflowLoggerCallback(experiment_name=experiment.name))
    return made


class TensorBoard(TBXLoggerCallback):
    """Tune's TensorBoard writer, into the output folder: Tune's own folder is scratch.

    On an object store a trial's files are written here first, and uploaded when it ends.
    """

    def __init__(self, storage: Storage) -> None:
        super().__init__()
        self.storage = storage
        self.local = (
            tempfile.TemporaryDirectory(prefix="ld3-dist-") if storage.local_path is None else None
        )

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its callbacks for a restore we never do."""
        return {}

    def log_trial_start(self, trial: Any) -> None:
        """Open the trial's file."""
        if trial in self._trial_writer:
            self._trial_writer[trial].close()
        self._trial_writer[trial] = self._summary_writer_cls(
            str(self._folder(trial)), flush_secs=30
        )
        self._trial_result[trial] = {}

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Close it; upload it where the output folder is not one."""
        super().log_trial_end(trial, failed)
        if self.local:
            for file in self._folder(trial).rglob("*"):
                if file.is_file():
                    name = file.relative_to(self.local.name).as_posix()
                    self.storage.write_bytes(f"logs/tensorboard/{name}", file.read_bytes())

    def _folder(self, trial: Any) -> Path:
        top = (
            Path(self.local.name)
            if self.local
            else Path(str(self.storage.local_path), "logs", "tensorboard")
        )
        return top / file_name(trial.config["cell"]) / trial.config["key"]
