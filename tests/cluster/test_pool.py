"""The pool of actors on a real local Ray: workers that die, hang or go sick; attempts counted per
task.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ld3_dist.core.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    import ray

    from ld3_dist.cluster.ray.connect import connect

    connect(None)
    ray.cloudpickle.register_pickle_by_value(
        sys.modules[__name__]
    )  # workers cannot import the tests
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


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
