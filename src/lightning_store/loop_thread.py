"""LoopThread: an event loop in a daemon thread, for work that must not depend on the caller's loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from lightning_store.errors import CallCancelledError

T = TypeVar("T")


class LoopThread:
    """Runs coroutines on one event loop of its own, from when it is made until ``stop``."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._submitting = threading.Lock()
        self._stopped = False
        self._thread = threading.Thread(target=_run, args=(self._loop,), name=name, daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """False after ``stop``, and in a process forked from the one that made it."""
        return not self._stopped and self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread that asks."""
        return self._thread is threading.current_thread()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Begin ``work``. CallCancelledError once stopped."""
        with self._submitting:
            if self._stopped:
                work.close()
                raise CallCancelledError("the thread that runs this store was stopped")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``; if the caller is cancelled, so is ``work``. CallCancelledError once stopped."""
        future = self.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and not caller.cancelling():
                raise CallCancelledError("the thread that runs this store was stopped during the call") from None
            raise

    def stop(self) -> None:
        """Cancel what is running and end the thread. May be called more than once."""
        with self._submitting:
            first, self._stopped = not self._stopped, True
        if first and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
        if not self.is_current:
            self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        while pending := asyncio.all_tasks(loop):
            for task in pending:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))
        loop.run_until_complete(asyncio.sleep(0))  # what ended in the last round has yet to tell its caller
        loop.close()
