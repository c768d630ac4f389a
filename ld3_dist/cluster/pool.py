"""A pool of actors working through a queue of tasks; nothing a dying worker does loses more than its current tasks.

At most two tasks are in flight per actor, so that none waits for the driver. Attempts are counted per task; the task at
the head of an actor has a deadline; an actor that dies, overruns a deadline or fails several times in a row is
replaced. Only
small records travel through the object store: what a task makes, it writes to storage itself.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from ..core.errors import InputError

IN_FLIGHT = 2
SICK_AFTER = 3
POLL = 0.5
START_DEADLINE = 600.0


@dataclass(frozen=True)
class Task:
    """A call `function(*arguments)` on some actor; `item` names it in messages and failure records."""

    item: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


Call = tuple[Callable[..., Any], tuple[Any, ...]]


def plainly(task: Task) -> Call:
    """What a worker is asked to do for a task: itself."""
    return task.function, task.arguments


@dataclass(frozen=True)
class Done:
    """A task that went well."""

    task: Task
    result: Any
    attempts: int


@dataclass(frozen=True)
class Failed:
    """An attempt that went wrong; `final` when there will be no other."""

    task: Task
    attempt: int
    reason: str
    traceback: str | None
    node: str | None
    pid: int | None
    final: bool


@ray.remote(max_restarts=0, max_task_retries=0)
class Worker:
    """Runs tasks one after the other; models and pairs stay in its process between them."""

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(max(threads, 1))

    def where(self) -> tuple[str, int]:
        """Host and pid, for failure records."""
        return socket.gethostname(), os.getpid()

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call the task."""
        return function(*arguments)


@dataclass
class _Slot:
    """One actor with the tasks it holds, oldest first."""

    actor: Any
    started: Any
    held: deque[tuple[Any, Task]] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)
    place: tuple[str | None, int | None] = (None, None)
    failures: int = 0


class Pool:
    """`count` actors of the given size. Use as a context manager; leaving it kills them and frees their GPUs."""

    def __init__(
        self, count: int, cpus: float, gpus: float, retries: int, deadline: float,
        call: Callable[[Task], Call] = plainly,
    ) -> None:  # fmt: skip
        self.call = call
        self.count, self.retries, self.deadline = count, retries, deadline
        self.options = {"num_cpus": cpus, "num_gpus": gpus, "scheduling_strategy": "SPREAD"}
        self.threads = int(cpus)
        self.slots: list[_Slot] = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self.slots:
            ray.kill(slot.actor)
        self.slots = []

    def run(self, tasks: list[Task]) -> Iterator[Done | Failed]:
        """Work through the tasks; yields what happens as it happens, and ends when none is left."""
        waiting, attempts = deque(tasks), dict.fromkeys((task.item for task in tasks), 0)
        while waiting or any(slot.held for slot in self.slots):
            self._fill(waiting)
            refs = [ref for slot in self.slots for ref, _ in slot.held]
            ready, _ = ray.wait(refs, num_returns=1, timeout=POLL)
            for ref in ready:
                yield from self._collect(ref, waiting, attempts)
            yield from self._overdue(waiting, attempts)

    def _fill(self, waiting: deque[Task]) -> None:
        while len(self.slots) < min(self.count, len(waiting) + sum(bool(s.held) for s in self.slots)):
            actor = Worker.options(**self.options).remote(self.threads)
            self.slots.append(_Slot(actor, actor.where.remote()))
        for _ in range(IN_FLIGHT):  # one each before anyone gets a second
            for slot in self.slots:
                if waiting and len(slot.held) < IN_FLIGHT and len(slot.held) <= min(len(s.held) for s in self.slots):
                    task = waiting.popleft()
                    if not slot.held:
                        slot.since = time.monotonic()
                    slot.held.append((slot.actor.run.remote(*self.call(task)), task))

    def _collect(self, ref: Any, waiting: deque[Task], attempts: dict[str, int]) -> Iterator[Done | Failed]:
        slot = next((s for s in self.slots if any(ref == r for r, _ in s.held)), None)
        if slot is None:  # its actor was replaced a moment ago
            return
        task = next(t for r, t in slot.held if r == ref)
        try:
            result = ray.get(ref)
        except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
            yield from self._replace(slot, f"the worker died: {_first_line(error)}", waiting, attempts, str(error))
            return
        except RayError as error:
            self._drop(slot, ref)
            cause = error.cause if isinstance(error, RayTaskError) and error.cause else error
            slot.failures += 1
            hopeless = isinstance(cause, InputError)  # trying again will not mend bad input
            yield self._fail(slot, task, f"{type(cause).__name__}: {cause}", str(error), waiting, attempts, hopeless)
            if slot.failures >= SICK_AFTER:
                yield from self._replace(slot, None, waiting, attempts)
            return
        self._drop(slot, ref)
        slot.failures = 0
        yield Done(task, result, attempts[task.item] + 1)

    def _drop(self, slot: _Slot, ref: Any) -> None:
        slot.held = deque(pair for pair in slot.held if pair[0] != ref)
        slot.since = time.monotonic()

    def _overdue(self, waiting: deque[Task], attempts: dict[str, int]) -> Iterator[Failed]:
        for slot in list(self.slots):
            if slot.place == (None, None) and ray.wait([slot.started], timeout=0)[0]:
                try:
                    slot.place = ray.get(slot.started)
                    slot.since = time.monotonic()  # the start-up is not the task's time
                except RayError as error:
                    yield from self._replace(slot, f"the worker did not start: {_first_line(error)}", waiting, attempts)
                    continue
            limit = self.deadline if slot.place != (None, None) else self.deadline + START_DEADLINE
            if slot.held and time.monotonic() - slot.since > limit:
                yield from self._replace(slot, f"no result after {limit:.0f} s", waiting, attempts)

    def _replace(
        self, slot: _Slot, reason: str | None, waiting: deque[Task], attempts: dict[str, int], trace: str | None = None
    ) -> Iterator[Failed]:
        """Kill an actor; its oldest task counts as failed (if there is a reason), the one behind it merely returns."""
        if slot not in self.slots:
            return
        self.slots.remove(slot)
        ray.kill(slot.actor)
        for i, (_, task) in enumerate(slot.held):
            if i == 0 and reason:
                yield self._fail(slot, task, reason, trace, waiting, attempts)
            else:
                waiting.appendleft(task)
        slot.held.clear()

    def _fail(
        self, slot: _Slot, task: Task, reason: str, trace: str | None, waiting: deque[Task], attempts: dict[str, int],
        hopeless: bool = False,
    ) -> Failed:  # fmt: skip
        attempts[task.item] += 1
        final = hopeless or attempts[task.item] > self.retries
        if not final:
            waiting.append(task)
        return Failed(task, attempts[task.item], reason, trace, *slot.place, final)


def _first_line(error: BaseException) -> str:
    text = str(error) or "".join(traceback.format_exception_only(error))
    return text.strip().splitlines()[0]
