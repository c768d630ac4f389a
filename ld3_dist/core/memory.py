"""Work on many samples in parts that fit into memory: a part is halved when an allocation fails."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from typing import TypeVar

import torch

from .errors import InputError

Made = TypeVar("Made")
log = logging.getLogger("ld3_dist")

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED")
"""Words of a RuntimeError of MPS, the CPU's allocator or a CUDA library that lacks memory.

PyTorch's own OutOfMemoryError is raised by CUDA's allocator alone.
"""


def in_parts(count: int, batch: int, run: Callable[[slice], Made], name: str) -> list[Made]:
    """Call `run(part)` for slices of at most `batch` of `count` samples, in order, no gradients.

    When memory runs out, the parts are halved from there on. Raises InputError that begins with
    `name` if a single sample does not fit.
    """
    made: list[Made] = []
    done = 0
    while done < count:
        part = slice(done, min(done + batch, count))
        try:
            with torch.no_grad():
                made.append(run(part))
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            if not out_of_memory(error):
                raise
            here = part.stop - part.start
            if here < 2:
                raise InputError(
                    f"{name}: not even one sample fits into memory: use a smaller dtype"
                ) from error
            batch = here // 2
            log.warning("out of memory with %d samples at once: going on with %d", here, batch)
            continue
        done = part.stop
    return made


def out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that an allocation failed: Python's own MemoryError, PyTorch's,
    or a RuntimeError that says so in words.
    """
    if isinstance(error, RuntimeError):
        said = any(sign in str(error) for sign in OUT_OF_MEMORY)
        return said or isinstance(error, torch.OutOfMemoryError)
    return isinstance(error, MemoryError)


def give_back() -> None:
    """Hand back memory that this process holds and does not use: to the system, and to a GPU.

    glibc keeps what was freed for the thread that had it. Where each piece of work has a thread of
    its own, a process grows with all that it has ever done. Other C libraries are left alone. What
    PyTorch reserves on a GPU and does not use, no other process on it can have.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):
        log.debug("this C library has no malloc_trim")


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device.

    On CUDA these are the driver's free bytes and those that PyTorch has reserved but does not use.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(
                int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")
            )
    except (OSError, StopIteration):
        return total_memory(device) // 2


def total_memory(device: torch.device) -> int:
    """Bytes of a device's memory; of the system's for a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
