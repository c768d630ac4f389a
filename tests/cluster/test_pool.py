"""The pool of actors on a real local Ray: workers that die, hang or go sick; attempts counted per
task.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ld3_dist.core.errors import InputError


@pytest.fixture(autouse=True)
def cluster(local_ray: None) -> Iterator[None]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import the tests
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def make_pool(count: int = 1, retries: int = 2, deadline: float = 60.0, cpus: float = 0.5) -> Any:
    from ld3_dist.cluster.ray.pool import Pool

    return Pool(count, cpus, 0, retries, deadline)


def once(mark: Path) -> bool:
    """True for the first caller."""
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def work(
    pool: Any, tasks: list[tuple[str, Any, tuple[Any, ...]]]
) -> tuple[dict[str, Any], list[Any]]:
    """Results by item, and the failed attempts."""
    from ld3_dist.cluster.ray.pool import Done, Failed, Task

    pool.add(Task("teach", item, function, arguments) for item, function, arguments in tasks)
    with pool:
        seen = list(pool.run())
    done = {outcome.task.item: outcome for outcome in seen if isinstance(outcome, Done)}
    return done, [outcome for outcome in seen if isinstance(outcome, Failed)]


@pytest.mark.slow  # test_workers_that_die_or_run_out_of_memory
def test_a_dead_worker_costs_its_task_one_attempt_and_the_one_behind_it_none(
    tmp_path: Path,
) -> None:
    def die_once(mark: Path) -> int:
        if once(mark):
            os._exit(9)
        return os.getpid()

    tasks = [
        ("first", die_once, (tmp_path / "dead",)),
        *((f"after{i}", os.getpid, ()) for i in range(3)),
    ]
    done, failed = work(make_pool(), tasks)
    assert {item: outcome.attempts for item, outcome in done.items()} == {
        "first": 2, "after0": 1, "after1": 1, "after2": 1,
    }  # fmt: skip
    (death,) = failed
    assert death.task.item == "first"
    assert "the worker died" in death.reason
    assert death.pid
    assert not death.final


def test_a_task_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    def hang_once(mark: Path) -> str:
        while once(mark):
            time.sleep(1000)
        return "came through"

    done, failed = work(
        make_pool(deadline=3.0),
        [("hangs", hang_once, (tmp_path / "hung",)), ("next", os.getpid, ())],
    )
    assert done["hangs"].result == "came through"
    assert done["hangs"].attempts == 2
    assert done["next"].attempts == 1
    assert [f.reason for f in failed] == ["no result after 3 s"]


def test_a_sick_worker_is_replaced_and_attempts_run_out(tmp_path: Path) -> None:
    def sick(home: Path) -> int:
        """Fails for ever in the first process that runs it, as one with a broken GPU would."""
        if once(home):
            home.write_text(str(os.getpid()))
        if home.read_text() == str(os.getpid()):
            raise RuntimeError("CUDA error, says the test")
        return os.getpid()

    def never() -> None:
        raise RuntimeError("not even elsewhere")

    tasks = [(f"sick{i}", sick, (tmp_path / "home",)) for i in range(4)]
    done, failed = work(make_pool(retries=2), tasks)
    assert set(done) == {item for item, _, _ in tasks}
    assert len({failure.pid for failure in failed}) == 1
    assert len(failed) == 3
    done, failed = work(make_pool(retries=1), [("never", never, ())])
    assert not done
    assert [(f.attempt, f.final) for f in failed] == [(1, False), (2, True)]
    assert "RuntimeError" in failed[0].traceback


def test_bad_input_is_not_tried_again() -> None:
    def refuse() -> None:
        raise InputError("nothing will mend this")

    done, failed = work(make_pool(retries=5), [("refused", refuse, ())])
    assert not done
    assert [f.final for f in failed] == [True]


def test_workers_that_find_no_room_hold_nothing_up() -> None:
    """More actors than the machine has CPUs for: those that start do everything."""
    cpus = float(os.cpu_count() or 1)
    done, failed = work(
        make_pool(count=3, cpus=cpus), [(f"task{i}", os.getpid, ()) for i in range(6)]
    )
    assert len(done) == 6
    assert not failed
    assert len({outcome.result for outcome in done.values()}) == 1


@pytest.mark.slow  # every sweep adds tasks
def test_tasks_added_on_the_way_are_done_and_idle_workers_go() -> None:
    from ld3_dist.cluster.ray.pool import Done, Task

    pool = make_pool(count=2)
    pool.add(Task("teach", f"first{i}", os.getpid, ()) for i in range(4))
    seen = []
    with pool:
        for outcome in pool.run():
            assert isinstance(outcome, Done)
            seen.append(outcome.task.item)
            if len(seen) == 4:
                pool.release_idle = True
                pool.add([Task("baselines", "second", os.getpid, ())])
        assert len(pool.slots) <= 1
    assert seen[-1] == "second"
    assert len(seen) == 5


@pytest.mark.slow  # a measurement of Ray, not of this package
def test_rays_own_retries_do_not_do_the_job(tmp_path: Path) -> None:
    """The facts that the module's docstring gives as the reason for the pool."""
    import ray

    class Worker:
        def begin(self) -> int:
            return os.getpid()

        def run(self, name: str, how: str) -> int:
            with open(tmp_path / name, "a") as file:
                file.write(f"{os.getpid()}\n")
            first = len((tmp_path / name).read_text().split()) == 1
            if how == "raise":
                raise RuntimeError("sick")
            if how == "die" and first:
                time.sleep(0.5)  # so that the next task is in flight
                os._exit(9)
            while how == "hang":
                time.sleep(1.0)
            return os.getpid()

    def made(retries: int) -> Any:
        actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=retries)(Worker)
        begun = actor.remote()
        ray.get(begun.begin.remote())
        return begun

    def outcome(ref: Any) -> str:
        try:
            return f"pid {ray.get(ref, timeout=100)}"
        except ray.exceptions.RayError as error:
            return type(error).__name__

    actor = made(0)
    tasks = [actor.run.remote("death", "die"), actor.run.remote("behind", "work")]
    assert {outcome(task) for task in tasks} <= {"ActorUnavailableError", "ActorDiedError"}
    assert not (tmp_path / "behind").exists()  # it never ran, and yet it has failed

    actor = made(3)
    task = actor.run.options(retry_exceptions=True).remote("sick", "raise")
    assert outcome(task).startswith("RayTaskError")
    pids = (tmp_path / "sick").read_text().split()
    assert len(pids) == 4
    assert len(set(pids)) == 1

    task = actor.run.remote("hangs", "hang")
    while not (tmp_path / "hangs").exists():
        time.sleep(0.1)
    with pytest.raises(ValueError, match="force=True is not supported for actor tasks"):
        ray.cancel(task, force=True)
    ray.cancel(task)
    assert ray.wait([task], timeout=2.0)[0] == []
    ray.kill(actor)


def test_warnings_of_a_worker_come_with_its_results(tmp_path: Path) -> None:
    """A warning of the core, in another process, arrives at the driver and in the log."""
    from ld3_dist.cluster.logs import logged
    from ld3_dist.cluster.ray.pool import Done, Pool, Task
    from ld3_dist.store.opening import open_storage

    def scarce() -> int:
        import torch

        from ld3_dist.core.memory import in_parts

        def run(part: slice) -> int:
            if part.stop - part.start > 3:
                raise torch.OutOfMemoryError("CUDA out of memory, says the test")
            return part.stop - part.start

        return sum(in_parts(8, 8, run, "m"))

    warnings: list[str] = []
    storage = open_storage(tmp_path)
    pool = Pool(
        1,
        0.5,
        0,
        0,
        60.0,
        lambda task: (logged, (storage, task.stage, task.item, task.function, task.arguments)),
        warn=warnings.append,
    )
    pool.add([Task("teach", "a", scarce, ()), Task("teach", "b", os.getpid, ())])
    with pool:
        done = {outcome.task.item: outcome for outcome in pool.run() if isinstance(outcome, Done)}
    assert done["a"].result == 8
    assert len(warnings) == 2  # 8 at once, then 4
    assert all(text.startswith("teach a on ") and "out of memory" in text for text in warnings)
    lines = [
        json.loads(line)
        for file in tmp_path.glob("logs/*.jsonl")
        for line in file.read_text().splitlines()
    ]
    found = [line for line in lines if line["event"] == "warning"]
    assert [line["message"] for line in found] == [text.partition(": ")[2] for text in warnings]
    assert {(line["stage"], line["item"], line["role"]) for line in found} == {
        ("teach", "a", "worker")
    }
    assert all(line["address"] and line["node"] for line in lines)
    assert {line["pid"] for line in lines} == {done["b"].result}
