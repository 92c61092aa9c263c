"""The one thread in which the clients of this process do what must not depend on a caller's event loop: heartbeats,
buffered spans, and the calls of synchronous clients."""

from __future__ import annotations

from lightning_store.loop_thread import LoopThread
from lightning_store_client.channel import no_fork

THREAD_NAME = "lightning-store-client"


class _Background:
    def __init__(self) -> None:
        self._thread: LoopThread | None = None

    def thread(self) -> LoopThread:
        """Return this process's thread, which is started when it is first needed. A forked child starts its own."""
        thread = self._thread
        if thread is None or not thread.is_alive:
            with no_fork():  # a fork in between would leave the child a lock that nobody releases
                thread = self._thread
                if thread is None or not thread.is_alive:
                    thread = self._thread = LoopThread(THREAD_NAME)
        return thread


background_thread = _Background().thread
