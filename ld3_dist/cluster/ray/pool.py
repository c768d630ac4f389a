"""A pool of actors that works through a queue of tasks. If an actor dies, only the task it was
running counts as failed.

At most two tasks are in flight per actor, so that none waits for the driver. Attempts are counted
per task. The task an actor is working on has a deadline. An actor that dies, overruns a deadline or
fails several times in a row is replaced. Only small records travel through the object store: a task
writes what it makes to storage itself.

Tasks go to actors that have started, never to one that still waits for room on the cluster. If a
node dies, the others take over everything, and a pool that asked for more than there is works with
what it got.

Why not Ray's own retries (max_restarts, max_task_retries, retry_exceptions of an actor)? Measured
with Ray 2.60 on one machine; `tests/cluster/test_pool.py` repeats
the first three of these observations:

  - an exception is tried again on the same process: 4 attempts, 1 pid. An actor with a broken GPU
    spends all attempts of all its tasks; here it is replaced after SICK_AFTER of them;
  - a task has no deadline. `ray.cancel(force=True)` is refused for actors, and without force it
    does not end a task that is running. That takes a clock of one's own and `ray.kill`;
  - a death charges a retry to every task in flight on the actor, also to the one that only waited
    (without retries left both fail with ActorUnavailableError);
  - tasks of an actor without room wait for it, while other actors are idle: they are bound to it
    when they are handed over;
  - attempts that Ray repeats are not reported to the driver, which could then not write them into
    the table of failures.

So Ray's retries are off, and what is left to Ray is to place actors, to notice their deaths, and to
carry results."""

from __future__ import annotations

import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import (
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from ...core.errors import InputError
from ...store.process import node_name, set_node_address, work_in, working_folder
from .. import logs
from ..logs import Logged
from .liveness import ClusterLost, room_in_words

IN_FLIGHT = 2
SICK_AFTER = 3
POLL = 0.5
ASK_AGAIN = 600.0
"""Seconds after which an actor is asked for anew if it has not started or has not loaded."""

NOTICE = 60.0
"""Seconds between two remarks that no worker has started."""


@dataclass(frozen=True)
class Task:
    """A call `function(*arguments)` on some actor; stage and item name it in messages, logs and
    failure records.
    """

    stage: str
    item: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


Call = tuple[Callable[..., Any], tuple[Any, ...]]


def plainly(task: Task) -> Call:
    """The call a worker makes for a task: the task's own."""
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


@dataclass(frozen=True)
class Waiting:
    """There are tasks but no worker for them, since `seconds`; `room` says what the cluster has."""

    seconds: float
    room: str

    @property
    def message(self) -> str:
        """In words."""
        return f"no worker has started for {self.seconds:.0f} s: {self.room}; waiting"


class Worker:
    """Runs tasks one after the other; models and pairs stay in its process between them.

    PyTorch is loaded by a call of its own. From a cold or shared disk that may take a minute, which
    is no lack of room and not the first task's time.

    Args:
        folder: to work in, the driver's.
    """

    def __init__(self, threads: int, folder: str) -> None:
        self.threads = threads
        work_in(folder)

    def where(self) -> tuple[str, int]:
        """Host name with address, and pid, for failure records."""
        set_node_address(ray.util.get_node_ip_address())
        return node_name(), os.getpid()

    def load(self) -> None:
        """Load what tasks need."""
        import torch

        torch.set_num_threads(max(self.threads, 1))

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call the task, and give the memory back that it leaves unused."""
        from ...core.memory import give_back

        try:
            return function(*arguments)
        finally:
            give_back()


_ACTOR: Any = ray.remote(max_restarts=0, max_task_retries=0)(Worker)


@dataclass
class _Slot:
    """One actor with the tasks it holds, oldest first.

    `place` is None until it has started, and tasks wait until it is `loaded`; `started` is the call
    that is waited for until then.
    """

    actor: Any
    started: Any
    loaded: bool = False
    held: deque[tuple[Any, Task]] = field(default_factory=deque)
    since: float = field(default_factory=time.monotonic)
    place: tuple[str, int] | None = None
    failures: int = 0


class Pool:
    """Up to `count` actors of the given size. Use as a context manager; leaving it kills them and
    frees their GPUs.

    Args:
        retries: attempts a task gets after its first.
        deadline: seconds a task may take; also how long the pool waits for the first worker before
            it gives up.
        call: the call a worker makes for a task.
        check: called at least every few seconds while the pool works; ends the work by raising.
        warn: called with each warning that comes with a worker's result.
        room: what the cluster has, in words, for (size of a worker, how many were asked for).
        custom: what else of the cluster's resources each actor takes.
    """

    def __init__(
        self, count: int, cpus: float, gpus: float, retries: int, deadline: float,
        call: Callable[[Task], Call] = plainly, check: Callable[[], None] = lambda: None,
        warn: Callable[[str], None] = lambda text: None,
        room: Callable[[dict[str, float], int], str] = room_in_words,
        custom: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        self.call, self.warn, self.room = call, warn, room
        self.count, self.retries, self.deadline, self.check = count, retries, deadline, check
        self.options: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "scheduling_strategy": "SPREAD",
        }
        self.options |= {"resources": dict(custom)} if custom else {}
        self.threads = int(cpus)
        self.slots: list[_Slot] = []
        self.waiting: deque[Task] = deque()
        self.attempts: dict[str, int] = {}
        self.release_idle = False
        self.bad_starts = 0
        self.idle_since = self.noticed = time.monotonic()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for slot in [] if kind is not None and issubclass(kind, ClusterLost) else self.slots:
            ray.kill(slot.actor)
        self.slots = []

    @property
    def running(self) -> int:
        """Actors at work."""
        return sum(bool(slot.held) for slot in self.slots)

    @property
    def all_fail(self) -> bool:
        """True if every worker that is there failed in its last task."""
        return all(slot.failures for slot in self.slots if slot.loaded)

    def withdraw(self, unwanted: Callable[[Task], bool]) -> int:
        """Take tasks out of the queue that no worker has yet; returns their number."""
        before = len(self.waiting)
        self.waiting = deque(task for task in self.waiting if not unwanted(task))
        return before - len(self.waiting)

    def add(self, tasks: Iterable[Task]) -> None:
        """Put tasks at the end of the queue; also while `run` is being iterated over."""
        for task in tasks:
            self.attempts.setdefault(task.item, 0)
            self.waiting.append(task)

    def run(self) -> Iterator[Done | Failed | Waiting]:
        """Work through the queue; yields what happens as it happens, and ends when nothing is left.

        Raises RuntimeError when no worker can be started at all.
        """
        while self.waiting or any(slot.held for slot in self.slots):
            self.check()
            self._fill()
            refs = [ref for slot in self.slots for ref, _ in slot.held]
            refs += [slot.started for slot in self.slots if not slot.loaded]
            ready, _ = ray.wait(refs, num_returns=1, timeout=POLL)
            for ref in ready:
                yield from self._collect(ref)
            yield from self._overdue()
            yield from self._lonely()

    def _fill(self) -> None:
        wanted = min(self.count, len(self.waiting) + self.running)
        while len(self.slots) < wanted:
            actor = _ACTOR.options(**self.options).remote(self.threads, working_folder())
            self.slots.append(_Slot(actor, actor.where.remote()))
        started = [slot for slot in self.slots if slot.loaded]
        for _ in range(IN_FLIGHT):  # one each before anyone gets a second
            for slot in started:
                if self.waiting and len(slot.held) <= min(len(s.held) for s in started) < IN_FLIGHT:
                    task = self.waiting.popleft()
                    if not slot.held:
                        slot.since = time.monotonic()
                    slot.held.append((slot.actor.run.remote(*self.call(task)), task))
        if self.release_idle and not self.waiting:
            for slot in [slot for slot in self.slots if not slot.held]:
                self.slots.remove(slot)
                ray.kill(slot.actor)

    def _collect(self, ref: Any) -> Iterator[Done | Failed]:
        slot = next(
            (s for s in self.slots if ref == s.started or any(ref == r for r, _ in s.held)), None
        )
        if slot is None:  # its actor was replaced a moment ago
            return
        if ref == slot.started:
            self._started(slot)
            return
        task = next(t for r, t in slot.held if r == ref)
        try:
            result = ray.get(ref)
        except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
            yield from self._replace(slot, f"the worker died: {_first_line(error)}", str(error))
            return
        except RayError as error:
            self._drop(slot, ref)
            cause = error.cause if isinstance(error, RayTaskError) and error.cause else error
            slot.failures += 1
            hopeless = isinstance(cause, InputError)  # trying again will not mend bad input
            yield self._fail(slot, task, f"{type(cause).__name__}: {cause}", str(error), hopeless)
            if slot.failures >= SICK_AFTER:
                yield from self._replace(slot, None)
            return
        self._drop(slot, ref)
        slot.failures = 0
        if isinstance(result, Logged):
            for warning in result.warnings:
                self.warn(warning)
            result = result.result
        yield Done(task, result, self.attempts[task.item] + 1)

    def _started(self, slot: _Slot) -> None:
        """Take note that an actor is there or has loaded, or could not.

        Its node may have died, so others are tried, a few times.
        """
        try:
            found = ray.get(slot.started)
            if slot.place is not None:
                slot.loaded, slot.since = True, time.monotonic()
                return
            host, pid = found
            logs.write(
                "note", "workers", None, message="a worker has started", worker_node=host,
                worker_pid=pid, seconds=round(time.monotonic() - slot.since, 3),
            )  # fmt: skip
            slot.place, self.bad_starts, slot.since = (host, pid), 0, time.monotonic()
            slot.started = slot.actor.load.remote()
        except RayError as error:
            self.slots.remove(slot)
            self.bad_starts += 1
            if self.bad_starts > self.count + self.retries:
                raise RuntimeError(
                    f"workers do not start, {self.bad_starts} times in a row: {_first_line(error)}"
                ) from error

    def _drop(self, slot: _Slot, ref: Any) -> None:
        slot.held = deque(pair for pair in slot.held if pair[0] != ref)
        slot.since = time.monotonic()

    def _overdue(self) -> Iterator[Failed]:
        for slot in list(self.slots):
            waited = time.monotonic() - slot.since
            if not slot.loaded and waited > ASK_AGAIN:
                yield from self._replace(slot, None)
            elif slot.held and waited > self.deadline:
                yield from self._replace(slot, f"no result after {self.deadline:.0f} s")

    def _lonely(self) -> Iterator[Waiting]:
        """Say so when tasks wait and no actor has started; give up after the deadline."""
        now = time.monotonic()
        if any(slot.place is not None for slot in self.slots):
            self.idle_since = self.noticed = now
        elif now - self.idle_since > max(self.deadline, NOTICE):
            raise RuntimeError(
                f"no worker has started for {now - self.idle_since:.0f} s: {self._room()}"
            )
        elif now - self.noticed > NOTICE:
            self.noticed = now
            waiting = Waiting(now - self.idle_since, self._room())
            logs.write("note", "workers", None, message=waiting.message)
            yield waiting

    def _room(self) -> str:
        size = {"CPU": self.options["num_cpus"], "GPU": self.options["num_gpus"]}
        return self.room(size | self.options.get("resources", {}), len(self.slots))

    def _replace(
        self, slot: _Slot, reason: str | None, trace: str | None = None
    ) -> Iterator[Failed]:
        """Kill an actor; its oldest task counts as failed (if there is a reason), the one behind it
        merely returns.
        """
        if slot not in self.slots:
            return
        self.slots.remove(slot)
        ray.kill(slot.actor)
        held, slot.held = list(slot.held), deque()
        for i, (_, task) in reversed(list(enumerate(held))):
            if i == 0 and reason:
                yield self._fail(slot, task, reason, trace)
            else:
                self.waiting.appendleft(task)

    def _fail(
        self, slot: _Slot, task: Task, reason: str, trace: str | None, hopeless: bool = False
    ) -> Failed:  # fmt: skip
        self.attempts[task.item] += 1
        final = hopeless or self.attempts[task.item] > self.retries
        if not final:
            self.waiting.append(task)
        return Failed(
            task, self.attempts[task.item], reason, trace, *(slot.place or (None, None)), final
        )


def _first_line(error: BaseException) -> str:
    text = str(error) or "".join(traceback.format_exception_only(error))
    return text.strip().splitlines()[0]
