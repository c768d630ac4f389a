"""The cost of a row beside its network evaluations: time on the device, and memory.

    device_seconds  seconds of the row times the devices that its task held: GPUs, or where there
                    is none CPUs, as resources.* asks for them. Half a GPU counts half.
    peak_memory     bytes. On a GPU the most that PyTorch had allocated during the task; else the
                    most that the process had resident, with the program itself (some 500 MB).
                    Null where the system cannot tell (it can on Linux).

Members that are learned packed share the time equally, and each has the memory of all.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch

from ..experiment.sections import Resources
from ..schedule.provenance import default_device

_CLEAR, _STATUS = "/proc/self/clear_refs", "/proc/self/status"


class Meter:
    """Measures a task from now on.

    asked: the resources of the experiment.
    who: whose share the task has.
    """

    def __init__(
        self, asked: Resources, who: Literal["trial", "actor"], device: str | None
    ) -> None:
        self.device = device or default_device()
        trial = who == "trial"
        gpus = asked.gpus_per_trial if trial else asked.gpus_per_actor
        cpus = asked.cpus_per_trial if trial else asked.cpus_per_actor
        self.on_gpu = self.device.startswith("cuda")
        held = (1.0 if gpus == "auto" else gpus) if self.on_gpu else cpus
        self.held = held or 1.0  # on a GPU that Ray does not know of
        self.known = _reset(self.device)

    def columns(self, seconds: float) -> dict[str, Any]:
        """The columns of a row that took so many seconds."""
        memory = _peak(self.device) if self.known else None
        return {"device_seconds": seconds * self.held, "peak_memory": memory}


def _reset(device: str) -> bool:
    """Forget earlier peaks; False where that cannot be done."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        with open(_CLEAR, "w", encoding="ascii") as file:
            file.write("5")  # resets VmHWM; see proc_pid_clear_refs(5)
    except OSError:
        return False
    return True


def _peak(device: str) -> int | None:
    """Bytes at the highest since the last reset."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration), open(_STATUS, encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    return None
