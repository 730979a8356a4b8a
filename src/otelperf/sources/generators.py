"""Generator functions, measured: what is sent to them, thrown into them, yielded and returned passes as ever."""

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, aclosing, closing
from typing import Any, TypeVar

C = TypeVar("C")


def _nothing(_: object) -> None:
    pass


def measured(
    function: Callable[..., Any], begin: Callable[[], AbstractContextManager[C]], item: Callable[[C], object] = _nothing
) -> Callable[..., Any]:
    """Return the generator *function* inside the context of *begin*, and *item* told of what that gave at each item."""

    def wrapped(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        with begin() as context, closing(function(*args, **kwargs)) as items:
            step = items.__next__
            while True:
                try:
                    each = step()
                except StopIteration as end:
                    return end.value
                item(context)
                try:
                    step = functools.partial(items.send, (yield each))
                except GeneratorExit:
                    raise
                except BaseException as error:  # noqa: BLE001 # it is thrown on
                    step = functools.partial(items.throw, error)

    return wrapped


def measured_async(
    function: Callable[..., Any], begin: Callable[[], AbstractContextManager[C]], item: Callable[[C], object] = _nothing
) -> Callable[..., Any]:
    """Return the same of an asynchronous one."""

    async def wrapped(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        with begin() as context:
            async with aclosing(function(*args, **kwargs)) as items:
                step = items.__anext__
                while True:
                    try:
                        each = await step()
                    except StopAsyncIteration:
                        return
                    item(context)
                    try:
                        step = functools.partial(items.asend, (yield each))
                    except GeneratorExit:
                        raise
                    except BaseException as error:  # noqa: BLE001 # it is thrown on
                        step = functools.partial(items.athrow, error)

    return wrapped
