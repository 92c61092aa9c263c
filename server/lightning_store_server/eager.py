"""Begins coroutines at once. Most calls of a store end without ever waiting; such a one needs no task, and no turn of
the event loop. (Python has that as ``eager_start`` of a task, from 3.12 on.)"""

from __future__ import annotations

import asyncio
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
    rest = _Rest(coroutine, awaited)
    return asyncio.get_running_loop().create_task(rest, context=context)


class _Rest(Coroutine[Any, Any, T]):
    """A coroutine from where it waits for ``awaited``, which its task is told first."""

    def __init__(self, coroutine: Coroutine[Any, Any, T], awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = [awaited]

    def send(self, value: Any) -> Any:
        return self._awaited.pop() if self._awaited else self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        for awaited in self._awaited:  # the task is cancelled before its first turn, and has not seen this
            if awaited is not None:
                awaited.cancel()
        self._awaited.clear()
        try:
            return self._coroutine.throw(*error)
        finally:
            del error  # whose traceback has this frame: a reference cycle, with all that the coroutine holds

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self._coroutine.__await__()
