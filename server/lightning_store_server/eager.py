"""Begins coroutines at once. Most calls of a store end without ever waiting; such a one needs no task, and no turn of
the event loop. (Python has that as ``eager_start`` of a task, from 3.12 on.)"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Coroutine, Generator
from contextvars import copy_context
from typing import Any, TypeVar

T = TypeVar("T")


def begin(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T] | None:
    """Run ``coroutine`` until it ends or waits. The task in which it goes on; None if it has ended.

    Until it waits, the current task is the caller's, not its own: it must not ask for that before, as
    ``asyncio.timeout`` does. It has a context of its own. What it returns when it ends at once is dropped, what it
    raises is raised.
    """
    context = copy_context()
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration:
        return None
    return asyncio.get_running_loop().create_task(_go_on(coroutine, awaited), context=context)


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """``coroutine`` from where it waits for ``awaited``."""
    try:
        while True:
            try:
                sent = yield awaited
            except BaseException as error:
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(sent)
    except StopIteration as end:
        result: T = end.value
        return result
