"""Streaming calls, read by threads that can be made to leave gRPC while the process forks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import grpc

from lightning_store.clock import SystemClock
from lightning_store_client import grpc_internals

logger = logging.getLogger("lightning_store_client")

LOOK_AGAIN_SECONDS: Final = 0.0005

_clock = SystemClock()
now = _clock.monotonic
"""What a fork waits for happens in threads, whatever clock the client was given."""


def warn_of_grpc(error: Exception) -> None:
    """What we use of gRPC's own is not as we know it."""
    logger.warning("grpcio %s does not let calls share a stream (%s); they are slower", grpc.__version__, error)


def wait_until(happened: Callable[[], bool], until: float) -> None:
    """Return when something has happened in another thread, at the time ``until`` at the latest."""
    pause = threading.Event()
    while not happened() and now() < until:
        pause.wait(LOOK_AGAIN_SECONDS)


class Replies(Iterator[Any]):
    """The replies of a streaming call, for one reader.

    Before a fork gRPC waits for its own threads, and not for those that read. One that asks for a reply at that moment
    is inside gRPC, and what it holds locked there stays locked in the child for ever.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._may_ask = threading.Lock()
        self._asking = False

    def __next__(self) -> Any:
        with self._may_ask:
            self._asking = True
        try:
            return next(self._call)
        finally:
            self._asking = False

    @property
    def over(self) -> bool:
        """Whether the call has ended."""
        return not self._call.is_active()

    def pause(self, until: float) -> None:
        """Let the reader ask for no reply until ``resume``. Returns when it is outside gRPC, or does no more than wait
        there, and at the time ``until`` at the latest."""
        self._may_ask.acquire()
        wait_until(lambda: not self._asking or self._waits(), until)

    def resume(self) -> None:
        self._may_ask.release()

    def _waits(self) -> bool:
        """Whether gRPC has taken note that a reply is asked for, or the call has ended."""
        return self.over or grpc_internals.awaits_reply(self._call)
