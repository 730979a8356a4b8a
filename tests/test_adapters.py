"""Real pools, real event loops and Celery's real signals."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.pool
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from otelperf.adapters import watch_celery, watch_pool, watch_tasks
from otelperf.sources.workers import worker

SPAWN = multiprocessing.get_context("spawn")


def told(name: str) -> dict[str, Any]:
    """What the worker has counted: tasks, errors by type, those at work."""
    found: dict[str, Any] = {"errors": {}}
    for reading in worker(name).readings():
        match reading.name:
            case "otelperf.worker.errors":
                found["errors"][reading.attributes["error.type"]] = reading.value
            case "otelperf.worker.tasks" | "otelperf.worker.active_tasks":
                found[reading.name.removeprefix("otelperf.worker.")] = reading.value
    return found


def half(number: int) -> float:
    if number == 13:
        raise ValueError("unlucky")
    return number / 2


@pytest.mark.parametrize(
    "pool",
    [lambda: ThreadPoolExecutor(2), lambda: ProcessPoolExecutor(1, mp_context=SPAWN)],
    ids=["threads", "processes"],
)
def test_an_executors_tasks_are_counted(pool: Callable[[], Executor], request: pytest.FixtureRequest) -> None:
    name = request.node.name
    with watch_pool(pool(), name) as watched:
        watch_pool(watched, name)  # again
        assert list(watched.map(half, [2, 4])) == [1.0, 2.0]
        assert watched.submit(half, 6).result() == 3.0
        with pytest.raises(ValueError, match="unlucky"):
            watched.submit(half, 13).result()
    assert told(name) == {"tasks": 4, "active_tasks": 0, "errors": {"ValueError": 1}}


def test_a_task_that_waits_for_a_thread_is_not_at_work_yet() -> None:
    going, wait = threading.Event(), threading.Event()

    def task() -> None:
        going.set()
        wait.wait(10)

    with watch_pool(ThreadPoolExecutor(1), "one thread") as pool:
        pool.submit(task)
        pool.submit(task)
        assert going.wait(10)
        assert told("one thread")["active_tasks"] == 1
        wait.set()
    assert told("one thread") == {"tasks": 2, "active_tasks": 0, "errors": {}}


@pytest.mark.parametrize(
    "pool",
    [lambda: multiprocessing.pool.ThreadPool(2), lambda: SPAWN.Pool(1)],
    ids=["threads", "processes"],
)
def test_a_multiprocessing_pools_tasks_are_counted(
    pool: Callable[[], multiprocessing.pool.Pool], request: pytest.FixtureRequest
) -> None:
    name, results = request.node.name, list[object]()
    with watch_pool(pool(), name) as watched:
        assert watched.apply(half, (2,)) == 1.0
        assert watched.map(half, [2, 4]) == [1.0, 2.0]
        assert watched.starmap(half, [(6,)]) == [3.0]
        assert watched.apply_async(half, (8,), {}, results.append).get() == 4.0
        assert watched.map_async(half, [2], callback=results.append).get() == [1.0]
        with pytest.raises(ValueError, match="unlucky"):
            watched.apply_async(half, (13,), error_callback=results.append).get()
        with pytest.raises(ValueError, match="unlucky"):
            watched.map(half, [13])
        watched.close()
        watched.join()  # else a callback may still be on its way
    assert [str(each) for each in results] == ["4.0", "[1.0]", "unlucky"]
    assert told(name) == {"tasks": 7, "active_tasks": 0, "errors": {"ValueError": 2}}


def test_what_is_no_pool_is_refused() -> None:
    with pytest.raises(TypeError, match="neither an executor"):
        watch_pool(object(), "none")


def test_the_tasks_of_a_loop_are_counted_and_an_error_that_nobody_looks_at_is_still_told() -> None:
    problems: list[str] = []

    async def fails() -> None:
        raise OSError("nobody looks")

    async def waits() -> None:
        await asyncio.Event().wait()

    async def program() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context["message"]))
        watch_tasks("loop")
        watch_tasks("loop")
        assert await asyncio.create_task(asyncio.sleep(0, "slept"), name="named") == "slept"
        waiting = asyncio.create_task(waits())
        failing = asyncio.create_task(fails())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        del failing
        assert told("loop")["active_tasks"] == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

        # asyncio.run makes tasks of its own to clean up.
        assert told("loop") == {"tasks": 3, "active_tasks": 0, "errors": {"OSError": 1, "CancelledError": 1}}

    asyncio.run(program())
    assert problems == ["Task exception was never retrieved"]


def test_outside_a_loop_it_says_where_to_call_it() -> None:
    with pytest.raises(RuntimeError, match=r"^otelperf\.watch_tasks: no event loop runs here: call it in a coroutine"):
        watch_tasks("outside")


@pytest.mark.filterwarnings("default")
def test_celerys_tasks_are_counted_by_their_names() -> None:
    from celery import Celery  # type: ignore[import-untyped, unused-ignore] # celery has no types

    app = Celery("shop", broker="memory://", set_as_current=False)
    watch_celery("queue")

    @app.task(name="halve")  # type: ignore[untyped-decorator, unused-ignore] # celery has no types
    def halve(number: int) -> float:
        return half(number)

    assert halve.apply((4,)).get() == 2.0
    assert isinstance(halve.apply((13,)).result, ValueError)
    assert told("queue halve") == {"tasks": 2, "active_tasks": 0, "errors": {"ValueError": 1}}
