"""Pools and queues of others as workers: concurrent.futures, multiprocessing, asyncio, Celery.

Each is watched from where its tasks are handed in or run in this process; nothing of what they do or return is changed.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from otelperf.sources.workers import Worker, worker

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_POOL_CALLS = ("apply", "map", "starmap")
_NAMES = "_otelperf_workers"  # on what is watched: under which names it is
_POOL_CALLS_LATER = ("apply_async", "map_async", "starmap_async")


def watch_pool(pool: T, name: str) -> T:
    """Count the tasks of *pool* under the worker *name*, and return it. To be called before tasks are handed in.

    In a ThreadPoolExecutor a task lasts from its beginning in a thread. In other executors and in ``multiprocessing.Pool`` it
    runs in another process, so it lasts from where it was handed in until its result is here; one ``map`` is one task, and
    ``imap`` is not counted. The same *name* again changes nothing. Raises TypeError for anything else.
    """
    found, watched = worker(name), pool
    names = getattr(pool, _NAMES, ())
    if name in names:
        return pool
    if isinstance(pool, ThreadPoolExecutor):
        _replace(watched, "submit", lambda submit: lambda function, /, *a, **k: submit(found(function), *a, **k))
    elif isinstance(pool, Executor):
        _replace(watched, "submit", lambda submit: lambda *a, **k: found.follow(submit(*a, **k)))
    elif all(callable(getattr(pool, each, None)) for each in (*_POOL_CALLS, *_POOL_CALLS_LATER)):
        for each in _POOL_CALLS_LATER:
            _replace(watched, each, functools.partial(_with_callbacks, found))
        for each in _POOL_CALLS:
            # apply() calls apply_async(), which counts already; the others go another way.
            if each != "apply":
                _replace(watched, each, found)
    else:
        msg = f"otelperf.watch_pool: {pool!r} is neither an executor of concurrent.futures nor a multiprocessing.Pool"
        raise TypeError(msg)
    setattr(pool, _NAMES, (*names, name))
    return pool


def _replace(pool: Any, name: str, changed: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(pool, name, changed(getattr(pool, name)))


def _with_callbacks(found: Worker, call: Callable[..., Any]) -> Callable[..., Any]:
    """Count *call*, one of a multiprocessing pool's asynchronous ones: it says by callbacks how the task ended."""
    signature = inspect.signature(call)

    @functools.wraps(call)
    def counted(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        done, failed = given.arguments.get("callback"), given.arguments.get("error_callback")
        began = found.begin()

        def ended(result: Any) -> None:
            found.end(began)
            if done:
                done(result)

        def ended_in_error(error: BaseException) -> None:
            found.end(began, error)
            if failed:
                failed(error)

        given.arguments.update(callback=ended, error_callback=ended_in_error)
        try:
            return call(*given.args, **given.kwargs)
        except BaseException as error:
            found.end(began, error)
            raise

    return counted


def watch_tasks(name: str, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """Count every task that *loop* (by default the running one) makes from now on under the worker *name*.

    A task is at work until it is done, also while it waits. The same *name* again changes nothing. Raises RuntimeError
    outside a running loop.
    """
    import asyncio

    try:
        loop = loop or asyncio.get_running_loop()
    except RuntimeError:
        msg = "otelperf.watch_tasks: no event loop runs here: call it in a coroutine, or give it loop=..."
        raise RuntimeError(msg) from None
    found = worker(name)
    before = loop.get_task_factory()
    names = getattr(before, _NAMES, ())
    if name in names:
        return

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **kwargs: Any) -> asyncio.Future[Any]:
        made = before(loop, coroutine, **kwargs) if before else asyncio.Task(coroutine, loop=loop, **kwargs)
        return found.follow(made)

    setattr(factory, _NAMES, (*names, name))
    loop.set_task_factory(factory)


def watch_celery(name: str = "celery") -> None:
    """Count the tasks that this process runs for Celery, each under the worker *name* and the task's name.

    By Celery's signals: to be called once in the module that makes the Celery application. A task that is retried failed with
    ``Retry``.
    """
    from celery import signals  # type: ignore[import-untyped, import-not-found, unused-ignore] # no part of ours

    begun: dict[str, tuple[Worker, int]] = {}

    def starts(task_id: str, task: Any, **_: Any) -> None:
        found = worker(f"{name} {task.name}")
        begun[task_id] = (found, found.begin())

    def ends(task_id: str, state: str | None = None, retval: Any = None, **_: Any) -> None:
        found = begun.pop(task_id, None)
        if found:
            error = retval if isinstance(retval, BaseException) else state
            found[0].end(found[1], None if state == "SUCCESS" else error)

    # weak: nobody else holds these functions.
    signals.task_prerun.connect(starts, weak=False, dispatch_uid=f"otelperf {name} starts")
    signals.task_postrun.connect(ends, weak=False, dispatch_uid=f"otelperf {name} ends")
