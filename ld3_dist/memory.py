"""As much at once as memory holds: work on many samples, in parts that get smaller when an allocation fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import torch

from .core.errors import InputError
from .core.objective import out_of_memory

Made = TypeVar("Made")
log = logging.getLogger("ld3_dist")


def in_parts(count: int, batch: int, run: Callable[[slice], Made], name: str) -> list[Made]:
    """`run(part)` for slices of at most `batch` of `count` samples, in order; without gradients.

    Where memory runs out, half as many go on at once. Raises InputError, about `name`, where one sample does not fit.
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
                raise InputError(f"{name}: not even one sample fits into memory: use a smaller dtype") from error
            batch = here // 2
            log.warning("out of memory with %d samples at once: going on with %d", here, batch)
            continue
        done = part.stop
    return made
